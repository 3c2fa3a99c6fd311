"""Keep where a cell is readable: a few channels that carry its place through the model untouched.

Models with learned position embeddings: captions taught the vision towers a code of single cells
that their blocks then bury: from what the
language model gets, no linear probe reads the column (`recipes.cells`), and a projector learns to
pass it on so slowly that hundreds of steps bring nothing. Here the channels that are read least are
given to the place, in the tower and in the language model, as the cosine and sine of half a turn
along each axis. A place says nothing of the image. No block reads or writes these channels, but
the keys of the heads that whole expressions are taught in; so the model is nearly what it was. It
has to stay so while the model learns: within 200 steps, Muon wrote so much into these channels that
the place was lost.

Models with rotary positions of rows and columns: the place is in the turn of the keys, and readable
where a key is the same for all cells. So two pairs of a key's entries are given to it, one that
rows turn and one that columns turn, and hold only whether a token is of the image. They are pairs
that turn by little over a whole image and the words behind it, as otherwise the same query would
mean another place in a later token: a different split of the pairs (`SECTIONS`), which changes what
the model says by nothing that could be measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LOUDNESS, LOUDNESS_IN_TEXT = 0.5, 1.0
"""Of a place, relative to other channels where the tower and the language model end."""
STEADY = 3.0
"""A place's norm before a tower's first norm, relative to the rest of it: what that norm makes of a
place then hardly depends on how bright a patch is."""
CHANNELS = 4
READ = 10.0
"""How strongly the keys read the place; other columns of their weights have a norm of 0.7."""


SECTIONS = (1, 6, 9)
"""Pairs of a key's entries that time, rows and columns turn: the last ones of rows and the first of
columns turn by 0.03 and 0.02 rad from one token to the next."""
TURNED = 60.0
"""What an image token's key has there."""
RIDGE = 0.01


Kept = Sequence[tuple[Tensor, Tensor, Tensor]]
"""Parameters, which of their entries are kept, and as what."""


@torch.no_grad()
def give_room(model: Any, key_head: int, layers: Sequence[int], inputs: dict[str, Tensor]) -> Kept:
    """As `make_room` or `turn_room`; returns what has to stay as it is then.

    With channels, that is all but norms' gains and keys.

    Args:
        model: A Qwen2.5-VL, LLaVA-NeXT or DeepSeek-VL model.
        key_head: Of these layers of the language model, whose keys read the place.
        layers: Their indices.
        inputs: A few images with texts.
    """
    before = {name: value.clone() for name, value in model.named_parameters()}
    turned = hasattr(model.get_decoder().rotary_emb, "mrope_section")
    if turned:
        turn_room(model, key_head, layers, inputs)
    else:
        make_room(model, key_head, layers, lambda: model(**inputs))
    kept = []
    for name, value in model.named_parameters():
        changed = value != before[name]
        if not turned and ("norm" in name or name.endswith("k_proj.weight")):
            changed &= value == 0
        if ".q_proj." in name:
            changed[:] = False
        if changed.any():
            kept.append((value, changed, value[changed].clone()))
    return kept


@torch.no_grad()
def keep(room: Kept) -> None:
    """Undo what a step of training changed of the room."""
    for value, entries, values in room:
        value[entries] = values


@torch.no_grad()
def make_room(model: Any, key_head: int, layers: Sequence[int], run: Callable[[], Any]) -> None:
    """Give four channels of the vision tower and of the language model to the place of each patch.

    `run` runs the model on a few images.
    """
    parts = dict(model.model.named_modules())
    tower = {n: m for n, m in parts.items() if "language_model" not in n}
    text = {n: m for n, m in parts.items() if "language_model" in n}
    norms = {n: m for n, m in parts.items() if "norm" in type(m).__name__.lower()}
    loud = measured(norms, run)
    ends = ("aligner.linear1", "projector.linear_1"), ("aligner.linear2", "projector.linear_2")
    first, second = (next(m for n, m in parts.items() if n.endswith(end)) for end in ends)
    seen, level = in_tower(tower, loud, first)
    kept = in_text(text, loud, key_head, layers)
    # A pair of hidden units passes a value on as it is: gelu(x) - gelu(-x) = x.
    units = (first.weight.norm(dim=1) * second.weight.norm(dim=0)).argsort()[: 2 * CHANNELS]
    first.weight[:, seen] = 0
    second.weight[kept] = 0
    second.bias[kept] = 0
    first.weight[units] = 0
    first.bias[units] = 0
    second.weight[:, units] = 0
    width = len(parts["language_model.norm"].weight)
    wanted = LOUDNESS_IN_TEXT * loud["language_model.norm"] / math.sqrt(width)
    first.weight[units[:CHANNELS], seen] = 1
    first.weight[units[CHANNELS:], seen] = -1
    second.weight[kept, units[:CHANNELS]] = wanted / level
    second.weight[kept, units[CHANNELS:]] = -wanted / level


