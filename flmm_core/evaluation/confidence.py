"""How likely a mask is right, and when to say "not there": fitted once, kept beside the head.

The raw score is `Grounding.evidence`. A calibrator turns it into the probability that the mask's
IoU is at least 0.5 (`metrics.calibration`); where the data that it is fitted on names
things that are absent, a threshold below which to answer "not there" is chosen as well
(`metrics.abstention`).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flmm_core.data import rle
from flmm_core.errors import FlmmError, UsageError, WeightsError
from flmm_core.evaluation.metrics.abstention import Abstention, choose_threshold
from flmm_core.evaluation.metrics.calibration import (
    Calibrator,
    calibrator_from_dict,
    fit_calibrator,
    is_right,
)
from flmm_core.evaluation.metrics.masks import intersection_union

if TYPE_CHECKING:
    from flmm_core.loader.dataset import Examples
    from flmm_core.pipeline.types import Grounding

FILE = "confidence.json"
FORMAT = 1
ENOUGH = 1000
"""With so many masks any rising function is fitted; with fewer a sigmoid."""


@dataclass
class Judgements:
    """What is known of some masks: how much spoke for each, and how it compared with the truth.

    Attributes:
        evidence: `Grounding.evidence` of each mask.
        intersections: In pixels.
        unions: In pixels.
        absent: Whether nothing in the image was meant.
    """

    evidence: list[float] = field(default_factory=list)
    intersections: list[int] = field(default_factory=list)
    unions: list[int] = field(default_factory=list)
    absent: list[bool] = field(default_factory=list)

    def add(self, groundings: Sequence[Grounding], batch: Examples) -> None:
        """Take a batch; pixels to be ignored count for nothing, as in the scores."""
        for grounding, truth, sample in zip(groundings, batch.truths, batch.samples, strict=True):
            ignored, size = [phrase.ignore for phrase in sample.phrases], truth.shape[1:]
            there = rle.counted(ignored, (int(size[0]), int(size[1])))
            found = grounding.masks.cpu().numpy() & there
            both, either = intersection_union(found, truth.numpy() & there)
            self.evidence += grounding.evidence.tolist()
            self.intersections += both.tolist()
            self.unions += either.tolist()
            self.absent += (~truth.flatten(1).any(1)).tolist()


@dataclass(frozen=True)
class Confidence:
    """From the evidence for masks to probabilities, and a threshold on these.

    Attributes:
        calibrator: Never lowers a probability as the evidence rises.
        abstention: The threshold for "not there"; None if no data with absent things was at hand.
        masks: How many the calibrator was fitted on.
    """

    calibrator: Calibrator
    abstention: Abstention | None
    masks: int

    def __call__(self, evidence: ArrayLike) -> NDArray[np.float64]:
        """(P,) evidence -> (P,) probabilities that the masks are right, 0 to 1."""
        return self.calibrator(evidence)

    @property
    def threshold(self) -> float | None:
        """Below this probability the answer is "not there"; None if none was chosen."""
        return self.abstention.threshold if self.abstention else None

    @classmethod
    def fit(cls, judged: Judgements) -> Confidence:
        """Fit on the masks of validation data.

        The threshold is the one that serves phrases of absent and of present things equally well
        ("balanced").

        Raises:
            DataError: There are no masks.
        """
        right = is_right(judged.intersections, judged.unions)
        masks = len(judged.evidence)
        kind = "isotonic" if masks >= ENOUGH else "platt"
        calibrator = fit_calibrator(judged.evidence, right, kind)
        abstention = None
        if len(set(judged.absent)) == 2:
            abstention = choose_threshold(
                calibrator(judged.evidence),
                np.divide(judged.intersections, np.maximum(judged.unions, 1)),
                judged.absent,
                quantity="balanced",
            )
        return cls(calibrator, abstention, masks)

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "format": FORMAT,
            "masks": self.masks,
            "calibrator": self.calibrator.to_dict(),
            "not_there": self.abstention.to_dict() if self.abstention else None,
        }

    @classmethod
    def from_dict(cls, stored: dict[str, Any]) -> Confidence:
        """What `to_dict` gave.

        Raises:
            ValueError, KeyError, TypeError, FlmmError: It is no such thing.
        """
        if stored["format"] != FORMAT:
            raise ValueError(f"its format is {stored['format']}, this version reads {FORMAT}")
        abstention = Abstention(**stored["not_there"]) if stored["not_there"] else None
        if abstention and not 0 <= float(abstention.threshold) < 2:
            raise ValueError(f"a threshold of {abstention.threshold}")
        return cls(calibrator_from_dict(stored["calibrator"]), abstention, int(stored["masks"]))


def chosen_threshold(confidence: Confidence | None, head: str, *, instead: str = "") -> float:
    """The threshold for "not there" that training chose.

    Args:
        confidence: The head's.
        head: What the user called the head.
        instead: What else would do, where there are at least probabilities.

    Raises:
        UsageError: It chose none.
    """
    threshold = confidence.threshold if confidence else None
    if threshold is None:
        also = f", or {instead}" if confidence and instead else ""
        raise UsageError(
            f"The head '{head}' has no threshold for \"not there\".",
            found="Its validation data named nothing that is absent."
            if confidence
            else "It was trained without validation data.",
            repair="Train it with --val-data that has phrases without target "
            f"(docs/confidence.md){also}.",
        )
    return threshold


def check_can_abstain(methods: Sequence[str]) -> None:
    """UsageError if masks are not made by a head: only a head's have probabilities."""
    others = [method for method in methods if method != "head"]
    if others:
        raise UsageError(
            f"The method '{others[0]}' cannot say that a thing is not there.",
            found="Only a head's masks have probabilities.",
            repair="Leave out --abstain, or measure the method without it by itself.",
        )


def write_confidence(folder: Path, confidence: Confidence) -> None:
    """Put it beside a head, whole or not at all."""
    partial = folder / f".{FILE}"
    partial.write_text(json.dumps(confidence.to_dict(), indent=2) + "\n", encoding="utf-8")
    partial.replace(folder / FILE)


def read_confidence(folder: Path) -> Confidence | None:
    """What stands beside a head; None if it was trained without validation data.

    Raises:
        WeightsError: The file is broken.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        return Confidence.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError, FlmmError) as error:
        reason = str(error).splitlines()[0] if str(error) else ""
        raise WeightsError(
            f"'{path}' does not hold a head's confidence.",
            found=f"{type(error).__name__}: {reason}",
            repair="Copy it again; without the file the head gives no probabilities.",
        ) from error
