"""Values that are not finite: an error that names the number type, where they appear."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flmm_core.errors import RunError
from flmm_core.pipeline.types import Features, Grounding

OVERFLOW = "Use --dtype bfloat16 or float32: float16 ends at 65504."
DAMAGED = "The model's weights may be damaged: copy or download them again."

REFINER = "The weights of the refiner may be damaged: copy or download them again."


def check_features(features: Sequence[Features], names: Sequence[str], dtype: torch.dtype) -> None:
    """Refuse features of a batch that are nan or infinite.

    Args:
        names: Of the samples, for the message; "" for an unnamed one.
        dtype: The VLM's.

    Raises:
        RunError: It names the first such sample, and the dtype.
    """
    runs = f"the vision-language model runs in {_short(dtype)}"
    repair = OVERFLOW if dtype == torch.float16 else DAMAGED
    seen = []
    for each, name in zip(features, names, strict=True):
        about = f" for '{name}'" if name else ""
        seen += [
            (f"The attention maps{about} are not finite.", each.maps.maps, runs, repair),
            (f"The hidden states{about} are not finite.", each.hidden, runs, repair),
        ]
        if each.image is not None:
            asked = f"The refiner's embedding of the image{about} is not finite."
            made = "its own weights made it"
            seen += [(asked, values, made, REFINER) for values in each.image.tensors]
    finite = [torch.isfinite(values).all() for _, values, _, _ in seen]
    if not seen or bool(torch.stack([flag.to(finite[0].device) for flag in finite]).all()):
        return  # one wait for the accelerator
    for (asked, values, source, repair), flag in zip(seen, finite, strict=True):
        if not flag:
            raise RunError(asked, found=f"{_count(values)}; {source}.", repair=repair)


def check_masks(grounding: Grounding, name: str = "") -> None:
    """Refuse mask logits that are nan or infinite.

    A coarse mask of nan may become a refined one without: the refiner takes it for an empty one.

    Raises:
        RunError: It names the sample, if `name` is given.
    """
    about = f" of '{name}'" if name else ""
    for stage, logits in (
        ("coarse", grounding.coarse_logits),
        ("refined", grounding.refined.low),
    ):
        if not torch.isfinite(logits).all():
            raise RunError(
                f"The {stage} mask logits{about} are not finite.",
                found=f"{_count(logits)}; the attention that they were made of is finite.",
                repair="Use --dtype float32, or another head: the weights of this one may be "
                "damaged.",
            )


def _count(values: Tensor) -> str:
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return f"Of {values.numel()} values {nan} are nan and {infinite} infinite"


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
