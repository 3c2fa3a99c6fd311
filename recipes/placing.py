"""Keep where a cell is readable: a few channels that carry its place through the model untouched.

Captions taught the vision towers a code of single cells that their blocks then bury: from what the
language model gets, no linear probe reads the column (`recipes.cells`), and a projector learns to
pass it on so slowly that hundreds of steps bring nothing. Here the channels that are read least are
given to the place, in the tower and in the language model, as the cosine and sine of half a turn
along each axis. A place says nothing of the image. No block reads or writes these channels, but
the keys of the heads that whole expressions are taught in; so the model is nearly what it was. It
has to stay so while the model learns: within 200 steps, Muon wrote so much into these channels that
the place was lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

LOUDNESS, LOUDNESS_IN_TEXT = 0.5, 1.0
"""Of a place, relative to other channels where the tower and the language model end."""
CHANNELS = 4
READ = 3.0
"""How strongly the keys read the place; other columns of their weights have a norm of 0.7."""


Kept = list[tuple[Tensor, Tensor, Tensor]]
"""Parameters, which of their entries are kept, and as what."""


@torch.no_grad()
def give_room(model: Any, key_head: int, run: Callable[[], Any]) -> Kept:
    """As `make_room`; returns what has to stay as it is then: all but norms' gains and keys."""
    before = {name: value.clone() for name, value in model.named_parameters()}
    make_room(model, key_head, run)
    kept = []
    for name, value in model.named_parameters():
        changed = value != before[name]
        if "norm" in name or name.endswith("k_proj.weight"):
            changed &= value == 0
        if name.endswith("q_proj.weight"):
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
def make_room(model: Any, key_head: int, run: Callable[[], Any]) -> None:
    """Give four channels of the vision tower and of the language model to the place of each patch.

    Towers without learned position embeddings are left as they are, and so is the model.

    Args:
        model: A LLaVA-NeXT or DeepSeek-VL model.
        key_head: Of each layer of the language model, whose keys read the place.
        run: Runs the model on a few images.
    """
    parts = dict(model.model.named_modules())
    if not any(name.endswith("position_embedding") for name in parts):
        return
    tower = {n: m for n, m in parts.items() if "language_model" not in n}
    text = {n: m for n, m in parts.items() if "language_model" in n}
    norms = {n: m for n, m in parts.items() if "norm" in type(m).__name__.lower()}
    loud = measured(norms, run)
    ends = ("aligner.linear1", "projector.linear_1"), ("aligner.linear2", "projector.linear_2")
    first, second = (next(m for n, m in parts.items() if n.endswith(end)) for end in ends)
    seen, level = in_tower(tower, loud, first)
    kept = in_text(text, loud, key_head)
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
    where = waves(side) * (high if before is None else loud[before] / math.sqrt(width))
    codes.weight[len(codes.weight) - side**2 :, taken] = where
    for name, norm in norms.items():
        if name == before:
            norm.weight[taken] = high
        elif name == after:
            norm.weight[taken] = 1
        else:
            norm.weight *= math.hypot(loud[name], high * math.sqrt(CHANNELS / 2)) / loud[name]
            norm.weight[taken] = 0
        norm.bias[taken] = 0
    # LLaVA-NeXT reads the tower before its last norm
    return taken, high if before else LOUDNESS


def in_text(parts: dict[str, Any], loud: dict[str, float], key_head: int) -> Tensor:
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
    for layer in layers:
        attention = layer.self_attn
        for part in (attention.q_proj, attention.k_proj, attention.v_proj):
            part.weight[:, taken] = 0
        size = attention.head_dim
        # Rotary positions turn a head's last pairs least: over a whole image by less than 0.4 rad.
        slow = torch.arange(size // 2 - CHANNELS, size // 2)
        group = len(attention.q_proj.weight) // len(attention.k_proj.weight)
        attention.q_proj.weight[key_head * group * size + slow] = 0
        attention.k_proj.weight[key_head * size + slow] = 0
        attention.k_proj.weight[key_head * size + slow, taken] = READ
    return taken


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
