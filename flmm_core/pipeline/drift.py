"""Compares what a model does now with what it did when a head was trained behind it."""

from __future__ import annotations

import logging

from flmm_core.errors import WeightsError
from flmm_core.pipeline.backbone.fingerprint import (
    TOLERANCES,
    Fingerprint,
    deviations,
    versions_apart,
)
from flmm_core.pipeline.backbone.identity import ModelIdentity, differences
from flmm_core.pipeline.head_folder import HeadInfo

logger = logging.getLogger(__name__)

REPAIR = (
    "Install the versions that it was trained with, train a new head, or go on without --strict "
    "(Python: strict=False)."
)


def check_drift(
    head: str,
    trained: HeadInfo,
    model: ModelIdentity | None,
    now: Fingerprint | None,
    *,
    strict: bool = False,
) -> None:
    """Warn if a model does otherwise than when a head was trained.

    Another model than the head's is not compared: `check_model` says that it is another.

    Args:
        head: Names the head in messages.
        trained: What the head's folder says.
        model: The identity of the loaded model; `now` is its fingerprint, None with --no-check.
        strict: Make it an error; so it is if there is nothing to compare.

    Raises:
        WeightsError: With `strict`.
    """
    if trained.model and model and differences(trained.model, model):
        return
    then = trained.fingerprint
    if then is None or now is None:
        if strict:
            raise WeightsError(
                f"It is not known whether the model still does what the head in '{head}' needs.",
                found="The head has no fingerprint: an earlier version wrote it, or --no-check."
                if then is None
                else "The model was not run on the drawn image (--no-check).",
                repair="Go on without --strict (Python: strict=False).",
            )
        return
    if not (found := deviations(then, now)):
        return
    error = WeightsError(
        f"The model does otherwise than when the head in '{head}' was trained.",
        found="\n".join([versions_apart(then, now), "Differences on a drawn image:", *found]),
        repair=REPAIR,
    )
    if strict:
        raise error
    logger.warning("%s\n%s\nIts masks may be worse.", error.asked, error.found)


def default_dtype(trained: HeadInfo) -> str:
    """The dtype that a head's model had in training, or "auto" if that cannot be chosen."""
    known = trained.fingerprint.precision if trained.fingerprint else ""
    return known if known in TOLERANCES and known != "quantized" else "auto"
