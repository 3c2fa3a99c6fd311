"""When to say that the thing is not there: a threshold chosen on validation data.

A flow answers "not there" where the calibrated probability of its mask is below the threshold.
The threshold is the one that maximises, on validation data, one of

    giou      the mean over samples of what gRefCOCO's gIoU counts: a mask that is given counts
              its IoU (0 where there is no target), "not there" counts 1 where there is no
              target and 0 where there is one
    balanced  the mean of N-acc and T-acc: how often "not there" is said rightly and a mask is
              given rightly, samples with and without target weighing the same

Candidates lie halfway between neighbouring probabilities, with 0 (always answer) and a number
above 1 (never answer). Of equally good ones the lowest is taken, so without a gain nothing is
held back.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from flmm_core.errors import DataError, UsageError, did_you_mean
from flmm_core.evaluation.metrics.masks import same_length

QUANTITIES = ("giou", "balanced")


@dataclass(frozen=True)
class Abstention:
    """A chosen threshold.

    Attributes:
        threshold: Below this probability the answer is "not there"; 0 never is, above 1 always.
        quantity: What was maximised, one of `QUANTITIES`.
        value: What it reached on the validation samples.
        without: What it would be if a mask were always given.
        samples: How many validation samples there were.
    """

    threshold: float
    quantity: str
    value: float
    without: float
    samples: int

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def choose_threshold(
    probabilities: ArrayLike,
    ious: ArrayLike,
    no_target: ArrayLike,
    *,
    quantity: str = "giou",
) -> Abstention:
    """Choose the threshold for "not there" on validation data, in O(n log n).

    Args:
        probabilities: (P,) calibrated probability of each sample's mask, 0 to 1.
        ious: (P,) the mask's IoU, whatever it is where there is no target.
        no_target: (P,) whether the sample has no target.
        quantity: What to maximise, one of `QUANTITIES`.

    Raises:
        DataError: There are no samples, or for "balanced" none with or none without target.
        UsageError: There is no such quantity.
        ValueError: A probability or an IoU is not between 0 and 1, or the lengths differ.
    """
    scores, overlap = np.asarray(probabilities, np.float64), np.asarray(ious, np.float64)
    absent = np.asarray(no_target, bool)
    if quantity not in QUANTITIES:
        raise UsageError(
            f"Unknown quantity '{quantity}'. {did_you_mean(quantity, QUANTITIES)}".strip(),
            found=f"Known: {', '.join(QUANTITIES)}.",
        )
    count = same_length(probabilities=scores, ious=overlap, no_target=absent)
    for name, values in (("a probability", scores), ("an IoU", overlap[~absent])):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} is not between 0 and 1")
    none = int(absent.sum())
    if not count or (quantity == "balanced" and none in (0, count)):
        raise DataError(
            f"Cannot choose a threshold for 'not there' by {quantity}.",
            found=f"{count - none} validation samples with a target, {none} without.",
            repair="Give validation data with both kinds.",
        )
    if quantity == "giou":
        given, withheld = np.where(absent, 0.0, overlap) / count, absent / count
    else:
        given = np.where(absent, 0.0, 0.5 / (count - none))
        withheld = np.where(absent, 0.5 / none, 0.0)

    # values[k]: the quantity if the samples of the k lowest distinct probabilities are withheld.
    distinct, place = np.unique(scores, return_inverse=True)
    change = np.bincount(place, weights=withheld - given)
    values = given.sum() + np.concatenate([[0.0], np.cumsum(change)])
    # Between two neighbouring floats there is no half: the upper one parts them as well.
    halfway = np.maximum((distinct[:-1] + distinct[1:]) / 2, np.nextafter(distinct[:-1], 1))
    thresholds = np.concatenate([[0.0], halfway, [np.nextafter(1.0, 2.0)]])
    # Rounded, so that the noise of float sums does not choose between equal ones.
    best = int(np.argmax(values.round(12)))
    return Abstention(
        float(thresholds[best]), quantity, float(values[best]), float(values[0]), count
    )
