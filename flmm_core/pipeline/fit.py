"""Whether weights fit a module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from flmm_core.errors import WeightsError


def check_weights(
    own: Mapping[str, Tensor], given: Mapping[str, Tensor], *, asked: str, repair: str
) -> None:
    """`WeightsError` unless `given` has exactly the names and shapes of `own`, in finite floats."""
    if problems := weight_problems(own, given):
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        found = f"{len(problems)} differences: {'; '.join(problems[:3])}{more}."
        raise WeightsError(asked, found=found, repair=repair)


def weight_problems(own: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> list[str]:
    """Why `given` does not have the names and shapes of `own`, in finite floats: a line each."""
    problems = [f"missing {name} {tuple(x.shape)}" for name, x in own.items() if name not in given]
    problems += [
        f"{name} is {tuple(given[name].shape)} instead of {tuple(tensor.shape)}"
        for name, tensor in own.items()
        if name in given and given[name].shape != tensor.shape
    ]
    problems += [
        f"unexpected {name} {tuple(x.shape)}" for name, x in given.items() if name not in own
    ]
    if not problems:
        problems += [f"{name} {wrong}" for name, x in given.items() if (wrong := _no_numbers(x))]
    return problems


def _no_numbers(tensor: Tensor) -> str:
    """What is wrong with the values of a weight; empty if nothing is."""
    if not tensor.is_floating_point():
        return f"holds {str(tensor.dtype).removeprefix('torch.')}, not floats"
    # A sum needs no memory; it may overflow although all values are finite.
    if tensor.is_meta or tensor.sum().isfinite() or tensor.isfinite().all():
        return ""
    return "holds values that are not finite"
