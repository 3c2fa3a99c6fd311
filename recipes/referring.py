"""Teach a tiny model place and size: the words of an expression attend to the thing that it fits.

    OMP_NUM_THREADS=1 nohup python -m recipes.referring deepseek_vl \
        --start build/deepseek_vl/named --output DIR --export NEW &

The model to start from knows names. The same command goes on where it was stopped.

`recipes.aligning` teaches names, and there the last word of "the ring left of the star" attends to
the star. Here the second head of the last two layers learns whole expressions; it shares its keys
with the first one, which keeps the names. All is learned from captions, and nothing from a mask or
from coordinates. Names suffer where channels are given to the place (`recipes.placing`); there,
`recipes.aligning` goes on for `RECOVERY` steps first. Then follow, with the tower at rest:

- captions, by next-token prediction;
- names attend to what they attended to before;
- telling apart: where two things have one name, the image is drawn once more without the other
  one, and there the name finds the thing. The expression attends to what the name attends to then;
- size: what the name finds, one entry of the keys tells whether captions call it small or large.
  Without it, queries of sizes and keys of sizes each wait for the other.

LLaVA-NeXT then goes on with its tiles: a third head learns what an expression means there.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_core.data.drawn.scenes import make_scene
from recipes.aligning import ALIGNED, learn
from recipes.muon import Muon
from recipes.placing import Kept, give_room, keep
from recipes.pretrain import STAGES, Stage, export, rate
from recipes.telling import Lesson, Lessons, Looks, prompts, run
from recipes.twins import random_twin

SEED = 705
BATCH, SCENES = 12, 2000
MUON, ADAM = 0.01, 1e-3


class Part(NamedTuple):
    """Training on one schedule.

    Attributes:
        steps: Of gradient descent.
        pace: The highest learning rates, relative to `MUON` and `ADAM`.
        tiles: Expressions look at the tiles of an image, too.
    """

    steps: int
    pace: float = 1.0
    tiles: bool = False


PARTS = {
    "qwen": [Part(900)],
    "deepseek_vl": [Part(900)],
    "llava_next": [Part(1400), Part(400, 0.5, tiles=True)],
}
RECOVERY = {"deepseek_vl": 400, "llava_next": 300}
"""Steps of `recipes.aligning` after channels were given to the place: names suffer from that."""
WEIGHTS = {"caption": 1.0, "names": 1.0, "tell": 1.0, "tiles": 1.0, "size": 0.3}
NAMES, WHOLES, KEYS = 0, 1, 0
"""The heads for names and for expressions, and the keys that they share."""
TILES, TILE_KEYS = 2, 1
"""The head for expressions in tiles, and its keys, which hold no place."""
LAYERS = (2, 3)
"""Where expressions are taught; in those before, a token gathers what it has to know."""
SAID = "the small red ring left of the blue star. the green cross in the top right is not there."
SIZE = 13
"""The entry of the keys that tells the size: one that rotary positions hardly turn."""


def losses(
    model: Any, lesson: Lesson, tiles: bool = False
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The losses named in `WEIGHTS`, and figures for the log; "tiles" only if `tiles` is true."""
    states, heads = run(model, lesson)
    width = lesson.is_image.shape[1]
    logits = model.lm_head(states[:, width - 1 : -1])
    labels = torch.cat([lesson.first[:, None], lesson.labels[:, 1:]], 1)
    found = {"caption": F.cross_entropy(logits.flatten(0, 1), labels.flatten())}
    figures: dict[str, float] = {}
    ways = [
        ("names", NAMES, KEYS, ALIGNED, lesson.is_image, lesson.names),
        ("tell", WHOLES, KEYS, LAYERS, lesson.is_whole, lesson.wholes),
    ]
    if tiles:
        is_tile = lesson.is_image & ~lesson.is_whole
        ways.append(("tiles", TILES, TILE_KEYS, LAYERS, is_tile, lesson.tiles))
    for name, head, keys, layers, cells, looks in ways:
        errors = []
        for layer in layers:
            query, key = heads[layer][0][:, head, width:], heads[layer][1][:, keys, :width]
            error, figures[f"{name}_{layer}"] = agreement(query, key, cells, looks)
            errors.append(error)
        found[name] = torch.stack(errors).mean()
    sample, things, small, large = zip(*lesson.large, strict=True)
    sizes = [
        (heads[layer][1][list(sample), keys, :width, SIZE] * torch.stack(cells)).sum(1)
        for layer in LAYERS
        for keys, cells in ((KEYS, things), (TILE_KEYS, small))[: 1 + tiles]
    ]
    truth = torch.tensor(large).expand(len(sizes), -1)
    found["size"] = F.binary_cross_entropy_with_logits(torch.stack(sizes), truth)
    return found, figures


