"""Evaluates a head, or a method without training, on data sets."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

from flmm_core.config import MAX_SKIPPED, SkipLimit, Workers
from flmm_core.data.left_out import LeftOut
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source, open_sources
from flmm_core.errors import FlmmError, Problems, UsageError
from flmm_core.evaluation.baselines import MaskMethod, check_method, head_method, make_baseline
from flmm_core.evaluation.keywords import KeywordScores
from flmm_core.evaluation.phrase_rows import PhraseRow
from flmm_core.evaluation.rows_from_masks import rows_from_masks
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.loader.dataset import ExampleDataset, ObservedFeatures, read_batches
from flmm_core.loader.samplers import image_batches
from flmm_core.loader.throughput import Throughput
from flmm_core.pipeline.check_head import check_head
from flmm_core.pipeline.confidence import chosen_threshold
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.types import Grounding
from flmm_core.progress import Progress
from flmm_core.world import World

Watch = Callable[[Grounding, Sequence[PhraseRow]], None]
"""Receives the grounding of every sample and its rows."""


@dataclass(frozen=True)
class MeasuredSample:
    """One sample: its rows and, of a narration, its keywords, or the error that it raised."""

    index: int
    rows: tuple[PhraseRow, ...]
    error: FlmmError | None = None
    keywords: KeywordScores | None = None


def measure_batches(
    method: MaskMethod,
    samples: Sequence[Sample],
    batches: Sequence[list[int]],
    *,
    watch: Watch | None = None,
    workers: Workers = 0,
    throughput: Throughput | None = None,
) -> Iterator[list[MeasuredSample]]:
    """Score batches of samples, given by their indices, one batch at a time.

    Args as for `evaluate`; `throughput` is updated.
    """
    folder: Path | None = getattr(samples, "folder", None)
    dataset, throughput = ExampleDataset(samples, method.source), throughput or Throughput()
    reading = read_batches(dataset, batches, workers=workers)
    for batch, unusable in throughput.waiting(reading):
        found = [MeasuredSample(one.index, (), one.error) for one in unusable]
        if batch is not None:
            started = time.monotonic()
            groundings = method.ground(batch.inputs)
            taken = time.monotonic() - started
            rows = rows_from_masks(
                groundings, batch, seconds=taken, folder=folder, calibrate=method.calibrate,
                abstain_below=method.abstain_below,
            )  # fmt: skip
            if watch is not None:
                for grounding, rows_of_one in zip(groundings, rows, strict=True):
                    watch(grounding, rows_of_one)
            scored = map(_keywords, batch.samples, groundings)
            found += map(MeasuredSample, batch.indices, rows, repeat(None), scored)
            throughput.count(batch.samples)
        yield sorted(found, key=lambda one: one.index)


def _keywords(sample: Sample, grounding: Grounding) -> KeywordScores | None:
    if not sample.narrated or grounding.keywords is None:
        return None
    scores = KeywordScores()
    scores.add(sample, grounding.keywords)
    return scores


def evaluate(
    method: MaskMethod,
    samples: Sequence[Sample],
    *,
    batch_size: int = 16,
    workers: Workers = 0,
    limit: int | None = None,
    max_skipped: SkipLimit | None = None,
    watch: Watch | None = None,
    progress: Progress | None = None,
    name: str = "Evaluating",
    world: World | None = None,
) -> Evaluation:
    """Score a method on samples; the processes of a world share them and return the same scores.

    Args:
        method: A head must be in evaluation mode.
        batch_size: The scores do not depend on it.
        workers: See `count_workers`.
        limit: Maximum number of samples.
        max_skipped: How much may be left out because it cannot be used.
        watch: Receives this process's share.
        name: Name of the stage in the progress.

    Raises:
        FlmmError: Too much cannot be used; without `max_skipped`, a sample cannot.
    """
    world = world or World()
    total = min(limit or len(samples), len(samples))
    protocol = getattr(samples, "protocol", "standard")
    result, started = Evaluation(protocol=protocol), time.monotonic()
    throughput, batches = Throughput(), world.share(image_batches(samples, total, batch_size))
    left_out, left = LeftOut(samples, max_skipped or SkipLimit.given("100%"), used=total), total
    with (progress or Progress()).stage(name, total) as stage:
        with world.agreed():
            for batch in measure_batches(
                method, samples, batches, watch=watch, workers=workers, throughput=throughput
            ):
                for one in batch:
                    if one.error is None:
                        result.add(one.rows, one.keywords)
                    elif max_skipped is None:
                        raise one.error
                    else:
                        left_out.add(one.index, str(one.error))
                left -= (shown := min(left, len(batch) * world.size))  # as if all were equally far
                stage.advance(shown, cIoU=result["ciou"], **throughput.figures())
        if world.size > 1:
            shares = world.gather((result, left_out.unusable))
            result = Evaluation(protocol=protocol)
            with world.agreed():
                for share, unusable in shares:
                    result.merge(share)
                    for index, reason in unusable.items():
                        left_out.add(index, reason)
            stage.advance(left, cIoU=result["ciou"], **throughput.figures())
    result.seconds = time.monotonic() - started
    result.left_out = left_out.to_list()
    result.skipped = len(result.left_out)
    return result


def check_can_abstain(methods: Sequence[str]) -> None:
    """UsageError for a method other than the head: only a head's masks have probabilities."""
    others = [method for method in methods if method != "head"]
    if others:
        raise UsageError(
            f"The method '{others[0]}' cannot answer \"not there\".",
            found="Only a head's masks have probabilities.",
            repair="Omit --abstain, or evaluate this method separately.",
        )


