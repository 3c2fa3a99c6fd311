"""The error of a measurement that is ambiguous."""

from __future__ import annotations

from flmm_core.errors import DataError


class GeometryRefused(DataError):  # noqa: N818 - a name that says what it does
    """Where an image's tokens lie cannot be measured without guessing; says why."""


def refuse(reason: str) -> GeometryRefused:
    """The error for one reason, a sentence; the image size is added by `MeasuredGeometry.at`."""
    return GeometryRefused("The geometry of the image tokens cannot be measured.", found=reason)


def one_line(error: BaseException) -> str:
    """The kind of an error and what it says, on one line."""
    words = " ".join(str(error).split())
    return f"{type(error).__name__}: {words[:300]}" if words else f"{type(error).__name__}."
