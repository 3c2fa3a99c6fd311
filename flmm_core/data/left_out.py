"""What a command leaves out of its data, and when `--max-skipped` says that it is too much."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from flmm_core.config import SkipLimit
from flmm_core.data.findings import Skipped
from flmm_core.data.protocols import LazySamples
from flmm_core.data.sample import Sample
from flmm_core.errors import DataError

logger = logging.getLogger(__name__)

SHOWN = 10
"""Number of samples of a source that are logged one by one."""


@dataclass
class Losses:
    """What is left out of one source.

    Attributes:
        source: Names it in messages.
        items: What the reader left out.
        objects: Number of objects that the reader kept.
        samples: Number of samples that they make, or that are used of them.
        unusable: Samples that cannot be read or that the model cannot take, by index.
    """

    source: str
    items: Sequence[Skipped]
    objects: int
    samples: int
    unusable: dict[int, Skipped] = field(default_factory=dict)

    def check(self, limit: SkipLimit) -> None:
        """DataError if they are more than the limit allows, or all.

        A share counts what the reader left out among its objects, and unusable samples among all
        samples; the two are added.
        """
        lost = [item for item in self.items if item.counts]
        objects, unusable = len(lost) + self.objects, len(self.unusable)
        all_lost = 0 < self.samples == unusable
        if limit.allows((len(lost), objects), (unusable, self.samples)) and not all_lost:
            return
        of = [f"{len(lost)} of {objects} objects"] if lost else []
        of += [f"{unusable} of {self.samples} samples"] if unusable else []
        last = [*lost, *self.unusable.values()][-1]
        raise DataError(
            f"More of '{self.source}' cannot be used than --max-skipped {limit.text} allows."
            if not all_lost
            else f"No sample of '{self.source}' can be used.",
            found=f"Left out: {' and '.join(of)}. The last is {last.name}: {last.reason}",
            repair="Repair the data (`flmm data check`, with --backbone, lists it), or raise "
            "--max-skipped.",
        )


class LeftOut:
    """What is left out of some samples, by source.

    Args:
        samples: Of one source or of several, each of which has the limit for itself.
        limit: Of what may be left out.
        used: The number of samples that are used, if not all.

    Attributes:
        unusable: Why samples cannot be used, by their index.

    Raises:
        DataError: The readers left out too much already.
    """

    def __init__(
        self, samples: Sequence[Sample], limit: SkipLimit, used: int | None = None
    ) -> None:
        self.limit = limit
        self.unusable: dict[int, str] = {}
        self._sources = samples.sources if isinstance(samples, LazySamples) else (samples,)
        self._losses: list[Losses] = []
        for source in self._sources:
            total = len(source) if used is None else min(used, len(source))
            losses = Losses("the samples", (), len(source), total)
            if isinstance(source, LazySamples):
                losses = Losses(source.title, source.skipped, source.objects, total)
            losses.check(limit)
            self._losses.append(losses)

    def add(self, index: int, reason: str) -> None:
        """Leave out a sample; DataError if it is one too many. Twice the same counts once."""
        if index in self.unusable:
            return
        self.unusable[index] = reason
        part = 0
        while index >= len(self._sources[part]):
            index, part = index - len(self._sources[part]), part + 1
        source, losses = self._sources[part], self._losses[part]
        name = source.name(index) if isinstance(source, LazySamples) else f"sample {index}"
        item = Skipped.because(name, reason)
        losses.unusable[index] = item
        losses.check(self.limit)
        if len(losses.unusable) <= SHOWN:
            logger.warning("left out: %s: %s", item.name, item.reason)

    def to_list(self) -> list[dict[str, str]]:
        """All that is lost, what the readers left out first, in order, ready for JSON."""
        lost = [item for losses in self._losses for item in losses.items if item.counts]
        lost += [item for losses in self._losses for _, item in sorted(losses.unusable.items())]
        return [{"item": item.name, "reason": item.reason} for item in lost]
