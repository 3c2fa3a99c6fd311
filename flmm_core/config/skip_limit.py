"""`--max-skipped`: how much of a data source a command may leave out."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Self

from flmm_core.errors import UsageError

MAX_SKIPPED = "1%"
"""The default."""
EXPECTED = "a number of items (20) or a share of the source (1%, 0.5%)"


@dataclass(frozen=True)
class SkipLimit:
    """A number of items, or a share of all.

    Attributes:
        text: As written: "20" or "1%".
        share: Whether `value` is a fraction of 1, not a number.
    """

    text: str
    value: Fraction
    share: bool

    @classmethod
    def parse(cls, given: object) -> Self:
        """ValueError for anything but a number >= 0, or a percentage from 0 to 100."""
        text = str(given).strip()
        number, percent, rest = text.partition("%")
        digits = number.strip().replace(".", "", 1)
        wrong = rest or len(text) > 20 or not (digits.isascii() and digits.isdigit())
        if wrong or isinstance(given, (bool, float)) or ("." in number and not percent):
            raise ValueError(f"must be {EXPECTED}, not {given!r}")
        value = Fraction(number.strip())
        if percent and value > 100:
            raise ValueError(f"must be at most 100%, not {given!r}")
        return cls(text, value / 100 if percent else value, bool(percent))

    @classmethod
    def given(cls, text: str) -> Self:
        """As `parse`, for an option; UsageError if it cannot be read."""
        try:
            return cls.parse(text)
        except ValueError as error:
            raise UsageError(f"--max-skipped {error}.") from error

    def allows(self, *losses: tuple[int, int]) -> bool:
        """Whether losses (left out, of how many) are together within the limit.

        Numbers are added; so are shares, each of its own total.
        """
        if not self.share:
            return sum(lost for lost, _ in losses) <= self.value
        shares = (Fraction(lost, max(total, 1)) for lost, total in losses)
        return sum(shares, Fraction(0)) <= self.value
