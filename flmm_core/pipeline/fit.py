"""Whether weights fit a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flmm_core.errors import WeightsError


def check_weights(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, asked: str, repair: str
) -> None:
    """`WeightsError` unless `given` has exactly the names and shapes of `own`."""
    problems = [f"missing {name}" for name in own if name not in given]
    problems += [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [f"unexpected {name}" for name in given if name not in own]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        found = f"{len(problems)} differences: {'; '.join(problems[:3])}{more}."
        raise WeightsError(asked, found=found, repair=repair)
