"""Scores of a head on data sets, coarse and refined masks side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from flmm_core.config import Workers
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source, open_sources
from flmm_core.errors import FlmmError
from flmm_core.evaluation.baselines import Method, make_method
from flmm_core.evaluation.confidence import check_can_abstain, chosen_threshold
from flmm_core.evaluation.measure import Calibrate, measure
from flmm_core.evaluation.metrics import (
    SUBSETS,
    BoxScores,
    CalibrationScores,
    GeneralisedScores,
    MaskScores,
    PointScores,
    ReasonScores,
    RecallScores,
    is_right,
)
from flmm_core.evaluation.phrase_rows import Item
from flmm_core.loader.dataset import ExampleDataset, Examples, fixed_batches, read_batches
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.pipeline.types import Grounding
from flmm_core.progress import Progress

Watch = Callable[[Sequence[Grounding], Examples], None]
"""Is shown every batch and what was made of it."""


@dataclass
class Evaluation:
    """Scores on one source: integer sums, whatever the number of phrases.

    What is said of a source follows from its phrases alone: scores with "not there" if some have
    no target, with ignored regions if some have such, by PNG's subsets if some are tagged so.

    Attributes:
        coarse: Of the mask head's masks, enlarged to the image.
        refined: Of the final masks.
        tags: Of the final masks, by tag.
        boxes: Of their tight boxes, where there is a true one.
        points: Of their surest points, where there is a true mask.
        generalised: gRefCOCO's.
        reasoning: ReasonSeg's.
        recall: PNG's, of the phrases that are tagged as its subsets.
        calibration: Of the probabilities of the masks that were given, not of those withheld by
            "not there"; None where there are none.
        no_target: Phrases that name nothing in the image.
        with_ignored: Phrases with pixels to ignore.
        samples: How many captions were read.
        skipped: What was left out because it cannot be scored.
        seconds: Wall-clock time.
    """

    coarse: MaskScores = field(default_factory=MaskScores)
    refined: MaskScores = field(default_factory=MaskScores)
    tags: dict[str, MaskScores] = field(default_factory=dict)
    boxes: BoxScores = field(default_factory=BoxScores)
    points: PointScores = field(default_factory=PointScores)
    generalised: GeneralisedScores = field(default_factory=GeneralisedScores)
    reasoning: ReasonScores = field(default_factory=ReasonScores)
    recall: RecallScores = field(default_factory=RecallScores)
    calibration: CalibrationScores | None = None
    no_target: int = 0
    with_ignored: int = 0
    samples: int = 0
    skipped: int = 0
    seconds: float = 0.0

    def add(self, rows: Sequence[Item]) -> None:
        """Count the rows of one sample."""
        self.samples += 1
        for row in rows:
            self._add(row)

    def _add(self, row: Item) -> None:
        pair = [row.intersection], [row.union]
        self.refined.add_counts(*pair, [row.slice])
        if row.coarse_intersection is not None and row.coarse_union is not None:
            self.coarse.add_counts([row.coarse_intersection], [row.coarse_union], [row.slice])
        for tag in row.tags:
            self.tags.setdefault(tag, MaskScores()).add_counts(*pair)
        if row.box_iou is not None:
            self.boxes.add_hits([row.box_iou >= 0.5])
        if row.point_in_mask is not None:
            self.points.add_hits([row.point_in_mask])
        if row.probability is not None and row.there:
            self.calibration = self.calibration or CalibrationScores()
            self.calibration.add([row.probability], is_right(*pair).tolist())
        no_target = row.truth == 0
        self.generalised.add_counts(*pair, no_target=[no_target], says_none=[row.predicted == 0])
        self.reasoning.add_counts(*pair)
        if not set(SUBSETS[1:]).isdisjoint(row.tags):
            self.recall.add_counts(*pair, ["thing" in row.tags], ["plural" in row.tags])
        self.no_target += no_target
        self.with_ignored += row.ignored > 0

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON, fractions of 1; without scores that the source has no use for."""
        found: dict[str, Any] = {"coarse": self.coarse.to_dict(), "refined": self.refined.to_dict()}
        found["box"], found["point"] = self.boxes.to_dict(), self.points.to_dict()
        if self.no_target:
            found["generalised"] = self.generalised.to_dict()
        if self.with_ignored:
            found["reasoning"] = self.reasoning.to_dict()
        if self.recall.masks["all"]:
            found["recall"] = self.recall.to_dict()
        if self.tags:
            found["tags"] = {tag: self.tags[tag].to_dict() for tag in sorted(self.tags)}
        if self.calibration is not None:
            found["calibration"] = self.calibration.to_dict()
        return found | {
            "samples": self.samples,
            "skipped": self.skipped,
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Measured:
    """One sample: its rows, or why it has none."""

    index: int
    rows: tuple[Item, ...]
    error: FlmmError | None = None


def measure_batches(
    grounder: Grounder,
    samples: Sequence[Sample],
    batches: Sequence[list[int]],
    *,
    flow: Method | None = None,
    watch: Watch | None = None,
    workers: Workers = 0,
    throughput: Throughput | None = None,
    calibrate: Calibrate | None = None,
    abstain_below: float | None = None,
) -> Iterator[list[Measured]]:
    """Ground and score batches of samples, one after the other; nothing is kept.

    Args:
        grounder: Reads images and captions, and grounds them unless `flow` does.
        samples: What to ground, with the truth.
        batches: The samples of each batch, by their places.
        flow: What grounds a batch; by default the grounder.
        watch: Is shown every batch and what was made of it.
        workers: Processes that read images, see `count_workers`.
        throughput: Counts what goes through.
        calibrate: Makes a probability of each score.
        abstain_below: Answer "not there" where the probability is below this; see `measure`.
    """
    folder: Path | None = getattr(samples, "folder", None)
    dataset, throughput = ExampleDataset(samples, grounder), throughput or Throughput()
    reading = read_batches(dataset, batches, workers=workers)
    for batch, unusable in throughput.waiting(reading):
        found = [Measured(one.index, (), one.error) for one in unusable]
        if batch is not None:
            started = time.monotonic()
            with torch.no_grad():
                groundings = (flow or grounder)(batch.inputs)
            taken = time.monotonic() - started
            if watch is not None:
                watch(groundings, batch)
            rows = measure(
                groundings, batch, seconds=taken, folder=folder, calibrate=calibrate,
                abstain_below=abstain_below,
            )  # fmt: skip
            found += map(Measured, batch.indices, rows)
            throughput.count(batch.samples)
        yield sorted(found, key=lambda one: one.index)


def evaluate(
    grounder: Grounder,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    workers: Workers = 0,
    limit: int | None = None,
    flow: Method | None = None,
    abstain_below: float | None = None,
    watch: Watch | None = None,
    on_row: Callable[[Item], object] | None = None,
    progress: Progress | None = None,
    name: str = "Evaluating",
) -> Evaluation:
    """Score a flow on samples; every one is counted, none skipped.

    Args:
        grounder: The flow; its training mode is restored afterwards.
        samples: What to ground, with the truth.
        batch_size: Samples that go through the flow together; the scores do not depend on it.
        workers: Processes that read images, see `count_workers`.
        limit: Only the first so many samples.
        flow: What grounds a batch, by default the grounder; see `flmm_core.evaluation.baselines`.
        abstain_below: Answer "not there" where the head's probability is below this.
        watch: Is shown every batch and what was made of it.
        on_row: Is given every phrase's row as soon as it is there; none is kept.
        progress: Is told how far it is.
        name: What to call this in the progress.

    Raises:
        FlmmError: A sample cannot be read.
    """
    was_training = grounder.training
    grounder.eval()
    total = min(limit or len(samples), len(samples))
    result, started = Evaluation(skipped=len(getattr(samples, "skipped", ()))), time.monotonic()
    throughput = Throughput()
    batches = measure_batches(
        grounder,
        samples,
        fixed_batches(total, batch_size),
        flow=flow,
        watch=watch,
        workers=workers,
        throughput=throughput,
        # Fitted on the head's masks.
        calibrate=grounder.confidence if flow in (None, grounder) else None,
        abstain_below=abstain_below,
    )
    with (progress or Progress()).stage(name, total) as stage:
        for batch in batches:
            for one in batch:
                if one.error is not None:
                    raise one.error
                result.add(one.rows)
                if on_row is not None:
                    for row in one.rows:
                        on_row(row)
            stage.advance(len(batch), cIoU=result.refined.ciou, **throughput.figures())
    grounder.train(was_training)
    result.seconds = time.monotonic() - started
    return result


def evaluate_run(
    run: str | Path,
    data: Sequence[str] = ("shapes@test",),
    *,
    method: str = "head",
    method_data: Sequence[str] = (),
    protocol: str | None = None,
    abstain: bool = False,
    device: str = "auto",
    model: str | None = None,
    refiner_weights: Path | None = None,
    batch_size: int = 16,
    workers: Workers = "auto",
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a trained head on data sets.

    Args:
        run: A run folder, a head folder or a hub id.
        data: Sources as `--data` takes them.
        method: What makes the masks, one of `flmm_core.evaluation.baselines.METHODS`.
        method_data: Sources that a method without training is fitted to by a few samples; by
            default those that the head was trained on.
        protocol: By default the one that the head was trained with.
        abstain: Answer "not there" below the threshold that the head's training chose.
        device: "auto" takes the first accelerator.
        model: Where the VLM lies here, if not where it lay in training.
        refiner_weights: SAM's own file, where the head was trained with an official SAM.
        batch_size: Samples that go through the flow together.
        workers: Processes that read images, see `count_workers`.
        limit: Only the first so many samples of each source.
        progress: Is told how far it is.

    Returns:
        Ready for JSON: the run, its backbone, the protocol, and the scores by source, each with
        its protocol.

    Raises:
        UsageError: It is to abstain, and the head has no threshold or does not make the masks.
        FlmmError: Weights or data are missing or broken.
    """
    if abstain:
        check_can_abstain([method])
    grounder = Grounder.from_pretrained(
        run, device=device, model=model, refiner_weights=refiner_weights
    )
    protocol = protocol or str(grounder.facts.get("protocol", "standard"))
    below = chosen_threshold(grounder.confidence, str(run)) if abstain else None
    sources = {text: open_source(text, protocol) for text in data}
    flow: Method = grounder
    if method != "head":
        labelled = open_sources(method_data or grounder.facts.get("data", ()), protocol)
        flow = make_method(method, grounder, labelled, refiner_weights=refiner_weights)
    return {
        "run": str(run),
        "method": {"name": method, **getattr(flow, "settings", {})},
        "backbone": grounder.recipe.backbone,
        "model": grounder.recipe.model,
        "refiner": grounder.recipe.refiner,
        "protocol": protocol,
        "abstain_below": below,
        "limit": limit,
        "data": {
            text: {
                "protocol": protocol,
                **evaluate(
                    grounder,
                    samples,
                    flow=flow,
                    abstain_below=below,
                    batch_size=batch_size,
                    workers=workers,
                    limit=limit,
                    progress=progress,
                    name=f"Evaluating {text}",
                ).to_dict(),
            }
            for text, samples in sources.items()
        },
    }
