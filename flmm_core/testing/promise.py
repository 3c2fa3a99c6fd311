"""How a check says that a promise is kept, broken or not made."""

from __future__ import annotations

import torch
from torch import Tensor

TOLERANCE = 1e-4
"""The largest allowed difference in float32, relative to the largest value."""


class BrokenPromiseError(AssertionError):
    """A backbone does not keep its contract.

    Attributes:
        what: What was examined, where.
        expected: As the contract says.
        found: What the backbone gave.
    """

    def __init__(self, what: str, expected: str, found: str) -> None:
        super().__init__(f"{what}: expected {expected}, found {found}")
        self.what, self.expected, self.found = what, expected, found


class NotPromised(Exception):  # noqa: N818 (nothing is wrong)
    """The backbone does not make this promise; its text says why."""


def require(condition: object, what: str, *, expected: object, found: object) -> None:
    """Raise unless the condition holds; unlike `assert`, also under `python -O`."""
    if not condition:
        raise BrokenPromiseError(what, str(expected), str(found))


def require_equal(found: object, expected: object, what: str) -> None:
    """Raise unless both are equal."""
    require(found == expected, what, expected=repr(expected), found=repr(found))


def require_near(found: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless two tensors have one shape and differ by at most `TOLERANCE`."""
    require_equal(tuple(found.shape), tuple(expected.shape), f"shape of {what}")
    if not expected.numel():
        return
    difference = found.float() - expected.float()
    worst = float(difference.abs().max() / expected.float().abs().max().clamp_min(1e-30))
    place = tuple(int(i) for i in torch.unravel_index(difference.abs().argmax(), found.shape))
    require(  # not `worst > TOLERANCE`: nan is never near
        worst <= TOLERANCE,
        what,
        expected=f"{float(expected[place]):.6g} at {place}",
        found=f"{float(found[place]):.6g}, which differs by {worst:.1e} of the largest value "
        f"({TOLERANCE:.0e} is allowed)",
    )
