"""Models of real sizes with random weights, for a GPU."""

from __future__ import annotations

import torch

from bench.cases import CaseSpec


def refusal() -> str | None:
    """Why real sizes cannot be measured here, or None."""
    if torch.cuda.is_available():
        return None
    return (
        "Real sizes need a GPU.\n"
        f"torch {torch.__version__} sees no CUDA device here.\n"
        "Run `python -m bench gpu` on a machine with one (80 GB for the 7B models), "
        "or `python -m bench recording` here."
    )


def specs(kind: str) -> list[CaseSpec]:
    """The cases of a kind."""
    return []
