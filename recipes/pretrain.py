"""Teach a tiny model to caption drawn scenes, by next-token prediction and without any mask.

    OMP_NUM_THREADS=1 nohup python -m recipes.pretrain qwen --output DIR &

`recipes.aligning` starts from its checkpoint and finishes the model. The same command resumes a
stopped run from its last checkpoint. Muon trains the matrices and AdamW the rest; with AdamW alone,
all three families stay for a long time on a plateau where they know the color and guess the shape.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.data.drawn.narrations import place_words
from flmm_core.data.drawn.scenes import (
    COLORS,
    HARD_KINDS,
    SHAPES,
    Scene,
    expressions,
    make_scene,
    paint,
)
from recipes.muon import Muon
from recipes.twins import MAKERS, publish_names, random_twin
from recipes.words import PROMPT


@dataclass(frozen=True)
class Stage:
    """A phase of training with one image geometry and one mixture of scenes.

    `shared` is the probability that an object takes its color or shape from another one. Where the
    color alone rarely identifies an object, the shape's word has to attend to it. `absent` is how
    many objects are named that the caption then declares absent. The learning rates decay to 0 over
    `horizon` steps, even if the stage ends earlier; 0 keeps them constant.
    """

    steps: int
    batch: int
    scenes: str
    geometry: dict[str, Any] = field(default_factory=dict)
    shared: float = 0.4
    absent: int = 0
    horizon: int = 0
    muon: float = 0.01
    adam: float = 1e-3


QWEN, DEEPSEEK_VL = {"pixels": 176}, {"pixels": 112}
STAGES = {
    "qwen": (
        Stage(1000, 32, "several", {"pixels": 112}),
        Stage(1000, 20, "all", QWEN, shared=0.75, absent=2, horizon=1000),
    ),
    "deepseek_vl": (
        Stage(800, 64, "one", {"pixels": 56}),
        Stage(600, 32, "several", DEEPSEEK_VL),
        Stage(1000, 24, "all", DEEPSEEK_VL, shared=0.75, absent=2, horizon=1000),
    ),
    "qwen3_vl": (Stage(1000, 20, "all", QWEN, shared=0.75, absent=2, horizon=1000),),
    "idefics3": (Stage(1000, 20, "all", shared=0.75, absent=2, horizon=1000),),
    "llava_next": (
        Stage(700, 32, "one", {"grids": ((1, 1),)}),
        Stage(800, 20, "several"),
        Stage(1000, 20, "all", shared=0.75, absent=2, horizon=1000),
    ),
}
# Families whose vision towers learn shapes late; the other needs no help.
MUON_PATCHES = ("deepseek_vl", "llava_next")
KINDS = ("plain", *HARD_KINDS)
SHARES = (0.55, 0.1, 0.09, 0.09, 0.09, 0.08)


class Words(NamedTuple):
    """A piece of a caption; what cannot be predicted is read, but not `learned`."""

    text: str
    learned: bool = True


def draw_scene(mixture: str, seed: tuple[int, ...], shared: float = 0.4) -> Scene:
    """One scene of a mixture: "one" large object, "several" plain ones, or "all" kinds."""
    if mixture == "one":
        return make_scene(seed, count=(1, 1), radius=(0.18, 0.32))
    if mixture == "several":
        return make_scene(seed, count=(1, 3), radius=(0.12, 0.24), shared=shared)
    kind = KINDS[int(np.random.default_rng((1, *seed)).choice(len(KINDS), p=SHARES))]
    return make_scene(seed, kind, count=(2, 4), shared=shared)


def caption(scene: Scene, rng: np.random.Generator, stage: Stage) -> tuple[list[Words], bool]:
    """A caption in pieces, and whether it is a complete answer: a narration or expressions.

    What follows a name depends on the object: where it is, or that it is absent.
    """
    order = [scene.shapes[int(index)] for index in rng.permutation(len(scene.shapes))]
    statements: list[list[Words]] = []
    if rng.random() < 0.5:
        named = [(expressions(scene, shape, rng), place_words(scene, shape)) for shape in order]
        statements = [[Words(f"{words[0]} {place}.")] for words, place in named if words]
    if statements:
        absent = absent_names(scene, rng)[: stage.absent]
        statements += [[Words(n, learned=False), Words(" is not there.")] for n in absent]
        return [w for i in rng.permutation(len(statements)) for w in statements[i]], False
    pieces = []
    for position, shape in enumerate(order):
        words = f"{shape.size} {shape.words}" if rng.random() < 0.25 else shape.words
        article = "an" if words[0] in "aeiou" else "a"
        joint = "" if not position else " and " if position == len(order) - 1 else ", "
        pieces.append(Words(f"{joint}{article} {words} {place_words(scene, shape)}"))
    return [*pieces, Words(".")], True


def absent_names(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Names of absent objects in random order, first those whose color and shape both occur."""
    there = {shape.kind for shape in scene.shapes}
    every = [(color, name) for color in COLORS for name in SHAPES]
    colors, names = ({kind[part] for kind in there} for part in (0, 1))
    shuffled = [every[i] for i in rng.permutation(len(every)) if every[i] not in there]
    shuffled.sort(key=lambda kind: -(kind[0] in colors) - (kind[1] in names))
    return [("the " if rng.random() < 0.5 else "") + " ".join(kind) for kind in shuffled]


