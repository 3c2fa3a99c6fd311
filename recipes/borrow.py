"""Start a tiny model from the weights of a trained one of another family, instead of pretraining.

    python -m recipes.borrow qwen3_vl --output build/qwen3_vl

`recipes.aligning` finishes it. Weights that agree in name and shape are copied; embeddings go by
token. What the lender does not have is fitted, on drawn scenes, to give what the lender gives. No
mask is used.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import transformers
from torch import Tensor

from recipes.pretrain import STAGES, Batches, Stage, optimizers, rate, resized
from recipes.twins import random_twin

ROOT = Path(__file__).parents[1]
SEED = 600
IMAGES, TOKENS = 180, 1024

Log = Callable[[dict[str, float]], None]


@torch.no_grad()
def scale_norms(model: Any, lender: Any, inputs: dict[str, Any]) -> None:
    """Norms of queries and keys begin with the root mean square that the lender's have."""
    norms: dict[Any, Any] = {}  # the lender's projection -> the norm that follows it here
    for own, other in zip(model.get_decoder().layers, lender.get_decoder().layers, strict=True):
        norms[other.self_attn.q_proj] = own.self_attn.q_norm
        norms[other.self_attn.k_proj] = own.self_attn.k_norm

    def scale(projection: Any, _: Any, given: Tensor) -> None:
        norms[projection].weight.fill_(given.square().mean().sqrt())

    hooks = [projection.register_forward_hook(scale) for projection in norms]
    lender(**inputs, use_cache=False)
    for hook in hooks:
        hook.remove()


def quiet_mean(states: Tensor) -> Tensor:
    """A symmetric rotation (D, D) after which the mean over the D entries of (N, D) says least.

    Qwen3-VL's vision encoder subtracts that mean where Qwen2.5-VL's only scales.
    """
    directions = F.rms_norm(states, states.shape[-1:])
    _, vectors = torch.linalg.eigh(directions.T @ directions)
    mean = torch.full_like(vectors[:, 0], len(vectors) ** -0.5)
    mirror = F.normalize(vectors[:, 0] - mean, dim=0)
    return torch.eye(len(mean)) - 2 * torch.outer(mirror, mirror)


@torch.no_grad()
def rotate_vision(encoder: Any, teacher: Any, turn: Tensor) -> None:
    """The teacher's weights, but for those between its blocks' second norm and their end."""
    encoder.patch_embed.proj.weight.copy_(
        (turn @ teacher.patch_embed.proj.weight.flatten(1)).view_as(encoder.patch_embed.proj.weight)
    )
    torch.nn.init.zeros_(encoder.patch_embed.proj.bias)
    torch.nn.init.zeros_(encoder.pos_embed.weight)
    for block, other in zip(encoder.blocks, teacher.blocks, strict=True):
        block.attn.qkv.weight.copy_(other.attn.qkv.weight * other.norm1.weight @ turn)
        block.attn.proj.weight.copy_(turn @ other.attn.proj.weight)
        block.attn.proj.bias.copy_(turn @ other.attn.proj.bias)
        torch.nn.init.ones_(block.norm1.weight)
        torch.nn.init.ones_(block.norm2.weight)
    first = teacher.merger.mlp[0].weight.unflatten(1, (-1, len(turn)))  # (384, 4, 96)
    encoder.merger.linear_fc1.weight.copy_((first * teacher.merger.ln_q.weight @ turn).flatten(1))
    torch.nn.init.ones_(encoder.merger.norm.weight)