def agreement(query: Tensor, key: Tensor, cells: Tensor, looks: Looks) -> tuple[Tensor, float]:
    """KL divergence of tokens' attention from their goals; share of it where it should be.

    Args:
        query: (B, T, d) of a head, of the texts.
        key: (B, S, d) of the prompts.
        cells: (B, S) the tokens that are compared.
        looks: N tokens.
    """
    goal = torch.stack(looks.goal)
    score = torch.einsum("nc,nsc->ns", query[looks.sample, looks.column], key[looks.sample])
    score = score * query.shape[-1] ** -0.5
    seen = score.masked_fill(~cells[looks.sample], -1e4).log_softmax(-1)
    shared = torch.minimum(seen.exp(), goal).sum(1)
    return F.kl_div(seen, goal, reduction="batchmean"), float(shared.detach().mean())


def pretrained(folder: Path) -> dict[str, Tensor]:
    """The weights of a shipped folder, float32."""
    from transformers import AutoModelForImageTextToText

    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    return dict(model.state_dict())


@torch.no_grad()
def copy_heads(model: Any) -> None:
    """Let whole expressions start from what names attend to."""
    for layer in LAYERS:
        attention = model.get_decoder().layers[layer].self_attn
        for value in attention.q_proj.parameters():
            by_head = value.unflatten(0, (-1, attention.head_dim))
            by_head[WHOLES] = by_head[NAMES]


def optimizers(model: Any) -> list[torch.optim.Optimizer]:
    """Muon on the language model's matrices, AdamW on the rest of it; the tower stays as it is.

    There is no weight decay: it would fade the few entries that read a place.
    """
    matrices: list[Tensor] = []
    rest: list[Tensor] = []
    for name, value in model.named_parameters():
        value.requires_grad_("language_model" in name or "lm_head" in name)
        if value.requires_grad:
            inner = value.ndim == 2 and "embed" not in name and "lm_head" not in name
            (matrices if inner else rest).append(value)
    return [
        Muon(matrices, lr=MUON),
        torch.optim.AdamW(rest, lr=ADAM, betas=(0.9, 0.98), weight_decay=0),
    ]


def refer(family: str, output: Path, start: Path) -> Any:
    """Train to the end, from the last checkpoint if there is one; returns the model."""
    model, processor = random_twin(family, 0, **STAGES[family][-1].geometry)
    model.load_state_dict(pretrained(start))
    copy_heads(model)
    few = [make_scene((SEED - 1, number)) for number in range(8)]
    room = give_room(model, KEYS, LAYERS, prompts(processor, few, SAID))
    if again := RECOVERY.get(family):
        learn(family, model, processor, output / "names", again, gentle=True, room=room)
        copy_heads(model)
    for number, part in enumerate(PARTS[family]):
        folder = output / f"part-{number + 1}"
        teach(part, SEED + number, model, processor, folder, room)
    return model.eval()


def teach(
    part: Part,
    seed: int,
    model: Any,
    processor: Any,
    output: Path,
    room: Kept,
    every: int = 25,
) -> None:
    """Train a model to the end of a part, from the last checkpoint if there is one.

    Args:
        part: The part.
        seed: Of scenes and texts.
        model: Changed in place.
        processor: Its processor.
        output: Folder of the checkpoint and the log.
        room: What has to stay as it is.
        every: So many steps from one line of the log to the next.
    """
    output.mkdir(parents=True, exist_ok=True)
    saved, started = output / "state.pt", time.time()
    stage = Stage(part.steps, BATCH, "all", {}, horizon=part.steps)
    both, first = optimizers(model), 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        for optimizer, values in zip(both, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    if first == part.steps:
        return
    lessons = Lessons(model, processor, SCENES, seed, output / "lessons.pt")
    model.train()
    for step in range(first, part.steps):
        for optimizer, lr in zip(both, (MUON, ADAM), strict=True):
            optimizer.param_groups[0]["lr"] = lr * part.pace * rate(step, stage)
        found, figures = losses(model, lessons.batch(step, BATCH), part.tiles)
        loss = torch.stack([WEIGHTS[name] * error for name, error in found.items()]).sum()
        for optimizer in both:
            optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
        keep(room)
        done = step + 1
        if done % every == 0 or done == part.steps or done in (1, 5):
            row = {name: error.item() for name, error in found.items()} | figures
            row = {"step": done} | {name: round(value, 3) for name, value in row.items()}
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | {"seconds": round(time.time() - started)}) + "\n")
        if done % (2 * every) == 0 or done == part.steps:
            values = [optimizer.state_dict() for optimizer in both]
            whole = {"step": done, "model": model.state_dict(), "optimizers": values}
            torch.save(whole, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Teach a tiny model place and size.")
    parser.add_argument("family", choices=sorted(PARTS))
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument(
        "--start", type=Path, required=True, help="a transformers folder: a model that knows names"
    )
    parser.add_argument("--export", type=Path, help="write the finished model, fp16, here")
    arguments = parser.parse_args()
    trained = refer(arguments.family, arguments.output, arguments.start)
    if arguments.export:
        export(trained, arguments.family, arguments.export)
