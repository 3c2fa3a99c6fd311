"""How likely a mask is right, and when to answer "not there": part of a head's folder. No torch.

The raw score is `Grounding.evidence`. A calibrator maps it to the probability that the mask's IoU
with the truth is at least 0.5. Both calibrators are non-decreasing. Fitting is in
`flmm_core.evaluation.calibration`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import from_json

from flmm_core.errors import UsageError, WeightsError, first_problem
from flmm_core.files import SEAL, sealed, write_json

FILE = "confidence.json"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Isotonic(_Frozen):
    """Linear interpolation between fitted points, constant beyond the first and the last.

    The scores increase strictly; the probabilities, 0 to 1, do not fall.
    """

    kind: Literal["isotonic"] = "isotonic"
    scores: Annotated[tuple[float, ...], Field(min_length=1)]
    probabilities: tuple[Annotated[float, Field(ge=0, le=1)], ...]

    @model_validator(mode="after")
    def _never_falls(self) -> Self:
        if len(self.scores) != len(self.probabilities):
            raise ValueError(f"{len(self.scores)} scores, {len(self.probabilities)} probabilities")
        if (np.diff(self.scores) <= 0).any():
            raise ValueError("the scores do not rise")
        if (np.diff(self.probabilities) < 0).any():
            raise ValueError("the probabilities fall")
        return self

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        return np.interp(np.asarray(scores, np.float64), self.scores, self.probabilities)


class Platt(_Frozen):
    """sigmoid(slope * score + offset)."""

    kind: Literal["platt"] = "platt"
    slope: Annotated[float, Field(ge=0)]
    offset: float

    def __call__(self, scores: ArrayLike) -> NDArray[np.float64]:
        logits = self.slope * np.asarray(scores, np.float64) + self.offset
        return np.asarray(np.exp(-np.logaddexp(0, -logits)))


class NotThere(_Frozen):
    """The threshold for "not there", chosen on validation data.

    Attributes:
        threshold: Answer "not there" below this probability; 0: never, above 1: always.
        quantity: What the threshold maximizes; `value` is its maximum, `without` its value
            without a threshold.
        samples: Number of validation phrases.
    """

    threshold: Annotated[float, Field(ge=0, lt=2)]
    quantity: str
    value: float
    without: float
    samples: int

    def __str__(self) -> str:
        return (
            f'"not there" below a probability of {self.threshold:.2f}: mean of N-acc and T-acc '
            f"{self.value:.3f} ({self.samples} phrases)"
        )


class Confidence(_Frozen):
    """Maps the evidence for masks to probabilities, fitted on a number of `masks`.

    `not_there` is None if the validation data had no phrases without target.
    """

    format: Literal[1] = 1
    masks: int
    calibrator: Annotated[Isotonic | Platt, Field(discriminator="kind")]
    not_there: NotThere | None

    def __call__(self, evidence: ArrayLike) -> NDArray[np.float64]:
        """(P,) evidence -> (P,) probabilities that the masks are right, 0 to 1."""
        return self.calibrator(evidence)

    @property
    def threshold(self) -> float | None:
        """Answer "not there" below this probability; None if none was chosen."""
        return self.not_there.threshold if self.not_there else None


def chosen_threshold(confidence: Confidence | None, head: str) -> float:
    """The threshold for "not there" that was chosen in training; `UsageError` if there is none.

    `head` is the head as the user named it.
    """
    threshold = confidence.threshold if confidence else None
    if threshold is None:
        raise UsageError(
            f"The head '{head}' has no threshold for \"not there\".",
            found="Its validation data had no phrases without target."
            if confidence
            else "It was trained without validation data.",
            repair="Train it with --val-data that has phrases without target (docs/metrics.md).",
        )
    return threshold


def write_confidence(folder: Path, confidence: Confidence) -> None:
    """Write `confidence.json` into a head's folder, whole or not at all."""
    write_json(folder / FILE, sealed(confidence.model_dump(mode="json")))


def read_confidence(folder: Path) -> Confidence | None:
    """Read `confidence.json` from a head's folder; None if missing, `WeightsError` if broken."""
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = from_json(path.read_bytes(), allow_inf_nan=False)
        if content.pop(SEAL, None) not in (None, sealed(content)[SEAL]):  # None: an earlier version
            raise ValueError("it changed since it was written, its digest is another")
        return Confidence.model_validate_json(json.dumps(content))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise WeightsError(
            f"'{path}' is not a valid confidence file.",
            found=f"{found}.",
            repair="Copy it again; without this file the head gives no probabilities.",
        ) from error
