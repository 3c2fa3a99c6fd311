"""The steps of a run: features, loss, optimizer, checkpoints, validation."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from flmm_core.config import RunConfig
from flmm_core.data.absent import AbsentCount
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.evaluation.baselines import head_method
from flmm_core.evaluation.calibration import Judgements, fit_confidence
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.loader.dataset import (
    ExampleBatch,
    ExampleDataset,
    load_batches,
)
from flmm_core.loader.samplers import BucketSampler, StepSampler, sample_extents
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.confidence import write_confidence
from flmm_core.pipeline.head_folder import check_model, read_info, read_weights
from flmm_core.progress import Progress, StopRequest
from flmm_core.training.average import WeightAverage
from flmm_core.training.failed_step import StepValues, insist_finite
from flmm_core.training.length import is_exhausted
from flmm_core.training.losses import GroundingLoss, head_loss, processed_truth
from flmm_core.training.optimizer_file import read_optimizer
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.schedule import rate
from flmm_core.training.setup import (
    Setup,
    check_same_cache,
)


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
    deadline: float = math.inf
    """Of `time.monotonic()`; a step that ends after it is saved and the last one."""

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
        self.average = WeightAverage(self.head, config.ema)
        self.stopped_after: int | None = None

    def run(self) -> None:
        """Train to the last step, from the last checkpoint if the run is resumed."""
        config = self.config
        first = self._resume() if config.resume else self._begin()
        if self._is_exhausted(first):
            return
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
                late = time.monotonic() > self.deadline and done < config.steps
                if stop.asked or late or scheduled:
                    info = self.setup.info.with_facts(steps=done)
                    head, trained = self.average.head, self.average.state()
                    self.folder.save(done, self.optimizer, head, info, trained)
                    if stop.asked or late:
                        why = "" if stop.asked else f"--max-hours {config.max_hours:g} are over. "
                        raise KeyboardInterrupt(f"{why}Step {done} of {config.steps} is saved.")
                    with stop.immediate(), throughput.pause():
                        self._validate(done)
                    if self._is_exhausted(done):
                        break

    def _is_exhausted(self, done: int) -> bool:
        """Whether `done` steps are enough, since validations do not improve."""
        patience = self.config.patience
        if done == self.config.steps or not is_exhausted(self.folder.validation_scores(), patience):
            return False
        self.progress.say(
            f"Training ends after step {done} of {self.config.steps}: {patience} validations"
            " without a better one (--patience)"
        )
        self.stopped_after = done
        return True

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
        asked = f"The trained weights in '{last}' cannot be used."
        self.average.check(state.weights, asked)
        self.average.load(weights, state.weights, state.step)
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
        self.average.update()
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
        head = self.average.head.eval()
        result = evaluate(
            head_method(self.source, head), self.watched, watch=judged.add,
            workers=self.config.workers, max_skipped=self.left_out.limit, progress=self.progress,
            name="Validating",
        )  # fmt: skip
        self.head.train()
        write_confidence(self.folder.step(done), fit_confidence(judged))
        # Masks of phrases that name nothing are not trained, so they do not decide.
        score = result["target_ciou"]
        row = {"step": done, "validation": result.to_dict(), "validation_ciou": score}
        self.folder.log(row)
        self.folder.rate(done, score)  # last: it says that the validation is done
