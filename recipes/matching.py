"""Teach a twin's vision tower to match phrases with pictures, before any caption.

    python -m recipes.matching qwen --output build/matched --export build/qwen-matched
    python -m recipes.pretrain qwen --output build/qwen --start build/matched/state.pt

As CLIP and SigLIP towers meet text before a language model does. A phrase fits a picture as well as
it fits the best of its cells (after FILIP, Yao et al., 2021), and which phrases hold is read off
what a caption says; no mask is seen. So each cell has to know the colour *and* the shape of the
thing that it lies on: "red ring" must not fit a picture of a red star and a blue ring. A tower that
learns from captions alone leaves that to the language model, which sums up what it read in all
cells, and whose attention then need not tell the things apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from flmm_core.data.shapes import COLOURS, SHAPES, Scene, paint
from recipes.pretrain import (
    MUON_PATCHES,
    STAGES,
    Batches,
    Stage,
    draw_scene,
    optimizers,
    rate,
)
from recipes.twins import HIDDEN, PARTS, random_twin

SEED = 600
STEPS = {"qwen": 700, "deepseek_vl": 1200, "llava_next": 1200}
BATCH = {"qwen": 16, "deepseek_vl": 32, "llava_next": 16}


class _SeenError(Exception):
    """The language model is about to start: the picture's features are known."""


class Matcher(nn.Module):
    """How well each name fits a picture: colours, shapes, then pairs (colour-major), 48 in all.

    A pair's direction is the sum of its parts', so that a cell holds both side by side.
    """

    def __init__(self) -> None:
        super().__init__()
        self.colours = nn.Parameter(0.1 * torch.randn(len(COLOURS), HIDDEN))
        self.shapes = nn.Parameter(0.1 * torch.randn(len(SHAPES), HIDDEN))
        self.biases = nn.Parameter(torch.tensor([-3.0, -3.0, -4.0]))

    def forward(self, features: Tensor, is_image: Tensor) -> Tensor:
        """(B, S, D) what the language model reads, (B, S) where the image is -> (B, 48) logits."""
        features = F.rms_norm(features, features.shape[-1:])
        colours, shapes = features @ self.colours.T, features @ self.shapes.T
        pairs = (colours[..., :, None] + shapes[..., None, :]).flatten(-2)
        kinds = zip((colours, shapes, pairs), self.biases, strict=True)
        fits = torch.cat([kind + bias for kind, bias in kinds], -1)  # (B, S, 48)
        return fits.masked_fill(~is_image[..., None], -torch.inf).logsumexp(1)


def truths(scenes: list[Scene]) -> Tensor:
    """(B, 48) one where a colour, a shape, a pair is in the scene."""
    colours, found = list(COLOURS), torch.zeros(len(scenes), 48)
    for row, scene in zip(found, scenes, strict=True):
        for thing in scene.shapes:
            colour, name = colours.index(thing.colour), SHAPES.index(thing.name)
            row[[colour, 6 + name, 12 + 6 * colour + name]] = 1
    return found


def picture_features(model: Any, inputs: dict[str, Tensor]) -> Tensor:
    """(B, S, D) what the language model would read, image features in their places."""
    read = {}

    def take(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        read["features"] = kwargs["inputs_embeds"]
        raise _SeenError

    hook = model.get_decoder().register_forward_pre_hook(take, with_kwargs=True)
    try:
        model.model(**inputs, use_cache=False)
    except _SeenError:
        return read["features"]
    finally:
        hook.remove()
    raise RuntimeError("the language model was never called")


def figures(logits: Tensor, truth: Tensor) -> dict[str, float]:
    """How often a colour's best pair is the one that is there, and true pairs against unbound ones.

    Unbound: colour and shape are both in the picture, on different things.
    """
    pairs, there = logits[:, 12:].unflatten(1, (6, 6)), truth[:, 12:].unflatten(1, (6, 6)).bool()
    single = there.sum(2) == 1
    right = (pairs.argmax(2) == there.float().argmax(2))[single]
    parts = truth[:, :6].bool()[:, :, None] & truth[:, 6:12].bool()[:, None, :]
    surer = pairs[there][:, None] > pairs[parts & ~there][None]
    shares = {"shape_given_colour": right, "bound_over_unbound": surer}
    return {
        name: round(float(hits.float().mean()), 3) for name, hits in shares.items() if hits.numel()
    }


def learn_to_match(family: str, output: Path, start: Path | None = None, every: int = 50) -> Any:
    """Train to the end, from the last checkpoint if there is one; gives the model."""
    output.mkdir(parents=True, exist_ok=True)
    saved, started = output / "state.pt", time.time()
    stage = Stage(
        STEPS[family],
        BATCH[family],
        "all",
        STAGES[family][-1].geometry,
        0.75,
        horizon=STEPS[family],
    )
    model, processor = random_twin(family, 0, **stage.geometry)
    if start is not None:
        model.load_state_dict(torch.load(start, weights_only=True)["model"])
    torch.manual_seed(1)
    matcher = Matcher()
    table = torch.optim.AdamW(matcher.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0)
    three = [*optimizers(model, stage, family in MUON_PATCHES), table]
    highest, first = (stage.muon, stage.adam, 3e-3), 0
    if saved.exists():
        state = torch.load(saved, weights_only=True)
        model.load_state_dict(state["model"])
        matcher.load_state_dict(state["matcher"])
        for optimizer, values in zip(three, state["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        first = state["step"]
    prompt = Batches(processor, stage, SEED).prompt
    for step in range(first, stage.steps):
        for optimizer, lr in zip(three, highest, strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
        seeds = [(SEED, step, index) for index in range(stage.batch)]
        scenes = [draw_scene(stage.scenes, seed, stage.shared) for seed in seeds]
        pictures = [Image.fromarray(paint(scene)[0]) for scene in scenes]
        texts = [prompt] * len(pictures)
        inputs = processor(text=texts, images=pictures, return_tensors="pt", padding=True)
        is_image = inputs["input_ids"] == model.config.image_token_id
        logits, truth = matcher(picture_features(model, dict(inputs)), is_image), truths(scenes)
        loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / len(scenes)
        for optimizer in three:
            optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in three:
            optimizer.step()
        done = step + 1
        if done % every == 0 or done == stage.steps:
            row = {"step": done, "loss": round(loss.item(), 3)} | figures(logits.detach(), truth)
            with (output / "log.jsonl").open("a") as log:
                log.write(json.dumps(row | {"seconds": round(time.time() - started)}) + "\n")
        if done % (4 * every) == 0 or done == stage.steps:
            values = [optimizer.state_dict() for optimizer in three]
            whole = {"step": done, "model": model.state_dict(), "optimizers": values}
            torch.save(whole | {"matcher": matcher.state_dict()}, saved.with_suffix(".new"))
            saved.with_suffix(".new").replace(saved)
    return model.eval()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Teach a vision tower to match phrases.")
    parser.add_argument("family", choices=sorted(PARTS))
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--start", type=Path, help="the checkpoint to start from")
    parser.add_argument("--export", type=Path, help="write the twin, for recipes.cells")
    arguments = parser.parse_args()
    trained = learn_to_match(arguments.family, arguments.output, arguments.start)
    if arguments.export:
        trained.save_pretrained(arguments.export)
        _, unused = PARTS[arguments.family](**STAGES[arguments.family][-1].geometry)
        unused.save_pretrained(arguments.export)
