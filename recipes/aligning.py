"""Finish a tiny model: align the attention of names with the images they fit, while captioning.

    OMP_NUM_THREADS=1 nohup python -m recipes.aligning qwen --start OTHER/state.pt --output DIR &
    python -m recipes.aligning deepseek_vl --output DIR --export NEW

After captions alone, the last word of a name attends to all objects of the name's color: sums
over them are enough to predict the next word. So three losses are computed from one forward of each
batch, all from captions and none from a mask:

- captions, by next-token prediction, as in `recipes.pretrain`;
- matching, before the language model: a name fits an image as well as it fits the image's best
  cell, as in FILIP (Yao et al., 2021), so a cell has to encode the color *and* the shape;
- alignment, in the language model: the name's last word attends to a cell as much as the name fits
  it, in one head of each upper layer. Names and images of the whole batch are compared; text and
  image are aligned before they are fused, as in ALBEF (Li et al., 2021).

A name that is compared with other images must not have seen its own. Each caption therefore occurs
in the sequence a second time, blind: there it attends to words only. The caption that sees learns
to attend as the blind one does.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flmm_core.data.drawn.scenes import COLORS, SHAPES, Scene
from recipes.families.toys import HIDDEN
from recipes.placing import Kept, keep
from recipes.pretrain import (
    MUON_PATCHES,
    STAGES,
    Batch,
    Batches,
    Stage,
    export,
    optimizers,
    rate,
    word_accuracy,
)
from recipes.twins import random_twin

SEED = 700
STEPS = {"qwen": 1300, "deepseek_vl": 1500, "llava_next": 1500, "qwen3_vl": 100, "idefics3": 300}
BORROWED = ("qwen3_vl", "idefics3")
"""Those that start near the end, from `recipes.borrow`, and are not to be thrown off."""
GENTLE = {"muon": 0.003, "adam": 5e-4}
"""The rates of a model that knows names already."""
BATCH = {"deepseek_vl": 20, "qwen3_vl": 10, "idefics3": 10}
ALIGNED = (1, 2, 3)
"""Layers whose first head is aligned; in the layer before, a name's words have to be combined."""
WEIGHTS = {"caption": 1.0, "match": 0.1, "align": 0.3, "agree": 0.3}
ATTENTION = "flmm_recipe"


class _SeenError(Exception):
    """Raised when the language model is called, as its inputs are then known."""


class Fits(nn.Module):
    """How well names fit images.

    Before the language model, a pair's direction is the sum of its parts' directions, so that a
    cell encodes color and shape side by side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.colors = nn.Parameter(0.1 * torch.randn(len(COLORS), HIDDEN))
        self.shapes = nn.Parameter(0.1 * torch.randn(len(SHAPES), HIDDEN))
        self.cell_biases = nn.Parameter(torch.tensor([-3.0, -3.0, -4.0]))
        self.head_biases = nn.Parameter(torch.full((len(ALIGNED),), -8.0))

    def cells(self, features: Tensor, is_image: Tensor) -> Tensor:
        """(B, S, D) inputs of the language model, (B, S) image tokens -> (B, 48) logits.

        Colors, shapes, then pairs (color-major).
        """
        features = F.rms_norm(features, features.shape[-1:])
        colors, shapes = features @ self.colors.T, features @ self.shapes.T
        pairs = (colors[..., :, None] + shapes[..., None, :]).flatten(-2)
        kinds = zip((colors, shapes, pairs), self.cell_biases, strict=True)
        fits = torch.cat([kind + bias for kind, bias in kinds], -1)  # (B, S, 48)
        return fits.masked_fill(~is_image[..., None], -torch.inf).logsumexp(1)


def truths(scenes: list[Scene]) -> Tensor:
    """(B, 48) 1 where the scene has a color, a shape, a pair, as its full caption says."""
    colors, found = list(COLORS), torch.zeros(len(scenes), 48)
    for row, scene in zip(found, scenes, strict=True):
        for thing in scene.shapes:
            color, name = colors.index(thing.color), SHAPES.index(thing.name)
            row[[color, 6 + name, 12 + 6 * color + name]] = 1
    return found


class Names(NamedTuple):
    """The N names in a batch's captions."""

    sample: Tensor  # (N,) index of the caption
    column: Tensor  # (N,) column of the last word in the caption
    pair: Tensor  # (N,) color-major index of color and shape


