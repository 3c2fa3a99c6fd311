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


def fit_qwen3_vl(model: Any, lender: Any, batches: Batches, log: Log) -> None:
    """The vision encoder learns to give the lender's tokens; deeper features begin at 0."""
    encoder, teacher, stage = model.model.visual, lender.model.visual, batches.stage
    for merger in encoder.deepstack_merger_list:
        for value in merger.linear_fc2.parameters():
            torch.nn.init.zeros_(value)
    scale_norms(model, lender, batches.batch(0).inputs)
    both = optimizers(encoder, stage, muon_patches=False)
    for step in range(stage.steps):
        for optimizer, lr in zip(both, (stage.muon, stage.adam), strict=True):
            optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
        given = batches.batch(step).inputs
        images = given["pixel_values"], given["image_grid_thw"]
        with torch.no_grad():
            goal = teacher(*images).pooler_output
        loss = F.mse_loss(encoder(*images).pooler_output, goal) / goal.var()
        encoder.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(encoder.parameters(), 1.0)
        for optimizer in both:
            optimizer.step()
        log({"step": step + 1, "unexplained": loss.item()})


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
        350,
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
