"""The steps of a run: features, loss, optimizer, checkpoints, validation."""

from __future__ import annotations

import math
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

import numpy as np
import torch

from flmm_core.config import RunConfig
from flmm_core.data.absent import AbsentCount
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.errors import FlmmError
from flmm_core.evaluation.baselines import head_method
from flmm_core.evaluation.calibration import Judgements, fit_confidence
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.loader.dataset import (
    ExampleBatch,
    ExampleDataset,
    Loaded,
    read_batches,
)
from flmm_core.loader.samplers import (
    BucketSampler,
    SharedSampler,
    StepSampler,
    sample_extents,
)
from flmm_core.loader.throughput import Throughput, count_images
from flmm_core.pipeline.boxes import occupied
from flmm_core.pipeline.confidence import write_confidence
from flmm_core.pipeline.drift import check_drift
from flmm_core.pipeline.head_folder import check_model, read_info, read_weights
from flmm_core.pipeline.types import Features, Grounding
from flmm_core.progress import Progress, StopRequest
from flmm_core.training.average import WeightAverage
from flmm_core.training.failed_step import StepValues, insist_finite
from flmm_core.training.gradients import sum_gradients
from flmm_core.training.length import is_exhausted
from flmm_core.training.losses import (
    Counts,
    GroundingLoss,
    head_loss,
    processed_truth,
    to_refine,
)
from flmm_core.training.optimizer_file import read_optimizer
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.schedule import rate
from flmm_core.training.setup import (
    Setup,
    check_same_cache,
)
from flmm_core.training.sheets import FirstSheets
from flmm_core.world import World


def seed_everything(seed: int) -> None:
    """Set the random states of Python, numpy and torch."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def seed_of_step(seed: int, step: int) -> int:
    """The seed of one step of a run: from these two alone, so that a run resumes exactly."""
    return int(np.random.SeedSequence([seed, step]).generate_state(1)[0])


@dataclass(frozen=True)
class Share:
    """What the others need to know of a process's share of a step."""

    counts: Counts
    images: int
    unusable: Mapping[int, str]
    """Why samples cannot be used, by index."""