class Batch(NamedTuple):
    """Prompts padded on the left, captions on the right; captions start at the same column."""

    inputs: dict[str, Tensor]
    labels: Tensor  # (B, S), -100 where there is no loss
    start: int  # the column of the captions
    scenes: list[Scene]


class Batches:
    """Batches without end; the batch of a step depends on the seed and the step alone."""

    def __init__(self, processor: Any, stage: Stage, seed: int) -> None:
        self.processor, self.stage, self.seed = processor, stage, seed
        message = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": PROMPT}]}
        ]
        self.prompt = processor.apply_chat_template(message, add_generation_prompt=True)

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        tokenizer = self.processor.tokenizer
        scenes, answers, learned = [], [], []
        for index in range(self.stage.batch):
            seed = (self.seed, step, index)
            scene = draw_scene(self.stage.scenes, seed, self.stage.shared)
            scenes.append(scene)
            rng = np.random.default_rng((2, *seed))
            pieces, whole = caption(scene, rng, self.stage)
            parts = [tokenizer(p.text, add_special_tokens=False)["input_ids"] for p in pieces]
            answers.append([i for ids in parts for i in ids] + [tokenizer.eos_token_id] * whole)
            said = [p.learned for p, ids in zip(pieces, parts, strict=True) for _ in ids]
            learned.append(said + [True] * whole)
        pictures = [Image.fromarray(paint(scene)[0]) for scene in scenes]
        inputs = dict(
            self.processor(
                text=[self.prompt] * len(pictures),
                images=pictures,
                return_tensors="pt",
                padding=True,
            )
        )
        longest = max(map(len, answers))
        tail = torch.full((len(answers), longest), tokenizer.pad_token_id)
        known = torch.zeros_like(tail).bool()
        for row, ids in enumerate(answers):
            tail[row, : len(ids)] = torch.tensor(ids)
            known[row, : len(ids)] = torch.tensor(learned[row])
        lengths = torch.tensor([len(ids) for ids in answers])
        used = torch.arange(longest) < lengths[:, None]
        labels = torch.where(known, tail, -100)
        labels = torch.cat([torch.full_like(inputs["input_ids"], -100), labels], 1)
        inputs["input_ids"] = torch.cat([inputs["input_ids"], tail], 1)
        inputs["attention_mask"] = torch.cat([inputs["attention_mask"], used.long()], 1)
        if "mm_token_type_ids" in inputs:
            zeros = torch.zeros_like(tail)
            inputs["mm_token_type_ids"] = torch.cat([inputs["mm_token_type_ids"], zeros], 1)
        return Batch(inputs, labels, labels.shape[1] - longest, scenes)


def resized(positions: Tensor, count: int) -> Tensor:
    """Position embeddings (N, D) of a square grid, interpolated for one of `count` cells."""
    side, target = math.isqrt(len(positions)), math.isqrt(count)
    grid = positions.T.reshape(1, -1, side, side)
    grid = torch.nn.functional.interpolate(grid, size=(target, target), mode="bicubic")
    return grid.reshape(-1, target * target).T.contiguous()


def carry_over(old: torch.nn.Module, new: torch.nn.Module) -> None:
    """Copy all weights; position embeddings of another grid are interpolated."""
    state = old.state_dict()
    for name, value in new.state_dict().items():
        source = state[name]
        if source.shape != value.shape and source.is_floating_point():
            state[name] = resized(source, len(value))
        elif source.shape != value.shape:
            state[name] = value
    new.load_state_dict(state)


class PatchMuon(Muon):
    """Muon that also takes convolutions over patches, as matrices of (channels, pixels).

    Color dominates the gradient of a patch embedding, and under AdamW edges, and with them shapes,
    are learned last; Muon's steps are equally large in every direction.
    """

    def __init__(self, weights: list[torch.nn.Parameter], **options: Any) -> None:
        self.weights = weights
        for value in weights:
            value.data = value.data.contiguous()  # so that the matrices share their memory
        self.matrices = [torch.nn.Parameter(value.data.flatten(1)) for value in weights]
        super().__init__(self.matrices, **options)

    def step(self, closure: Any = None) -> Any:
        for matrix, value in zip(self.matrices, self.weights, strict=True):
            # The last block of a vision tower may be unused and have no gradient.
            matrix.grad = None if value.grad is None else value.grad.flatten(1)
        return super().step(closure)


