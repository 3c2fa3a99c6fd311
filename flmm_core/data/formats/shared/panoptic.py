"""COCO's panoptic segmentations: a JSON list of segments and one PNG of segment ids an image.

    panoptic_val2017.json    {"images", "categories" (with isthing), "annotations": [
                              {"image_id", "file_name", "segments_info": [{"id", "category_id"}]}]}
    panoptic_val2017/000000000139.png    id of each pixel = R + 256 G + 256² B; 0 is nothing

Masks are read from the PNGs on demand.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.coco_json import CocoFile, NewCocoFile
from flmm_core.data.images import image_size_of, read_image
from flmm_core.data.records import field, records_by_id
from flmm_core.data.sample import GroundedObject, Mask, StoredMask
from flmm_core.errors import DataError

Segments = dict[int, tuple[str, bool]]
"""The segments of an image by their ids: (category, whether it is a thing)."""


@dataclass(frozen=True, slots=True)
class SegmentsMask(StoredMask):
    """The union of some segments of a panoptic PNG, each of which must have a pixel."""

    path: Path
    ids: tuple[int, ...]

    def read(self) -> Mask:
        ids = read_segment_ids(self.path, self.size)
        mask = np.zeros(self.size, dtype=np.bool_)
        for segment_id in self.ids:
            inside = ids == segment_id
            if not inside.any():
                raise DataError(
                    f"The segment {segment_id} has no pixel in {self.path}.",
                    found="The panoptic JSON file says that it is in this image.",
                    repair="Use the JSON file and the PNGs of one release.",
                )
            mask |= inside
        return rle.encode(mask)


@lru_cache(maxsize=4)
def read_segment_ids(path: Path, image_hw: tuple[int, int]) -> NDArray[np.int32]:
    """(H, W) ids of a panoptic PNG; cached, as the phrases of an image share one."""
    check_png_size(path, image_hw)
    pixels = np.asarray(read_image(path, image_hw=image_hw), dtype=np.int32)
    red, green, blue = np.moveaxis(pixels, -1, 0)
    ids: NDArray[np.int32] = red + 256 * green + 65536 * blue
    ids.flags.writeable = False
    return ids


def check_png_size(path: Path, image_hw: tuple[int, int]) -> None:
    """DataError if a panoptic PNG does not have the size of its image, by its header."""
    size = image_size_of(path, upright=False)
    if size != image_hw:
        raise DataError(
            f"The panoptic PNG {path} does not have the size of its image.",
            found=f"It is {size[0]} x {size[1]}, the image {image_hw[0]} x {image_hw[1]} "
            "(height x width).",
            repair="Use the PNGs and the images of one release, unscaled.",
        )


def segment_color(segment_id: int) -> tuple[int, int, int]:
    return segment_id % 256, segment_id // 256 % 256, segment_id // 65536


class Panoptic(CocoFile):
    """A panoptic JSON file, whose annotations are listed by image id."""

    def __init__(self, path: Path, findings: Findings) -> None:
        super().__init__(path, findings, annotation_id="image_id")

    def png_name(self, image_id: int, asker: str) -> str:
        """`asker` names the record with the image id."""
        self.look_up("image_id", image_id, asker)
        if image_id not in self.annotations:
            raise DataError(f"The image {image_id} in {self.path} has no annotation.")
        return field(self.annotations[image_id], "file_name", str, self._name(image_id))

    def segments(self, image_id: int) -> Segments:
        where = self._name(image_id)
        listed = field(self.annotations[image_id], "segments_info", list, where)
        found: Segments = {}
        for its_id, segment in records_by_id(listed, "segment", where, Findings()).items():
            category, name = self.category_of(segment, f"segment {its_id} of {where}")
            is_thing = field(category, "isthing", int, f"the category '{name}' in {self.path}")
            found[its_id] = name, bool(is_thing)
        return found

    def _name(self, image_id: int) -> str:
        return f"the annotation of image {image_id} in {self.path}"


class NewPanoptic(NewCocoFile):
    """The lists of a panoptic JSON file, and its PNGs, while they are written."""

    def paint(
        self, things: list[tuple[GroundedObject, list[Mask]]], image_hw: tuple[int, int]
    ) -> tuple[NDArray[np.uint8], list[list[int]]]:
        """Add the segments of the last image; ValueError if two of them overlap.

        Args:
            things: Objects and the masks that they consist of; equal masks are one segment.
            image_hw: Of the image.

        Returns:
            The pixels of the PNG (H, W, 3), and each object's segment ids.
        """
        image = self.images[-1]
        pixels = np.zeros((*image_hw, 3), dtype=np.uint8)
        infos: list[dict[str, Any]] = []
        ids: dict[bytes, int] = {}
        for thing, masks in things:
            for mask in masks:
                if mask["counts"] in ids:
                    continue
                inside = rle.decode(mask)
                if pixels[inside].any():
                    raise ValueError(f"{image['file_name']}: two segments overlap")
                segment_id = 70_001 * (len(infos) + 1)  # all three bytes of it are used
                pixels[inside] = segment_color(segment_id)
                ids[mask["counts"]] = segment_id
                is_thing = "stuff" not in thing.tags
                infos.append(
                    {
                        "id": segment_id,
                        "category_id": self.category_id(thing.category, isthing=int(is_thing)),
                        "area": rle.area(mask),
                        "bbox": list(rle.bbox(mask)),
                        "iscrowd": 0,
                    }
                )
        self.annotations.append(
            {"image_id": image["id"], "file_name": png_name(image["id"]), "segments_info": infos}
        )
        return pixels, [[ids[mask["counts"]] for mask in masks] for _, masks in things]


def png_name(image_id: int) -> str:
    return f"{image_id:012d}.png"