@dataclass
class TrainingLoop:
    """The steps of one run; `watched` is the validation data, possibly empty.

    Samples that cannot be used are replaced by others and go to `left_out`; `absent` counts what
    is not there, by source. The processes of `world` share each step's samples; the main one
    writes.
    """

    config: RunConfig
    setup: Setup
    samples: Sequence[Sample]
    watched: Sequence[Sample]
    folder: RunFolder
    progress: Progress
    left_out: LeftOut
    absent: Mapping[str, AbsentCount] = field(default_factory=dict)
    world: World = field(default_factory=World)
    deadline: float = math.inf
    """Of `time.monotonic()`; a step that ends after it is saved and the last one."""

    def __post_init__(self) -> None:
        config = self.config
        self.source, self.trained_on = self.setup.source, self.setup.trained_on
        self.head = self.setup.head
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
            fused=True,
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
        order = config.samples_per_step, steps, config.seed
        sampler = (
            BucketSampler(sample_extents(self.samples), *order)
            if config.bucket
            else StepSampler(len(self.samples), *order)
        )
        dataset = ExampleDataset(self.samples, self.trained_on, fill=True)
        shared = SharedSampler(sampler, self.world, config.accumulate)
        loaded = read_batches(dataset, shared, workers=config.workers)
        self.head.train()
        throughput, first_sheets = Throughput(), self._first_sheets()
        with (
            StopRequest() as stop,
            closing(loaded) as batches,
            self.progress.stage("Training", config.steps, done=first) as stage,
        ):
            waited = throughput.waiting(batches)
            for step in steps:
                parts, counts = self._read(waited, throughput)
                loss = self._step(step, parts, counts)
                done = step + 1
                stage.advance(1, loss=loss.total.item(), **throughput.figures())
                if first_sheets.due:
                    with throughput.pause():
                        first_sheets.draw(self.average.head, done)
                if done % config.log_every == 0 or done == config.steps:
                    self._log(self._figures(done, loss) | throughput.lap().to_dict())
                late = time.monotonic() > self.deadline and done < config.steps
                stopping, scheduled = self.world.any(stop.asked), self.folder.is_scheduled(done)
                late = config.max_hours is not None and self.world.any(late)
                if stopping or late or scheduled:
                    self._save(done)
                    if stopping or late:
                        why = "" if stopping else f"--max-hours {config.max_hours:g} are over. "
                        raise KeyboardInterrupt(f"{why}Step {done} of {config.steps} is saved.")
                    with stop.immediate(), throughput.pause():
                        self._validate(done)
                    if self._is_exhausted(done):
                        break

    def _first_sheets(self) -> FirstSheets:
        count = self.config.pictures if self.world.is_main else 0
        folder = self.folder.pictures
        return FirstSheets(self.source, self.watched, count, folder, self.progress)

    def _is_exhausted(self, done: int) -> bool:
        """Whether `done` steps are enough, since validations do not improve."""
        patience, folder = self.config.patience, self.folder
        if done == self.config.steps or not self.world.main_does(
            lambda: is_exhausted(folder.validation_scores(), patience)
        ):
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
        remark = f"The model reads: {reads!r}"
        self.world.main_does(lambda: self.folder.record(self.config, remark, self.world.size))
        return 0

    def _resume(self) -> int:
        """Load the last checkpoint and make up for its validation; returns the steps done.

        Everything is read and checked before anything changes.
        """
        world, folder = self.world, self.folder
        last, left_out = world.main_does(lambda: (folder.last(), folder.left_out()))
        with world.agreed():
            for index, reason in left_out.items():
                self.left_out.add(index, reason)
        if last is None:  # stopped before the first checkpoint
            world.main_does(lambda: folder.rewind(0))
            return self._begin()
        with world.agreed():
            trained = read_info(last)
            check_same_cache(trained, self.setup.info, self.config.cache)
            if (model := self.setup.info.model) is not None:
                check_model(str(last), trained, self.config.model, model, force=self.config.force)
            now, strict = self.setup.info.fingerprint, self.config.strict
            check_drift(str(last), trained, model, now, strict=strict)
            first = replace(self.setup.info, fingerprint=trained.fingerprint or now)
            self.setup = replace(self.setup, info=first)
            weights, state = read_weights(last), read_optimizer(last, self.optimizer)
            asked = f"The trained weights in '{last}' cannot be used."
            self.average.check(state.weights, asked)
            self.average.load(weights, state.weights, state.step)
        self._begin()
        state.load_into(self.optimizer)
        score = world.main_does(lambda: self._rewind(state.step))
        if score is None and folder.is_scheduled(state.step):
            self._validate(state.step)
        return state.step

    def _rewind(self, step: int) -> float | None:
        """Forget what happened after a step; returns its validation score, if it has one."""
        self.folder.rewind(step)
        self.folder.prune()
        if (score := self.folder.score(step)) is not None:
            self.folder.rate(step, score)
        return score

    def _read(
        self, batches: Iterator[Loaded], throughput: Throughput
    ) -> tuple[list[ExampleBatch], Counts]:
        """This process's share of the next step, and the phrases of the whole step."""
        parts: list[ExampleBatch] = []
        unusable: dict[int, str] = {}
        nothing: FlmmError | None = None
        with self.world.agreed():
            for batch, lost in islice(batches, self.config.accumulate):
                unusable |= {one.index: str(one.error) for one in lost}
                if batch is not None:
                    parts.append(batch)
                elif lost:
                    nothing = lost[0].error
        samples = [sample for batch in parts for sample in batch.samples]
        share = Share(
            Counts.of(self.head, samples, self.config.refine_at_most),
            count_images(samples),
            unusable,
        )
        shares = self.world.gather(share)
        counts = sum((each.counts for each in shares), Counts())
        throughput.add(sum(each.images for each in shares), counts.phrases)
        found = {index: why for each in shares for index, why in each.unusable.items()}
        if found:
            with self.world.agreed():
                known = len(self.left_out.unusable)
                for index, reason in found.items():
                    self.left_out.add(index, reason)
                if self.world.is_main and len(self.left_out.unusable) > known:
                    self.folder.note_left_out(self.left_out.unusable)
                if nothing is not None:  # can be used in place of a sample
                    raise nothing
        return parts, counts

    def _step(self, step: int, parts: Sequence[ExampleBatch], counts: Counts) -> GroundingLoss:
        """One step of the optimizer; returns the loss of all processes."""
        seed_everything(seed_of_step(self.config.seed, step))
        for group in self.optimizer.param_groups:
            group["lr"] = group["highest"] * rate(step, self.config)
        self.optimizer.zero_grad()
        own, values = GroundingLoss.nothing(self.head), None
        with self.world.agreed():
            for batch in parts:
                values = self.backward(step, batch, counts)
                own = own.plus(torch.stack([*values.loss.parts.values()]).detach())
                if self.world.size * len(parts) > 1:  # else the norm below is of this batch
                    grads = [weight.grad for weight in self.weights if weight.grad is not None]
                    norm = torch.nn.utils.get_total_norm(grads)
                    insist_finite(norm, "gradient norm", values, self.head, self.folder)
        figures = sum_gradients(self.world, self.weights, torch.stack([*own.parts.values()]))
        self.norm = torch.nn.utils.clip_grad_norm_(self.weights, self.config.clip_norm)
        with self.world.agreed():
            if values is not None:
                insist_finite(self.norm, "gradient norm", values, self.head, self.folder)
        self.optimizer.step()
        self.average.update()
        return GroundingLoss.nothing(self.head).plus(figures)

    def backward(self, step: int, batch: ExampleBatch, counts: Counts) -> StepValues:
        """Add the gradient of a part of a step."""
        features, groundings, loss = self.loss_of(batch, counts, step)
        values = StepValues(step + 1, self.world.rank, batch, features, groundings, loss)
        insist_finite(loss.total, "loss", values, self.head, self.folder)
        if loss.total.requires_grad:  # else the parts that are trained have no share in it
            loss.total.backward()
        return values

    def loss_of(
        self, batch: ExampleBatch, counts: Counts | None = None, step: int = 0
    ) -> tuple[Sequence[Features], Sequence[Grounding], GroundingLoss]:
        """What the models make of a batch, and its loss; `counts`: see `head_loss`.

        `step` decides which masks are refined, where not all are.
        """
        features = self.trained_on.features(batch.inputs)
        nearest = self.config.head.paper_rounding
        truths = batch.truths
        there = [occupied(truth.flatten(1), 1) for truth in truths]  # (P,) each
        if nearest and (square := self.setup.info.model and self.setup.info.model.square):
            pairs = zip(truths, features, strict=True)
            truths = tuple(processed_truth(t, f.maps.image_box, square) for t, f in pairs)
        refine, most = None, self.config.refine_at_most
        if most is not None:
            every = self.head.presence is None
            masks = [len(each) if every else int(each.sum()) for each in there]
            seeds = [(self.config.seed, step, index) for index in batch.indices]
            refine = to_refine(masks, most, seeds)
        with self.autocast():
            groundings, loss = head_loss(
                self.head, features, truths, there=there, nearest=nearest, counts=counts,
                refine=refine, narrated=[sample.narrated for sample in batch.samples],
            )  # fmt: skip
        return features, groundings, loss

    def autocast(self) -> torch.autocast:
        """The context in which the head is trained."""
        half = self.config.precision == "bf16"
        return torch.autocast(self.head.device.type, torch.bfloat16, enabled=half)

    def _save(self, done: int) -> None:
        info = self.setup.info.with_facts(steps=done)
        head, trained = self.average.head, self.average.state()
        self.world.main_does(lambda: self.folder.save(done, self.optimizer, head, info, trained))

    def _log(self, row: dict[str, Any]) -> None:
        self.world.main_does(lambda: self.folder.log(row))

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
            name="Validating", world=self.world,
        )  # fmt: skip
        self.head.train()
        judged = Judgements.union(self.world.gather(judged))
        self.world.main_does(lambda: self._write_validation(done, result, judged))

    def _write_validation(self, done: int, result: Evaluation, judged: Judgements) -> None:
        write_confidence(self.folder.step(done), fit_confidence(judged))
        # Masks of phrases that name nothing are not trained, so they do not decide.
        score = result["target_ciou"]
        row = {"step": done, "validation": result.to_dict(), "validation_ciou": score}
        self.folder.log(row)
        self.folder.rate(done, score)  # last: it says that the validation is done
