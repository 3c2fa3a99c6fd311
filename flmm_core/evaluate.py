"""Scores of a head on data sets, coarse and refined masks side by side."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.baselines import Method, make_method
from flmm_core.batches import ExampleDataset, Examples, load_batches
from flmm_core.checkpoint import Grounder
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source, open_sources
from flmm_core.metrics import CalibrationScores, MaskScores, intersection_union, is_right
from flmm_core.pipeline.types import Grounding
from flmm_core.progress import Progress


@dataclass
class Evaluation:
    """Scores on one source.

    Attributes:
        coarse: Of the mask head's masks, enlarged to the picture.
        refined: Of the final masks.
        calibration: Of their probabilities; None where there are none.
        samples: How many captions were read.
        seconds: Wall-clock time.
    """

    coarse: MaskScores = field(default_factory=MaskScores)
    refined: MaskScores = field(default_factory=MaskScores)
    calibration: CalibrationScores | None = None
    samples: int = 0
    seconds: float = 0.0

    def add(
        self,
        groundings: Sequence[Grounding],
        batch: Examples,
        confidence: Callable[[Any], Any] | None = None,
    ) -> None:
        """Count a batch; with a confidence its probabilities too."""
        for grounding, truth, sample in zip(groundings, batch.truths, batch.samples, strict=True):
            slices = [phrase.slice for phrase in sample.phrases]
            size = (truth.shape[1], truth.shape[2])
            self.coarse.add(at_picture_size(grounding.coarse_logits, size).cpu(), truth, slices)
            both, either = intersection_union(grounding.masks.cpu(), truth)
            self.refined.add_counts(both, either, slices)
            if confidence is not None:
                self.calibration = self.calibration or CalibrationScores()
                likely = confidence(grounding.evidence.cpu().numpy())
                self.calibration.add(likely.tolist(), is_right(both, either).tolist())
            self.samples += 1

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON; IoUs as fractions of 1."""
        calibration = {"calibration": self.calibration.to_dict()} if self.calibration else {}
        return {
            "coarse": self.coarse.to_dict(),
            "refined": self.refined.to_dict(),
            **calibration,
            "samples": self.samples,
            "seconds": round(self.seconds, 1),
        }


def at_picture_size(coarse_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """(P, h, w) logits -> (P, H, W) bool: probabilities enlarged, then above one half."""
    probs = F.interpolate(coarse_logits.sigmoid()[:, None], size, mode="bilinear")
    return probs[:, 0] > 0.5


def evaluate(
    grounder: Grounder,
    samples: Sequence[Sample],
    *,
    flow: Method | None = None,
    watch: Callable[[Sequence[Grounding], Examples], None] | None = None,
    batch_size: int = 16,
    workers: int = 0,
    progress: Progress | None = None,
    name: str = "Evaluating",
) -> Evaluation:
    """Score a flow on samples; every one is counted, none skipped.

    Args:
        grounder: The flow; its training mode is restored afterwards.
        samples: What to ground, with the truth.
        flow: What makes the masks, by default the grounder; see `flmm_core.baselines`.
        watch: Is shown every batch and what was made of it.
        batch_size: Samples that go through the flow together; the scores do not depend on it.
        workers: Processes that read pictures.
        progress: Is told how far it is.
        name: What to call this in the progress.
    """
    was_training = grounder.training
    grounder.eval()
    result, started = Evaluation(), time.monotonic()
    flow = flow or grounder
    confidence = grounder.confidence if flow is grounder else None  # fitted on the head's masks
    dataset = ExampleDataset(samples, grounder)
    batches = load_batches(dataset, batch_size=batch_size, workers=workers)
    with torch.no_grad(), (progress or Progress()).stage(name, len(samples)) as stage:
        for batch in batches:
            groundings = flow(batch.inputs)
            result.add(groundings, batch, confidence)
            if watch is not None:
                watch(groundings, batch)
            stage.advance(len(batch.samples), cIoU=result.refined.ciou)
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
    device: str = "auto",
    model: str | None = None,
    refiner_weights: Path | None = None,
    batch_size: int = 16,
    limit: int | None = None,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Score a trained head on data sets.

    Args:
        run: A run folder, a head folder or a hub id.
        data: Sources as `--data` takes them.
        method: What makes the masks, one of `flmm_core.baselines.METHODS`.
        method_data: Sources that a method without training is fitted to by a few samples; by
            default those that the head was trained on.
        protocol: By default the one that the head was trained with.
        device: "auto" takes the first accelerator.
        model: Where the VLM lies here, if not where it lay in training.
        refiner_weights: SAM's own file, where the head was trained with an official SAM.
        batch_size: Samples that go through the flow together.
        limit: Only the first so many samples of each source.
        progress: Is told how far it is.

    Returns:
        Ready for JSON: the run, its backbone, the protocol, and the scores by source.
    """
    grounder = Grounder.from_pretrained(
        run, device=device, model=model, refiner_weights=refiner_weights
    )
    protocol = protocol or str(grounder.facts.get("protocol", "standard"))
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
        "limit": limit,
        "data": {
            text: evaluate(
                grounder,
                samples[:limit] if limit else samples,
                flow=flow,
                batch_size=batch_size,
                progress=progress,
                name=f"Evaluating {text}",
            ).to_dict()
            for text, samples in sources.items()
        },
    }
