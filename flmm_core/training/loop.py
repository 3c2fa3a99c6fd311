"""One training loop: a head behind a frozen VLM, resumable, measured at the end.

runs/NAME/config.yaml        the resolved settings
          environment.json   versions, machine, command
          metrics.jsonl      a line every `log_every` steps
          checkpoints/step-N head + optimizer; `best` and `last` point to two of them;
                             with validation data also how likely a mask is right
          pictures/          the flow on unseen images, side by side
          summary.json       the scores at the end
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_core.config import RunConfig
from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source, open_sources
from flmm_core.errors import RunError, UsageError
from flmm_core.evaluation.confidence import (
    Confidence,
    Judgements,
    read_confidence,
    write_confidence,
)
from flmm_core.evaluation.evaluate import Evaluation, evaluate
from flmm_core.feature_cache.flow import CachedGrounder, check_made_with, open_cached
from flmm_core.feature_cache.key import frozen_facts
from flmm_core.loader.dataset import (
    ExampleDataset,
    Examples,
    StepSampler,
    load_batches,
)
from flmm_core.loader.samplers import BucketSampler, sample_extents
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.head_folder import Grounder, Recipe
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec
from flmm_core.stop_request import StopRequest
from flmm_core.training.contact_sheet import draw_sheet
from flmm_core.training.losses import GroundingLoss, grounding_loss
from flmm_core.training.run_folder import RunFolder, write_json


def train(config: RunConfig, spec: BackboneSpec, progress: Progress | None = None) -> Path:
    """Train a head and measure it; gives the run folder.

    Raises:
        UsageError: The output folder holds another run, or there is nothing to resume.
        RunError: The loss is no longer a number.
        KeyboardInterrupt: It was asked to stop; the last step is saved.
    """
    started = time.monotonic()
    progress = progress or Progress()
    folder = RunFolder(config.output, config.save_every)
    folder.check(resume=config.resume)
    _seed(config.seed)
    if config.cache is None:
        progress.say(f"Loading {config.backbone}, model {config.model}")
        grounder = build_from_config(config, spec)
    else:
        progress.say(f"Opening the cache {config.cache}")
        grounder = open_from_config(config, spec)
    progress.say(f"Reading {', '.join(config.data)} (drawn scenes are drawn at the first use)")
    samples = open_sources(config.data, config.train_protocol)
    held_out = {text: open_source(text, config.protocol) for text in config.eval_data}
    watched = open_sources(config.val_data, config.protocol) if config.val_data else ()
    if isinstance(grounder, CachedGrounder):
        grounder.expect(samples, progress)
        grounder.expect(watched, progress)
    before = grounder.backbone.weights_digest()
    folder.start(config)
    loop = TrainingLoop(config, grounder, samples, watched, folder, progress)
    loop.run()
    if isinstance(grounder, CachedGrounder) and held_out:
        progress.say(f"Loading {config.backbone}, model {config.model}, to measure the head")
        grounder = whole_from_cached(config, spec, grounder)
    if (best := folder.best()) is not None:
        grounder.load_head(best)
        grounder.confidence = read_confidence(best)
    scores = {
        text: evaluate(grounder, part, workers=config.workers, progress=progress, name=text)
        for text, part in held_out.items()
    }
    if held_out and config.pictures:
        write_images(grounder, next(iter(held_out.values())), config.pictures, folder.pictures)
    summary = summarise(config, grounder, scores)
    summary["vlm_sha256"] = {"before": before, "after": grounder.backbone.weights_digest()}
    summary["seconds"] = round(time.monotonic() - started, 1)
    write_json(folder.path / "summary.json", summary)
    for text, score in scores.items():
        progress.say(
            f"{text}, {config.protocol}: coarse cIoU {score.coarse.ciou:.4f}, "
            f"refined cIoU {score.refined.ciou:.4f} ({score.refined.masks} masks)"
        )
        for name, part in sorted(score.refined.slices.items()):
            if len(score.refined.slices) > 1:
                coarse = score.coarse.slices[name].ciou
                progress.say(f"  {name}: coarse {coarse:.4f}, refined {part.ciou:.4f}")
    return folder.path


def build_from_config(config: RunConfig, spec: BackboneSpec) -> Grounder:
    """The flow that a configuration describes, with a fresh head."""
    return _build(config, spec, recipe_of(config))


def open_from_config(config: RunConfig, spec: BackboneSpec) -> CachedGrounder:
    """The same without its frozen parts: a cache is read in their place.

    Raises:
        UsageError: There is no cache, or it was made for something else.
    """
    assert config.cache is not None
    return open_cached(
        config.cache,
        recipe_of(config),
        facts_of(config, spec),
        exact=config.exact,
        device=config.device,
        refiner_weights=config.refiner_weights,
    )


def whole_from_cached(config: RunConfig, spec: BackboneSpec, trained: CachedGrounder) -> Grounder:
    """The flow with its frozen parts and the head that was trained without them."""
    whole = _build(config, spec, trained.recipe)
    check_made_with(trained.store.manifest, whole)
    whole.load_trainable_state(trained.trainable_state())
    return whole


def facts_of(config: RunConfig, spec: BackboneSpec) -> dict[str, Any]:
    """What a cache for a configuration depends on."""
    return frozen_facts(
        recipe_of(config),
        spec,
        dtype=config.dtype,
        device=config.device,
        refiner_weights=config.refiner_weights,
    )


def recipe_of(config: RunConfig) -> Recipe:
    """How a configuration's flow is built."""
    return Recipe(
        backbone=config.backbone,
        model=config.model,
        options=config.options,
        prompt=config.prompt,
        refiner=config.refiner,
        **config.head.model_dump(),
        **config.sam.model_dump(),
    )