def optimizers(
    model: torch.nn.Module, stage: Stage, muon_patches: bool
) -> list[torch.optim.Optimizer]:
    """Muon on every matrix but embeddings and the output head, AdamW on the rest."""
    matrices, rest = [], []
    for name, value in model.named_parameters():
        patches = muon_patches and "patch_embed" in name and value.ndim >= 4
        matrix = value.ndim == 2 and "embed" not in name and "lm_head" not in name
        (matrices if matrix or patches else rest).append(value)
    return [
        PatchMuon(matrices, lr=stage.muon, weight_decay=0.01),
        torch.optim.AdamW(rest, lr=stage.adam, betas=(0.9, 0.98), weight_decay=0.01),
    ]


def rate(step: int, stage: Stage, warmup: int = 60) -> float:
    """Linear warm-up, then constant, or cosine to 0 over the stage's horizon."""
    if step < warmup:
        return (step + 1) / warmup
    if not stage.horizon:
        return 1.0
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (stage.horizon - warmup)))


def word_accuracy(tokenizer: Any, logits: Tensor, labels: Tensor) -> Iterator[tuple[str, float]]:
    """Accuracy of the predicted color words and shape words."""
    guess, truth = logits[:, :-1].argmax(-1), labels[:, 1:]
    for name, words in (("color", tuple(COLORS)), ("shape", SHAPES)):
        ids = tokenizer.convert_tokens_to_ids([f"Ġ{word}" for word in words])
        here = torch.isin(truth, torch.tensor(ids))
        yield name, float((guess == truth)[here].float().mean())


def pretrain(family: str, output: Path, seed: int = 0, every: int = 50) -> Any:
    """Run all remaining stages; returns the model."""
    output.mkdir(parents=True, exist_ok=True)
    saved, started = output / "state.pt", time.time()
    state = torch.load(saved, weights_only=True) if saved.exists() else None
    model = None
    for number, stage in enumerate(STAGES[family]):
        previous = model
        model, processor = random_twin(family, seed, **stage.geometry)
        if previous is not None:
            carry_over(previous, model)
        if state is not None and state["stage"] > number:
            continue
        both = optimizers(model, stage, family in MUON_PATCHES)
        first = 0
        if state is not None:
            model.load_state_dict(state["model"])
            for optimizer, values in zip(both, state["optimizers"], strict=True):
                optimizer.load_state_dict(values)
            first, state = state["step"], None
        base = [stage.muon, stage.adam]
        batches = Batches(processor, stage, seed * 100 + number + 1000)
        model.train()
        for step in range(first, stage.steps):
            for optimizer, lr in zip(both, base, strict=True):
                optimizer.param_groups[0]["lr"] = lr * rate(step, stage)
            batch = batches.batch(step)
            labels = batch.labels[:, batch.start - 1 :]
            logits = model(**batch.inputs, use_cache=False, logits_to_keep=labels.shape[1]).logits
            loss = torch.nn.functional.cross_entropy(
                logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
            )
            model.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            for optimizer in both:
                optimizer.step()
            if (step + 1) % every == 0 or step + 1 == stage.steps:
                row = {"stage": number, "step": step + 1, "loss": round(loss.item(), 4)}
                row |= {
                    k: round(v, 3) for k, v in word_accuracy(processor.tokenizer, logits, labels)
                }
                row["seconds"] = round(time.time() - started)
                with (output / "log.jsonl").open("a") as log:
                    log.write(json.dumps(row) + "\n")
            if (step + 1) % (4 * every) == 0 or step + 1 == stage.steps:
                values = [optimizer.state_dict() for optimizer in both]
                torch.save(
                    {
                        "stage": number,
                        "step": step + 1,
                        "model": model.state_dict(),
                        "optimizers": values,
                    },
                    saved.with_suffix(".new"),
                )
                saved.with_suffix(".new").replace(saved)
    assert model is not None
    return model.eval()


def export(model: Any, family: str, folder: Path) -> None:
    """Write a model, fp16, as a transformers folder."""
    model.half().save_pretrained(folder)
    publish_names(folder)
    # An unused processor: a tokenizer remembers how it last padded.
    _, unused = MAKERS[family](**STAGES[family][-1].geometry)
    unused.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Pretrain a tiny model on captions.")
    parser.add_argument("family", choices=sorted(STAGES))
    parser.add_argument("--output", type=Path, required=True, help="checkpoint and log")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    pretrain(arguments.family, arguments.output, arguments.seed)
