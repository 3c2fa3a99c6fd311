"""Trains a head, resumable, and evaluates it.

runs/NAME/config.yaml        the resolved settings
          environment.json   versions, machine, command
          metrics.jsonl      a line every `log_every` steps
          checkpoints/step-N head and optimizer; `best` and `last` link to two of them;
                             with validation data also the calibrated confidence and the score
          left-out.json      samples that could not be used, if any
          pictures/          contact sheets of unseen images
          summary.json       the final scores
          failed-step-N/     the batch of a step whose loss or gradient was not finite

A run that was stopped at any point and is resumed leaves the same head, best checkpoint,
confidence and scores, bit for bit, as one that was not.
"""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_core.config import RunConfig, SkipLimit, option_name
from flmm_core.data.absent import AbsentCount
from flmm_core.data.images import read_image
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.evaluation.baselines import head_method
from flmm_core.evaluation.calibration import Judgements, fit_confidence
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.files import whole_folder, write_json
from flmm_core.loader.dataset import (
    ExampleBatch,
    ExampleDataset,
    FeatureSource,
    Unusable,
    load_batches,
)
from flmm_core.loader.samplers import BucketSampler, StepSampler, sample_extents, spread
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.confidence import read_confidence, write_confidence
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import check_model, read_info, read_weights
from flmm_core.progress import Progress, StopRequest
from flmm_core.spec import BackboneSpec
from flmm_core.training.contact_sheet import draw_sheet
from flmm_core.training.failed_step import StepValues, insist_finite
from flmm_core.training.losses import GroundingLoss, head_loss, processed_truth
from flmm_core.training.optimizer_file import read_optimizer
from flmm_core.training.run_folder import SUMMARY, RunFolder
from flmm_core.training.setup import (
    Setup,
    check_same_cache,
    open_cached,
    open_data,
    open_observed,
)


def train(config: RunConfig, spec: BackboneSpec, progress: Progress | None = None) -> Path:
    """Train a head and evaluate it; returns the run folder.

    Raises:
        UsageError: The output folder has another run, or there is nothing to resume, or the run to
            resume was begun with other settings.
        DataError: Too much of the data cannot be used.
        RunError: The loss or the gradient is not finite, or a checkpoint cannot be written.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; while training, the last step is saved.
    """
    started = time.monotonic()
    progress = progress or Progress()
    folder = RunFolder(config.output, config.save_every, config.steps)
    with folder.opened(config) as changed, StopRequest() as stop, stop.immediate():
        if config.resume and folder.is_finished and not changed:
            progress.say(f"The run in '{folder.path}' is finished.")
            return folder.path
        for key, (before, now) in changed.items():
            progress.say(f"Resuming with {option_name(key)} {now} (before: {before})")
        try:
            loop = prepare(config, spec, folder, progress)
            held_out = {text: open_source(text, config.protocol) for text in config.eval_data}
            for others in held_out.values():
                LeftOut(others, loop.left_out.limit)  # rather now than after the training
        except Exception:
            if not config.resume:
                folder.forget()
            raise
        loop.run()
        scores, digest = evaluate_head(loop, held_out)
        summary = summarize(config, loop.head, scores)
        summary["absent"] = {text: vars(count) for text, count in loop.absent.items()}
        if (best := folder.best()) is not None and (fitted := read_confidence(best)) is not None:
            summary["not_there"] = fitted.not_there and fitted.not_there.model_dump()
        summary["vlm_sha256"] = {"before": loop.setup.vlm_digest, "after": digest}
        summary["left_out"] = loop.left_out.to_list()
        summary["seconds"] = round(time.monotonic() - started, 1)
        write_json(folder.path / SUMMARY, summary)
    for text, score in scores.items():
        progress.say(
            f"{text}, {config.protocol}: coarse cIoU {score['coarse_ciou']:.4f}, "
            f"refined cIoU {score['ciou']:.4f} ({score.phrases} masks)"
        )
        for name, part in sorted(score.slices.items()):
            if len(score.slices) > 1:
                coarse, refined = part["coarse_ciou"], part["ciou"]
                progress.say(f"  {name}: coarse {coarse:.4f}, refined {refined:.4f}")
    return folder.path


def prepare(
    config: RunConfig, spec: BackboneSpec, folder: RunFolder, progress: Progress
) -> TrainingLoop:
    """Seed everything, load the frozen models and read the data."""
    seed_everything(config.seed)
    setup = (open_observed if config.cache is None else open_cached)(config, spec, progress)
    progress.say(f"Reading {', '.join(config.data)} (drawn scenes are generated on first use)")
    samples, watched, absent = open_data(config, progress)
    limit = SkipLimit.given(config.max_skipped)
    left_out = LeftOut(samples, limit)
    setup.source.expect(samples, left_out, progress)
    setup.source.expect(watched, LeftOut(watched, limit), progress)
    return TrainingLoop(config, setup, samples, watched, folder, progress, left_out, absent)