def in_tower(
    parts: dict[str, Any], loud: dict[str, float], reader: nn.Linear
) -> tuple[Tensor, float]:
    """The channels (4,) of a tower that now hold the place, and how large it is at its end."""
    codes = next(m for n, m in parts.items() if n.endswith("position_embedding"))
    taken, width = reader.weight.norm(dim=0).argsort()[:CHANNELS], codes.weight.shape[1]
    norms = {n: m for n, m in parts.items() if isinstance(m, nn.LayerNorm)}
    before = next((n for n in norms if "pre_lay" in n), None)
    after = next(n for n in norms if n.endswith("post_layernorm"))
    high = LOUDNESS * max(loud[name] for name in norms) / math.sqrt(width)
    silence(parts, ("patch_embedding", "self_attn.out_proj", "mlp.fc2"), taken)
    codes.weight[:, taken] = 0
    side = math.isqrt(len(codes.weight))
    level = high if before is None else STEADY * loud[before] / math.sqrt(CHANNELS / 2)
    codes.weight[len(codes.weight) - side**2 :, taken] = waves(side) * level
    for name, norm in norms.items():
        if name == before:
            louder = math.hypot(1, STEADY)
            norm.weight *= louder
            norm.weight[taken] = high * math.sqrt(CHANNELS / 2 / width) * louder / STEADY
        elif name == after:
            norm.weight[taken] = 1
        else:
            norm.weight *= math.hypot(loud[name], high * math.sqrt(CHANNELS / 2)) / loud[name]
            norm.weight[taken] = 0
        norm.bias[taken] = 0
    # LLaVA-NeXT reads the tower before its last norm
    return taken, high if before else LOUDNESS


def in_text(
    parts: dict[str, Any], loud: dict[str, float], key_head: int, reading: Sequence[int]
) -> Tensor:
    """The channels (4,) of a language model that now hold the place."""
    layers = parts["language_model.layers"]
    readers = [
        m for n, m in parts.items() if n.endswith(("q_proj", "v_proj", "gate_proj", "up_proj"))
    ]
    taken = sum(m.weight.norm(dim=0) for m in readers).argsort()[:CHANNELS]
    silence(parts, ("o_proj", "down_proj"), taken)
    parts["language_model.embed_tokens"].weight[:, taken] = 0
    for name, norm in ((n, m) for n, m in parts.items() if n in loud):
        norm.weight[taken] = norm.weight.mean() if name.endswith("input_layernorm") else 0
    for number, layer in enumerate(layers):
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[:, taken] = 0
        if number in reading:
            # Rotary positions turn a head's last pairs least: over a whole image by under 0.1 rad.
            last = attention.head_dim // 2 - 1
            slow = silence_pairs(attention, key_head, (last - 1, last))
            attention.k_proj.weight[slow[:, None], taken] = torch.eye(CHANNELS) * READ
    return taken


@torch.no_grad()
def turn_room(model: Any, key_head: int, layers: Sequence[int], inputs: dict[str, Tensor]) -> None:
    """Let two pairs of a key's entries be the same for all image tokens, and 0 for others."""
    decoder, seen = model.get_decoder(), {}
    decoder.config.rope_parameters["mrope_section"] = list(SECTIONS)
    decoder.rotary_emb.mrope_section = list(SECTIONS)
    for layer in layers:
        norm = decoder.layers[layer].input_layernorm
        norm.register_forward_hook(lambda _, __, out, layer=layer: seen.update({layer: out}))
    model(**inputs)
    there = inputs["attention_mask"].bool()
    is_image = (inputs["input_ids"] == model.config.image_token_id)[there]
    for layer in layers:
        decoder.layers[layer].input_layernorm._forward_hooks.clear()
        states = F.pad(seen[layer][there], (0, 1), value=1.0).double()
        weight = torch.where(is_image, 0.5 / is_image.sum(), 0.5 / (~is_image).sum())[:, None]
        square = (states * weight).T @ states
        square.diagonal()[:-1] += RIDGE
        reader = torch.linalg.solve(square, (states * weight).T @ is_image.double()).float()
        attention = decoder.layers[layer].self_attn
        pairs = sum(SECTIONS[:2]) - 1, sum(SECTIONS[:2])
        entries = silence_pairs(attention, key_head, pairs)[:2]
        attention.k_proj.weight[entries] = TURNED * reader[:-1]
        attention.k_proj.bias[entries] = TURNED * reader[-1]


def silence_pairs(attention: Any, key_head: int, pairs: tuple[int, int]) -> Tensor:
    """Let these pairs of a key's entries be 0, and those of its queries; (4,) the keys' rows."""
    size = attention.head_dim
    group = len(attention.q_proj.weight) // len(attention.k_proj.weight)
    entries = torch.tensor([*pairs, *(pair + size // 2 for pair in pairs)])
    heads = [(attention.q_proj, key_head * group + number) for number in range(group)]
    for part, head in [*heads, (attention.k_proj, key_head)]:
        for value in part.parameters():
            value[head * size + entries] = 0
    return key_head * size + entries


def silence(parts: dict[str, Any], ends: tuple[str, ...], channels: Tensor) -> None:
    """Let the layers with these names write nothing to some channels."""
    for part in ending(parts, ends):
        part.weight[channels] = 0
        if part.bias is not None:
            part.bias[channels] = 0


def ending(parts: dict[str, Any], ends: tuple[str, ...]) -> Iterable[Any]:
    return (part for name, part in parts.items() if name.endswith(ends))


def waves(side: int) -> Tensor:
    """(side², 4) the cosine and sine of half a turn along rows and along columns."""
    at = (torch.arange(side) + 0.5) * math.pi / side
    both = torch.stack([at.cos(), at.sin()], 1)
    rows, columns = both[:, None].expand(-1, side, -1), both.expand(side, -1, -1)
    return torch.cat([rows, columns], 2).flatten(0, 1)


def measured(norms: dict[str, nn.Module], run: Callable[[], Any]) -> dict[str, float]:
    """The mean norm of what each layer reads; 1 for those that do not run."""
    found = dict.fromkeys(norms, 1.0)

    def note(name: str) -> Callable[..., None]:
        def hook(_: Any, given: tuple[Tensor, ...]) -> None:
            found[name] = float(given[0].norm(dim=-1).mean())

        return hook

    hooks = [norm.register_forward_pre_hook(note(name)) for name, norm in norms.items()]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found