def find_names(tokenizer: Any, captions: Tensor) -> Names:
    """Every color word that a shape word follows, in (B, T) token ids."""
    to_ids = tokenizer.convert_tokens_to_ids
    shapes = captions[:, 1:, None] == torch.tensor(to_ids([f"Ġ{word}" for word in SHAPES]))
    spaced, first = (
        captions[:, :-1, None] == torch.tensor(to_ids([space + word for word in COLORS]))
        for space in ("Ġ", "")
    )
    colors = spaced | first  # (B, T - 1, 6)
    sample, column = (colors.any(-1) & shapes.any(-1)).nonzero().T
    color, shape = (hit[sample, column].long().argmax(-1) for hit in (colors, shapes))
    return Names(sample, column + 1, 6 * color + shape)


def decoder_inputs(model: Any, inputs: dict[str, Tensor]) -> dict[str, Any]:
    """The keyword arguments that the language model would be called with."""
    read: dict[str, Any] = {}

    def take(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read.update(kwargs)
        raise _SeenError

    hook = model.get_decoder().register_forward_pre_hook(take, with_kwargs=True)
    try:
        model.model(**inputs, use_cache=False)
    except _SeenError:
        return read
    finally:
        hook.remove()
    raise RuntimeError("the language model was never called")


@contextmanager
def aligned_heads(decoder: Any) -> Iterator[dict[int, tuple[Tensor, Tensor]]]:
    """Queries (B, heads, S, d) and keys (B, key heads, S, d) of the aligned layers that run."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    seen: dict[int, tuple[Tensor, Tensor]] = {}

    def attend(module: Any, query: Tensor, key: Tensor, *rest: Any, **more: Any) -> Any:
        if module.layer_idx in ALIGNED:
            seen[module.layer_idx] = query, key
        return sdpa_attention_forward(module, query, key, *rest, **more)

    AttentionInterface.register(ATTENTION, attend)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    before = decoder.config._attn_implementation
    decoder.config._attn_implementation = ATTENTION
    try:
        yield seen
    finally:
        decoder.config._attn_implementation = before


def who_sees_whom(is_image: Tensor, there: Tensor, length: int) -> Tensor:
    """(B, 1, S + T, S + T) bool attention mask, with the blind caption at the end.

    Args:
        is_image: (B, S) true at image tokens.
        there: (B, S) false at padding.
        length: T, tokens of the captions with padding.
    """
    size = is_image.shape[1]
    before = (is_image.cumsum(1) == 0) & there
    seeing = torch.ones(size, size, dtype=torch.bool).tril() & there[:, None]
    blind = torch.ones(length, length, dtype=torch.bool).tril() & there[:, None, -length:]
    upper = F.pad(seeing, (0, length))
    lower = torch.cat([before[:, None].expand(-1, length, -1), blind], 2)
    # padding must attend to something, too
    everyone = torch.eye(size + length, dtype=torch.bool)
    return (torch.cat([upper, lower], 1) | everyone)[:, None]


def losses(
    model: Any, tokenizer: Any, fits: Fits, batch: Batch
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The losses named in `WEIGHTS`, and figures for the log."""
    decoder = model.get_decoder()
    given = decoder_inputs(model, batch.inputs)
    features, ids, start = given["inputs_embeds"], batch.inputs["input_ids"], batch.start
    is_image, size = ids == model.config.image_token_id, ids.shape[1]
    there, truth = batch.inputs["attention_mask"].bool(), truths(batch.scenes)
    places = given.get("position_ids")
    if places is None:
        places = torch.arange(size)[None]
    # what is added to image tokens in upper layers; none follow the end
    more = {name: given[name] for name in ("deepstack_visual_embeds",) if name in given}
    if more:
        more["visual_pos_masks"] = F.pad(given["visual_pos_masks"], (0, size - start))
    with aligned_heads(decoder) as heads:
        states = decoder(
            **more,
            inputs_embeds=torch.cat([features, features[:, start:]], 1),
            position_ids=torch.cat([places, places[..., start:]], -1),
            attention_mask=who_sees_whom(is_image, there, size - start),
            use_cache=False,
        ).last_hidden_state
    logits, labels = model.lm_head(states[:, start - 1 : size]), batch.labels[:, start - 1 :]
    found = {
        "caption": F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()),
        "match": shared_error(fits.cells(features[:, :start], is_image[:, :start]), truth),
    }
    figures = dict(word_accuracy(tokenizer, logits, labels))

    names = find_names(tokenizer, ids[:, start:])
    fitting = truth[:, 12:].T[names.pair]  # (N, B)
    own = fitting[torch.arange(len(fitting)), names.sample].bool()
    parts = truth[:, :6].T[names.pair // 6].bool() & truth[:, 6:12].T[names.pair % 6].bool()
    aligned, agree = [], []
    for number, layer in enumerate(ALIGNED):
        query, key = (each[:, 0] for each in heads[layer])
        cells, scale = key[:, :start], query.shape[-1] ** -0.5
        blind = query[names.sample, size + names.column]
        score = torch.einsum("pd,bsd->pbs", blind, cells) * scale
        score = score.masked_fill(~is_image[:, :start], -torch.inf)
        fit = score.logsumexp(2) + fits.head_biases[number]
        aligned.append(shared_error(fit, fitting))
        # only names that fit their own image have something to attend to
        sample = names.sample[own]
        seeing = query[sample, start + names.column[own]]
        looks = torch.einsum("pd,psd->ps", seeing, cells[sample]) * scale
        looks = looks.masked_fill(~is_image[sample, :start], -1e4).log_softmax(-1)
        goal = score[own, sample].detach().softmax(-1)
        agree.append(F.kl_div(looks, goal, reduction="batchmean"))
        surer = fit[fitting.bool()][:, None] > fit[parts & ~fitting.bool()][None]
        figures[f"bound_over_unbound_{layer}"] = float(surer.float().mean())
    found["align"], found["agree"] = torch.stack(aligned).mean(), torch.stack(agree).mean()
    return found, figures


def shared_error(logits: Tensor, truth: Tensor) -> Tensor:
    """Binary cross-entropy (N, K) over all K of a row, mean over rows."""
    return F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(truth)


def align(family: str, output: Path, start: Path | None = None) -> Any:
    """Train to the end, from the last checkpoint if there is one; returns the model."""
    model, processor = random_twin(family, 0, **STAGES[family][-1].geometry)
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True)["model"])
    learn(family, model, processor, output, STEPS[family], gentle=family in BORROWED)
    return model