def _build(config: RunConfig, spec: BackboneSpec, recipe: Recipe) -> Grounder:
    grounder = Grounder.build(
        recipe,
        spec=spec,
        dtype=config.dtype,
        device=config.device,
        refiner_weights=config.refiner_weights,
    )
    grounder.one_by_one = config.exact
    return grounder


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@dataclass
class TrainingLoop:
    """The steps of one run; `run` goes on from the last checkpoint of the folder."""

    config: RunConfig
    grounder: Grounder
    samples: Sequence[Sample]
    watched: Sequence[Sample]
    folder: RunFolder
    progress: Progress

    def __post_init__(self) -> None:
        named = [(n, w) for n, w in self.grounder.named_parameters() if w.requires_grad]
        self.weights = [weight for _, weight in named]
        refiner = [weight for name, weight in named if name.startswith("refiner.")]
        head = [weight for name, weight in named if not name.startswith("refiner.")]
        highest = self.config.learning_rate
        groups = [
            {"params": head, "highest": highest},
            {"params": refiner, "highest": self.config.refiner_learning_rate or highest},
        ]
        self.optimizer = torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=highest,
            weight_decay=self.config.weight_decay,
        )

    def run(self) -> None:
        """Train to the end, saving on the way."""
        config = self.config
        first = self._resume() if config.resume else 0
        dataset = ExampleDataset(self.samples, self.grounder)
        steps = range(first, config.steps)
        order = config.batch_size, steps, config.seed
        sampler = (
            BucketSampler(sample_extents(self.samples), *order)
            if config.bucket
            else StepSampler(len(self.samples), *order)
        )
        self.grounder.train()
        throughput = Throughput()
        with (
            StopRequest() as stop,
            closing(load_batches(dataset, sampler=sampler, workers=config.workers)) as batches,
            self.progress.stage("Training", config.steps, done=first) as stage,
        ):
            for step, batch in zip(steps, throughput.waiting(batches), strict=True):
                loss = self._step(step, batch)
                done = step + 1
                throughput.count(batch.samples)
                stage.advance(1, loss=loss.total.item(), **throughput.figures())
                if done % config.log_every == 0 or done == config.steps:
                    self.folder.log(self._figures(done, loss) | throughput.lap().to_dict())
                if stop.asked or done == config.steps or done % config.save_every == 0:
                    facts = {"steps": done, "protocol": config.protocol, "data": config.data}
                    if isinstance(self.grounder, CachedGrounder):
                        facts |= self.grounder.cache_facts
                    self.folder.save(self.grounder, self.optimizer, done, facts)
                    if stop.asked:
                        raise KeyboardInterrupt(f"Step {done} of {config.steps} is saved.")
                    stop.at_once = True
                    with throughput.pause():
                        self._watch(done)
                    stop.at_once = False

    def _resume(self) -> int:
        """Take the last checkpoint; gives how many steps are done."""
        last = self.folder.last()
        if last is None:
            raise UsageError(
                f"There is nothing to resume in '{self.folder.path}'.",
                found="It has no checkpoint yet.",
                repair="Leave out --resume to start.",
            )
        self.grounder.load_head(last)
        return self.folder.load_optimizer(self.optimizer, last)

    def _step(self, step: int, batch: Examples) -> GroundingLoss:
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * rate(step, self.config)
        groundings = self.grounder(batch.inputs)
        loss = grounding_loss(groundings, batch.truths, nearest=self.config.head.paper_rounding)
        if not torch.isfinite(loss.total):
            raise RunError(
                f"The loss of step {step + 1} is {loss.total.item()}.",
                found=f"Its samples: {', '.join(sample.name for sample in batch.samples)}.",
                repair="Lower --learning-rate, or use --dtype float32.",
            )
        self.optimizer.zero_grad()
        loss.total.backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm)
        self.optimizer.step()
        return loss

    def _figures(self, done: int, loss: GroundingLoss) -> dict[str, Any]:
        return {
            "step": done,
            "loss": loss.total.item(),
            "coarse_dice": loss.coarse_dice.item(),
            "coarse_cross_entropy": loss.coarse_cross_entropy.item(),
            "refined_dice": loss.refined_dice.item(),
            "refined_cross_entropy": loss.refined_cross_entropy.item(),
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": self.norm.item(),
        }

    def _watch(self, done: int) -> None:
        """Score the checkpoint that was just written on the validation data, if there is any.

        What is seen of its masks there says how far to trust them, and is written beside it.
        """
        if not self.watched:
            return
        judged = Judgements()
        result: Evaluation = evaluate(
            self.grounder, self.watched, watch=judged.add, workers=self.config.workers,
            progress=self.progress, name="Validating",
        )  # fmt: skip
        write_confidence(self.folder.step(done), Confidence.fit(judged))
        self.folder.log({"step": done, "validation": result.to_dict()})
        self.folder.rate(done, result.refined.ciou)


