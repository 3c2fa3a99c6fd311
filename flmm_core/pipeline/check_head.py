"""What `Grounder.from_pretrained` would refuse, found in seconds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from flmm_core.errors import Problems
from flmm_core.pipeline.build import check_flow
from flmm_core.pipeline.confidence import read_confidence
from flmm_core.pipeline.head_folder import HeadInfo, find_head, read_info, read_weights
from flmm_core.spec import Quantize


def check_head(
    source: str | os.PathLike[str],
    problems: Problems,
    *,
    model: str | None = None,
    model_revision: str | None = None,
    adapter: str | None = None,
    quantize: Quantize | None = None,
    device: str | torch.device = "auto",
    refiner_weights: Path | None = None,
    revision: str | None = None,
    **pass_through: Any,
) -> HeadInfo | None:
    """Add what is wrong with a trained head and the files behind it to `problems`.

    The head is read, and of all other weights only the headers. Args as for `from_pretrained`.

    Returns:
        What the head's folder says; None if that cannot be read.
    """
    info: HeadInfo | None = None
    with problems.part():
        folder = find_head(source, revision=revision)
        info = read_info(folder)
        read_weights(folder)
        read_confidence(folder)
    if info is not None:
        recipe = info.recipe.behind(
            model=model, revision=model_revision, adapter=adapter, quantize=quantize
        )
        check_flow(recipe, problems, device=device, refiner_weights=refiner_weights, **pass_through)
    return info