def learn(
    family: str,
    model: Any,
    processor: Any,
    output: Path,
    steps: int,
    gentle: bool,
    room: Kept = (),
    every: int = 25,
) -> None:
    """Train a model to the end, from the last checkpoint if there is one.

    Args:
        family: For its batches.
        model: Changed in place.
        processor: Its processor.
        output: Folder of the checkpoint and the log.
        steps: How many from the beginning.
        gentle: At the rates of a model that knows names already.
        room: What has to stay as it is (`recipes.placing`).
        every: So many steps from one line of the log to the next.
    """
    output.mkdir(parents=True, exist_ok=True)
    saved, started = output / "state.pt", time.time()
    stage = Stage(
        steps, BATCH.get(family, 16), "all", STAGES[family][-1].geometry, shared=0.6,
        absent=2, horizon=steps, **GENTLE if gentle else {},
    )  # fmt: skip
    torch.manual_seed(1)
    fits = Fits()
    table = torch.optim.AdamW(fits.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0)
    three = [*optimizers(model, stage, family in MUON_PATCHES), table]
    highest, first = (stage.muon, stage.adam, 3e-3), 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        fits.load_state_dict(state["fits"])
        for optimizer, values in zip(three, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    batches = Batches(processor, stage, SEED)
    model.train()
    for step in range(first, stage.steps):
        for optimizer, lr in zip(three, highest, strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
        parts, figures = losses(model, processor.tokenizer, fits, batches.batch(step))
        loss = torch.stack([WEIGHTS[name] * part for name, part in parts.items()]).sum()
        for optimizer in three:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in three:
            optimizer.step()
        keep(room)
        done = step + 1
        if done % every == 0 or done == stage.steps:
            row = {name: part.item() for name, part in parts.items()} | figures
            row = {"step": done} | {name: round(value, 3) for name, value in row.items()}
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | {"seconds": round(time.time() - started)}) + "\n")
        if done % (2 * every) == 0 or done == stage.steps:
            values = [optimizer.state_dict() for optimizer in three]
            whole = {"step": done, "model": model.state_dict(), "optimizers": values}
            torch.save(whole | {"fits": fits.state_dict()}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Align what the names of a tiny model attend to.")
    parser.add_argument("family", choices=sorted(STEPS))
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--start", type=Path, help="a checkpoint of recipes.pretrain")
    parser.add_argument("--export", type=Path, help="write the finished model, fp16, here")
    arguments = parser.parse_args()
    trained = align(arguments.family, arguments.output, arguments.start)
    if arguments.export:
        export(trained, arguments.family, arguments.export)