def evaluate_head(
    loop: TrainingLoop, held_out: Mapping[str, Sequence[Sample]]
) -> tuple[dict[str, Evaluation], str]:
    """Score the best head, else the last, and draw its sheets.

    Returns:
        The scores by source, and the digest of the VLM weights now.
    """
    config, folder, head, confidence = loop.config, loop.folder, loop.head, None
    if (best := folder.best()) is not None:
        head.load_weights(read_weights(best))
        confidence = read_confidence(best)
    head.eval()
    if not held_out:
        return {}, loop.setup.vlm_digest
    source, digest = loop.setup.observed()
    method = head_method(source, head, confidence)
    scores = {
        text: evaluate(
            method,
            part,
            workers=config.workers,
            max_skipped=loop.left_out.limit,
            progress=loop.progress,
            name=text,
        )
        for text, part in held_out.items()
    }
    write_sheets(source, head, next(iter(held_out.values())), config.pictures, folder.pictures)
    return scores, digest


def seed_everything(seed: int) -> None:
    """Set the random states of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of one step of a run: from these two alone, so that a run resumes exactly."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


@dataclass
class TrainingLoop:
    """The steps of one run; `watched` is the validation data, possibly empty.

    Samples that cannot be used are replaced by others and go to `left_out`; `absent` counts what
    is not there, by source.
    """

    config: RunConfig
    setup: Setup
    samples: Sequence[Sample]
    watched: Sequence[Sample]
    folder: RunFolder
    progress: Progress
    left_out: LeftOut
    absent: Mapping[str, AbsentCount] = field(default_factory=dict)

    def __post_init__(self) -> None:
        config = self.config
        self.source, self.head = self.setup.source, self.setup.head
        rates = {"head": config.learning_rate, "refiner": config.refiner_learning_rate}
        groups = dict(self.head.learning_groups())
        self.weights = [weight for weights in groups.values() for weight in weights]
        self.optimizer = torch.optim.AdamW(
            [
                {"params": weights, "highest": rates[name] or config.learning_rate}
                for name, weights in groups.items()
            ],
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
        )

    def run(self) -> None:
        """Train to the last step, from the last checkpoint if the run is resumed."""
        config = self.config
        first = self._resume() if config.resume else self._begin()
        steps = range(first, config.steps)
        order = config.batch_size, steps, config.seed
        sampler = (
            BucketSampler(sample_extents(self.samples), *order)
            if config.bucket
            else StepSampler(len(self.samples), *order)
        )
        dataset = ExampleDataset(self.samples, self.source, fill=True)
        loaded = load_batches(
            dataset, sampler=sampler, workers=config.workers, left_out=self.left_out
        )
        self.head.train()
        throughput, noted = Throughput(), 0
        with (
            StopRequest() as stop,
            closing(loaded) as batches,
            self.progress.stage("Training", config.steps, done=first) as stage,
        ):
            for step, batch in zip(steps, throughput.waiting(batches), strict=True):
                if len(self.left_out.unusable) > noted:
                    self.folder.note_left_out(self.left_out.unusable)
                    noted = len(self.left_out.unusable)
                loss = self._step(step, batch)
                done = step + 1
                throughput.count(batch.samples)
                stage.advance(1, loss=loss.total.item(), **throughput.figures())
                if done % config.log_every == 0 or done == config.steps:
                    self.folder.log(self._figures(done, loss) | throughput.lap().to_dict())
                scheduled = self.folder.is_scheduled(done)
                if stop.asked or scheduled:
                    info = self.setup.info.with_facts(steps=done)
                    self.folder.save(done, self.optimizer, self.head, info)
                    if stop.asked:
                        raise KeyboardInterrupt(f"Step {done} of {config.steps} is saved.")
                    with stop.immediate(), throughput.pause():
                        self._validate(done)

    def _begin(self) -> int:
        """Write the settings and what the model reads; returns 0, the steps done."""
        reads = self.setup.info.facts.get("reads", "")
        self.folder.record(self.config, f"The model reads: {reads!r}")
        return 0

    def _resume(self) -> int:
        """Load the last checkpoint and make up for its validation; returns the steps done.

        Everything is read and checked before anything changes.
        """
        last = self.folder.last()
        for index, reason in self.folder.left_out().items():
            self.left_out.add(index, reason)
        if last is None:  # stopped before the first checkpoint
            self.folder.rewind(0)
            return self._begin()
        trained = read_info(last)
        check_same_cache(trained, self.setup.info, self.config.cache)
        if (model := self.setup.info.model) is not None:
            check_model(str(last), trained, self.config.model, model, force=self.config.force)
        weights, state = read_weights(last), read_optimizer(last, self.optimizer)
        self.head.load_weights(weights)
        self._begin()
        state.load_into(self.optimizer)
        self.folder.rewind(state.step)
        self.folder.prune()
        score = self.folder.score(state.step)
        if score is not None:
            self.folder.rate(state.step, score)
        elif self.folder.is_scheduled(state.step):
            self._validate(state.step)
        return state.step

    def _step(self, step: int, batch: ExampleBatch) -> GroundingLoss:
        seed_everything(seed_of_step(self.config.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * rate(step, self.config)
        features = self.source.features(batch.inputs)
        nearest = self.config.head.paper_rounding
        truths = batch.truths
        if nearest and (square := self.setup.info.model and self.setup.info.model.square):
            pairs = zip(truths, features, strict=True)
            truths = tuple(processed_truth(t, f.maps.image_box, square) for t, f in pairs)
        groundings, loss = head_loss(self.head, features, truths, nearest=nearest)
        values = StepValues(step + 1, batch, features, groundings, loss)
        self.optimizer.zero_grad()
        insist_finite(loss.total, "loss", values, self.head, self.folder)
        loss.total.backward()
        self.norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm)
        insist_finite(self.norm, "gradient norm", values, self.head, self.folder)
        self.optimizer.step()
        return loss

    def _figures(self, done: int, loss: GroundingLoss) -> dict[str, Any]:
        return {
            "step": done,
            "loss": loss.total.item(),
            **{name: part.item() for name, part in loss.parts.items()},
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "gradient_norm": self.norm.item(),
        }

    def _validate(self, done: int) -> None:
        """Score the checkpoint on the validation data, if any, and fit its confidence there."""
        if not self.watched:
            return
        judged = Judgements()
        self.head.eval()
        result = evaluate(
            head_method(self.source, self.head), self.watched, watch=judged.add,
            workers=self.config.workers, max_skipped=self.left_out.limit, progress=self.progress,
            name="Validating",
        )  # fmt: skip
        self.head.train()
        write_confidence(self.folder.step(done), fit_confidence(judged))
        self.folder.log({"step": done, "validation": result.to_dict()})
        # Masks of phrases that name nothing are not trained, so they do not decide. This is last:
        # it says that the validation is done.
        self.folder.rate(done, result["target_ciou"])


def rate(step: int, config: RunConfig) -> float:
    """Fraction of the highest learning rate at a step: linear warm-up, then cosine to 0."""
    warmup = round(config.warmup * config.steps)
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, config.steps - warmup)))


def summarize(config: RunConfig, head: Head, scores: dict[str, Evaluation]) -> dict[str, Any]:
    """`summary.json`: the scores on the first source at the top, all of them below."""
    names = (
        "backbone", "model", "refiner", "refiner_options", "steps", "seed", "protocol", "data",
    )  # fmt: skip
    summary: dict[str, Any] = {name: getattr(config, name) for name in names}
    if scores:
        first = next(iter(scores.values()))
        summary["coarse"] = {"ciou": first["coarse_ciou"], "miou": first["coarse_miou"]}
        summary["refined"] = {"ciou": first["ciou"], "miou": first["miou"]}
        if any(first.reliability.counts):
            summary["calibration"] = first.reliability.to_dict()
    summary["evaluations"] = {text: score.to_dict() for text, score in scores.items()}
    summary["trainable_parameters"] = head.trainable_parameters
    return summary


def write_sheets(
    source: FeatureSource, head: Head, samples: Sequence[Sample], count: int, folder: Path
) -> None:
    """Contact sheets of samples spread over a data set, named by their number."""
    if not count:
        return
    dataset, method = ExampleDataset(samples, source), head_method(source, head)
    with whole_folder(folder, replace=True) as aside:
        for number, index in enumerate(spread(range(len(samples)), count)):
            example = dataset[index]
            if isinstance(example, Unusable):
                continue
            (grounding,) = method.ground(source.collate([example.inputs]))
            sheet = draw_sheet(
                read_image(
                    example.sample.image_path,
                    image_hw=example.sample.image_hw,
                    as_stored=example.sample.as_stored,
                ),
                [phrase.text for phrase in example.sample.phrases],
                grounding.maps,
                grounding.coarse_logits,
                grounding.logits,
                example.truth,
                head.mask_head.channel_weights(grounding.maps),
            )
            sheet.save(aside / f"{number:02}.png")