def open_method(
    name: str,
    grounder: Grounder,
    data: Sequence[str],
    protocol: str,
    refiner_weights: Path | None = None,
    abstain_below: float | None = None,
) -> MaskMethod:
    """The head of a grounder, or a method without training on the same frozen models.

    Args:
        name: One of `flmm_core.evaluation.baselines.METHODS`.
        data: Sources of labeled samples, read with `protocol` by a method without training.
        refiner_weights: As for `make_baseline`.
        abstain_below: For the head.
    """
    if name == "head":
        captions = grounder.head.keywords is not None
        source = ObservedFeatures(grounder.observer, captions=captions)
        return head_method(source, grounder.head, grounder.confidence, abstain_below)
    labeled = open_sources(data, protocol)
    recipe = grounder.info.recipe
    return make_baseline(name, grounder.observer, recipe, labeled, refiner_weights)


def evaluate_run(
    run: str | Path,
    data: Sequence[str] = ("shapes@test",),
    *,
    method: str = "head",
    method_data: Sequence[str] = (),
    protocol: str | None = None,
    abstain: bool = False,
    device: str = "auto",
    refiner_weights: Path | None = None,
    batch_size: int = 16,
    workers: Workers = "auto",
    limit: int | None = None,
    max_skipped: str = MAX_SKIPPED,
    progress: Progress | None = None,
    world: World | None = None,
    **behind: Any,
) -> dict[str, Any]:
    """Evaluate a trained head on data sets; the processes of a world share the samples.

    Args:
        run: A run folder, a head folder or a hub id.
        data: Sources as for `--data`.
        method: One of `flmm_core.evaluation.baselines.METHODS`.
        method_data: Sources of labeled samples for a method without training; by default the
            head's training data.
        protocol: By default that of the head's training.
        abstain: Answer "not there" below the head's threshold.
        device: "auto" selects the first accelerator.
        refiner_weights: Weights file of the refiner, if training needed one.
        limit: Maximum number of samples per source.
        max_skipped: How much of a source may be left out because it cannot be used.
        behind: What else `Grounder.from_pretrained` takes: `model`, `dtype`, `quantize`, ...

    Returns:
        The settings and the scores by source, ready for JSON.

    Raises:
        UsageError: `abstain` with a head without threshold, or with another method.
        FlmmError: Weights or data are missing or broken.
    """
    world = world or World()
    progress = progress if world.is_main else None
    with world.main_first():  # it may have to draw scenes
        check_method(method)
        most_skipped = SkipLimit.given(max_skipped)
        if abstain:
            check_can_abstain([method])
        problems = Problems()
        device = world.device(device, behind.get("device_map", "none"))
        info = check_head(run, problems, device=device, refiner_weights=refiner_weights, **behind)
        facts = info.facts if info else {}
        protocol = protocol or str(facts.get("protocol", "standard"))
        sources: dict[str, ImageSamples] = {}
        for text in data:
            with problems.part():
                sources[text] = open_source(text, protocol)
        method_data = method_data or facts.get("data", ())
        if method != "head":
            open_sources(method_data, protocol, problems=problems)
        problems.check()
    with world.agreed():
        grounder = Grounder.from_pretrained(
            run, device=device, refiner_weights=refiner_weights, **behind
        )
        recipe = grounder.info.recipe
        below = chosen_threshold(grounder.confidence, str(run)) if abstain else None
        maker = open_method(method, grounder, method_data, protocol, refiner_weights, below)
    scores = {
        text: evaluate(
            maker,
            samples,
            batch_size=batch_size,
            workers=workers,
            limit=limit,
            max_skipped=most_skipped,
            progress=progress,
            name=f"Evaluating {text}",
            world=world,
        )
        for text, samples in sources.items()
    }
    return {
        "run": str(run),
        "method": {"name": method, **maker.settings},
        "backbone": recipe.backbone,
        "model": recipe.model,
        **recipe.changes,
        "reads": grounder.backbone.rendered_prompt(),
        "refiner": recipe.refiner,
        "refiner_options": dict(recipe.refiner_options),
        "protocol": protocol,
        "abstain_below": below,
        "limit": limit,
        "data": {text: {"protocol": protocol, **each.to_dict()} for text, each in scores.items()},
    }