def fit_qwen3_vl(model: Any, lender: Any, batches: Batches, log: Log) -> None:
    """The blocks' last parts learn to give the lender's; deeper features begin at 0."""
    encoder, teacher, stage = model.model.visual, lender.model.visual, batches.stage
    for merger in encoder.deepstack_merger_list:
        for value in merger.linear_fc2.parameters():
            torch.nn.init.zeros_(value)
    scale_norms(model, lender, batches.batch(0).inputs)
    states, added = states_of(teacher, batches)  # (blocks, N, 96)
    turn = quiet_mean(states.flatten(0, 1))
    rotate_vision(encoder, teacher, turn)
    states, added = states @ turn, added @ turn
    # What comes next sees a sum of both at unit size: errors count relative to that.
    size = (states + added).square().mean(2, keepdim=True)
    scale = added.square().mean((1, 2)).sqrt()
    states = F.layer_norm(states, turn.shape[:1], eps=1e-6)
    parts = torch.nn.ModuleList(block.mlp for block in encoder.blocks)
    both = optimizers(parts, stage, muon_patches=False)
    rng = torch.Generator().manual_seed(SEED)
    for step in range(stage.steps):
        for optimizer, lr in zip(both, (stage.muon, stage.adam), strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
        picked = torch.randint(states.shape[1], (TOKENS,), generator=rng)
        given = torch.stack([part(states[i, picked]) * scale[i] for i, part in enumerate(parts)])
        errors = ((given - added[:, picked]).square() / size[:, picked]).mean((1, 2))
        parts.zero_grad()
        errors.sum().backward()  # type: ignore[no-untyped-call]
        for optimizer in both:
            optimizer.step()
        log({"step": step + 1, "unexplained": errors.max().item()})
    with torch.no_grad():
        for part, factor in zip(parts, scale, strict=True):
            part.linear_fc2.weight.mul_(factor)
            part.linear_fc2.bias.mul_(factor)
        given = batches.batch(IMAGES).inputs
        images = given["pixel_values"], given["image_grid_thw"]
        goal = teacher(*images).pooler_output
        left = F.mse_loss(encoder(*images).pooler_output, goal) / goal.var()
    log({"step": stage.steps, "unexplained_tokens": left.item()})


@torch.no_grad()
def states_of(teacher: Any, batches: Batches) -> tuple[Tensor, Tensor]:
    """(blocks, N, D) states of patches before the blocks' last parts, and what these add."""
    states: list[list[Tensor]] = [[] for _ in teacher.blocks]
    added: list[list[Tensor]] = [[] for _ in teacher.blocks]
    hooks = []
    for block, before, after in zip(teacher.blocks, states, added, strict=True):
        hooks += [
            block.norm2.register_forward_hook(lambda _, given, __, to=before: to.append(given[0])),
            block.mlp.register_forward_hook(lambda _, __, out, to=after: to.append(out)),
        ]
    for step in range(IMAGES // batches.stage.batch):
        given = batches.batch(step).inputs
        teacher(given["pixel_values"], given["image_grid_thw"])
    for hook in hooks:
        hook.remove()
    return torch.stack([torch.cat(part) for part in states]), torch.stack(
        [torch.cat(part) for part in added]
    )


@torch.no_grad()
def fit_idefics3(model: Any, lender: Any, batches: Batches, log: Log) -> None:
    """A token's projection begins as the mean of its patches', as the lender projects them."""
    tokens, goals = [], []
    for step in range(batches.stage.steps):
        given = batches.batch(step).inputs
        tiles = given["pixel_values"].flatten(0, 1)
        patches = model.model.vision_model(tiles).last_hidden_state
        shuffle, factor = model.model.connector.pixel_shuffle, model.config.scale_factor
        tokens.append(shuffle(patches, factor).flatten(0, 1))  # (N, 4 x 96)
        projected = shuffle(lender.model.aligner(patches), factor).flatten(0, 1)
        goals.append(projected.unflatten(-1, (factor**2, -1)).mean(1))  # (N, 128)
    wanted = torch.cat(goals)
    weight = torch.linalg.lstsq(torch.cat(tokens), wanted).solution  # (4 x 96, 128)
    model.model.connector.modality_projection.proj.weight.copy_(weight.T)
    left = F.mse_loss(torch.cat(tokens) @ weight, wanted) / wanted.var()
    log({"step": batches.stage.steps, "unexplained": left.item()})


class Loan(NamedTuple):
    """Who lends, what a weight is called there, and how the rest is fitted."""

    lender: str
    names: dict[str, str]
    fit: Callable[[Any, Any, Batches, Log], None]
    steps: int


LOANS = {
    "qwen3_vl": Loan(
        "qwen",
        {
            "visual.merger.norm.": "visual.merger.ln_q.",
            "visual.merger.linear_fc1.": "visual.merger.mlp.0.",
            "visual.merger.linear_fc2.": "visual.merger.mlp.2.",
        },
        fit_qwen3_vl,
        1000,
    ),
    "idefics3": Loan("deepseek_vl", {"text_model.": "language_model."}, fit_idefics3, 8),
}


def copy_weights(model: Any, tokenizer: Any, lender: Any, its: Any, names: dict[str, str]) -> int:
    """Copy what agrees; position embeddings are interpolated. Returns the number of weights."""
    there, known, copied = lender.state_dict(), its.get_vocab(), 0
    with torch.no_grad():
        for name, value in model.state_dict().items():
            for own, other in names.items():
                name = name.replace(own, other)
            found = there.get(name)
            if found is None:
                continue
            if "embed_tokens" in name or "lm_head" in name:
                for token, row in tokenizer.get_vocab().items():
                    if token in known:
                        value[row] = found[known[token]]
            elif "position_embedding" in name and found.shape != value.shape:
                value.copy_(resized(found, len(value)))
            elif found.shape == value.shape:
                value.copy_(found)
            else:
                continue
            copied += value.numel()
    return copied


def borrow(family: str, output: Path) -> Any:
    """Write `state.pt`, from which `recipes.aligning` starts; returns the model."""
    loan, started = LOANS[family], time.time()
    geometry = STAGES[family][-1].geometry
    stage = Stage(loan.steps, 6, "all", geometry, shared=0.6, horizon=loan.steps)
    model, processor = random_twin(family, 0, **stage.geometry)
    folder = ROOT / "plugins" / loan.lender / f"flmm_{loan.lender}" / "tiny"
    lender = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    its = transformers.AutoProcessor.from_pretrained(folder).tokenizer
    copied = copy_weights(model, processor.tokenizer, lender, its, loan.names)
    output.mkdir(parents=True, exist_ok=True)

    def log(row: dict[str, float]) -> None:
        if row["step"] % 50 == 0 or row["step"] == stage.steps:
            row |= {"copied": copied, "seconds": round(time.time() - started)}
            with (output / "log.jsonl").open("a") as lines:
                lines.write(json.dumps(row) + "\n")

    loan.fit(model, lender, Batches(processor, stage, SEED), log)
    torch.save({"model": model.state_dict()}, output / "state.pt")
    return model


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Start a tiny model from another family's.")
    parser.add_argument("family", choices=sorted(LOANS))
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    borrow(arguments.family, arguments.output)
