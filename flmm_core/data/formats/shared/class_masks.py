"""Masks that are named by classes: what the formats of detectors and label maps share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError
from flmm_core.data.formats.shared.degenerate import NO_PIXEL
from flmm_core.data.sample import GroundedObject


def class_phrase(name: str) -> str:
    """The words of a class name: "traffic_light" -> "traffic light".

    Hyphens stay, as most are part of a word ("t-shirt"), and so does the case ("TV").
    """
    return " ".join(name.replace("_", " ").split())


class ClassMasks:
    """The objects of an image: all regions of one class are one object, which its name refers to.

    A name that fits several things in an image refers to all of them.

    Args:
        image_hw: Height and width in pixels.
        split: Of the objects.
        phrases: The phrases of classes whose name does not say it ("tvmonitor").
    """

    def __init__(
        self, image_hw: tuple[int, int], split: str, phrases: Mapping[str, str] | None = None
    ) -> None:
        self.image_hw, self._split, self._phrases = image_hw, split, phrases or {}
        self._regions: dict[str, NDArray[np.bool_]] = {}

    def add(self, name: str, region: NDArray[np.bool_], where: str) -> None:
        """Add a region (H, W) bool of a class; DegenerateError if it has no pixel."""
        if not region.any():
            raise DegenerateError(where, NO_PIXEL)
        known = self._regions.get(name)
        self._regions[name] = region if known is None else known | region

    def objects(self, ignored: NDArray[np.bool_] | None = None) -> tuple[GroundedObject, ...]:
        """The objects in the order of their first regions; `ignored` (H, W) is not scored."""
        return tuple(
            GroundedObject(
                rle.encode(region),
                (self._phrases.get(name) or class_phrase(name),),
                category=name,
                split=self._split,
                name=str(index),
                ignore=None if ignored is None else rle.encode_any(ignored & ~region),
            )
            for index, (name, region) in enumerate(self._regions.items())
        )