def rate(step: int, config: RunConfig) -> float:
    """Share of the highest learning rate at a step: linear warm-up, then cosine to 0."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def summarise(
    config: RunConfig, grounder: Grounder, scores: dict[str, Evaluation]
) -> dict[str, Any]:
    """`summary.json`: the scores on the first source at the top, all of them below."""
    summary: dict[str, Any] = {
        "backbone": config.backbone,
        "model": config.model,
        "refiner": config.refiner,
        "steps": config.steps,
        "seed": config.seed,
        "protocol": config.protocol,
        "data": config.data,
    }
    if scores:
        first = next(iter(scores.values()))
        for name, part in (("coarse", first.coarse), ("refined", first.refined)):
            summary[name] = {"ciou": part.ciou, "miou": part.miou}
        if first.calibration is not None:
            summary["calibration"] = first.calibration.to_dict()
    summary["evaluations"] = {text: score.to_dict() for text, score in scores.items()}
    trained = [value for value in grounder.parameters() if value.requires_grad]
    summary["trainable_parameters"] = sum(value.numel() for value in trained)
    return summary


@torch.no_grad()
def write_images(grounder: Grounder, samples: Sequence[Sample], count: int, folder: Path) -> None:
    """Sheets of samples spread over a source, named by their number."""
    folder.mkdir(parents=True, exist_ok=True)
    grounder.eval()
    chosen = np.unique(np.linspace(0, len(samples) - 1, count).round().astype(int))
    for number, index in enumerate(chosen.tolist()):
        sample = samples[index]
        example = ExampleDataset(samples, grounder).example(index)
        (grounding,) = grounder(grounder.collate([example.inputs]))
        sheet = draw_sheet(
            read_image(sample.image_path),
            [phrase.text for phrase in sample.phrases],
            grounding.maps,
            grounding.coarse_logits,
            grounding.logits,
            example.truth,
        )
        sheet.save(folder / f"{number:02}.png")
