"""COCO's panoptic segmentations: a JSON list of segments and one PNG of segment ids an image.

    panoptic_val2017.json    {"images", "categories" (with isthing), "annotations": [
                              {"image_id", "file_name", "segments_info": [{"id", "category_id"}]}]}
    panoptic_val2017/000000000139.png    id of each pixel = R + 256 G + 256² B; 0 is nothing

The masks stay in the PNGs until they are asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.coco_files import records_by_id
from flmm_core.data.formats.shared.fields import field, image_size, mapping
from flmm_core.data.formats.shared.json_files import read_json
from flmm_core.data.images import image_size_of, read_image
from flmm_core.data.sample import Mask, StoredMask
from flmm_core.errors import DataError


@dataclass(frozen=True, slots=True)
class SegmentsMask(StoredMask):
    """The union of some segments of a panoptic PNG.

    Attributes:
        path: The PNG.
        ids: Of the segments; each must have a pixel.
        image_hw: (H, W) that the PNG must have.
    """

    path: Path
    ids: tuple[int, ...]
    image_hw: tuple[int, int]

    @property
    def size(self) -> tuple[int, int]:
        return self.image_hw

    def read(self) -> Mask:
        ids = read_segment_ids(self.path, self.image_hw)
        mask = np.zeros(self.image_hw, dtype=np.bool_)
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
    """(H, W) ids of a panoptic PNG; the last few are kept, as phrases of an image share one.

    Raises:
        DataError: The file is missing, broken or not of the image's size.
    """
    check_png_size(path, image_hw)
    picture = read_image(path, image_hw=image_hw)
    red, green, blue = np.moveaxis(np.asarray(picture, dtype=np.int32), -1, 0)
    ids: NDArray[np.int32] = red + 256 * green + 65536 * blue
    ids.flags.writeable = False
    return ids


def check_png_size(path: Path, image_hw: tuple[int, int]) -> None:
    """See by its header that a panoptic PNG has the size of its image; DataError if not."""
    size = image_size_of(path, upright=False)
    if size != image_hw:
        raise DataError(
            f"The panoptic PNG {path} does not have the size of its image.",
            found=f"It is {size[0]} x {size[1]}, the image {image_hw[0]} x {image_hw[1]} "
            "(height x width).",
            repair="Use the PNGs and the images of one release, unscaled.",
        )


def segment_colour(segment_id: int) -> tuple[int, int, int]:
    """(R, G, B) of a segment in a panoptic PNG."""
    return segment_id % 256, segment_id // 256 % 256, segment_id // 65536


class Panoptic:
    """A panoptic JSON file by image id, checked where it is used.

    Args:
        path: The file.
        findings: Takes ids that stand twice; the first one counts then.
    """

    def __init__(self, path: Path, findings: Findings) -> None:
        self.path = path
        data = mapping(read_json(path), str(path))
        self._images = records_by_id(data, "images", "picture", path, findings)
        self._annotations = records_by_id(
            data, "annotations", "annotation", path, findings, id_key="image_id"
        )
        self._categories = records_by_id(data, "categories", "category", path, findings)

    def size(self, image_id: int, asker: str) -> tuple[int, int]:
        """(H, W) of an image that has segments; `asker` names who wants it."""
        if image_id not in self._images:
            raise DataError(
                f"The image {image_id} is not in {self.path}.",
                found=f"It is the image_id of {asker}.",
                repair="Use narratives and panoptic files of one split.",
            )
        if image_id not in self._annotations:
            raise DataError(
                f"The image {image_id} in {self.path} has no annotation.",
                found="It is among the file's 'images', but not among its 'annotations'.",
                repair="Get an unchanged copy of the file.",
            )
        return image_size(self._images[image_id], f"image {image_id} in {self.path}")

    def image_name(self, image_id: int) -> str:
        """The image's file, as the file calls it."""
        where = f"image {image_id} in {self.path}"
        return field(self._images[image_id], "file_name", str, where)

    def png_name(self, image_id: int) -> str:
        """The panoptic PNG's file, as the file calls it."""
        where = f"the annotation of image {image_id} in {self.path}"
        return field(self._annotations[image_id], "file_name", str, where)

    def segments(self, image_id: int) -> Mapping[int, dict[Any, Any]]:
        """The records of an image's segments by their ids."""
        where = f"the annotation of image {image_id} in {self.path}"
        found: dict[int, dict[Any, Any]] = {}
        for record in field(self._annotations[image_id], "segments_info", list, where):
            its_id = field(mapping(record, f"a segment of {where}"), "id", int, where)
            if its_id in found:
                raise DataError(
                    f"The segment id {its_id} stands twice in {where}.",
                    repair="Ids must be unique; get an unchanged copy of the file.",
                )
            found[its_id] = record
        return found

    def category(self, segment: Mapping[Any, Any], image_id: int) -> tuple[str, bool]:
        """(name, whether it is a thing) of a segment's category."""
        where = f"a segment of image {image_id} in {self.path}"
        category_id = field(segment, "category_id", int, where)
        if category_id not in self._categories:
            raise DataError(
                f"The segment {segment['id']} of image {image_id} in {self.path} has no category.",
                found=f"Its category_id is {category_id}, which is not among the file's "
                "'categories'.",
            )
        category = self._categories[category_id]
        name = f"category {category_id} in {self.path}"
        return field(category, "name", str, name), bool(field(category, "isthing", int, name))
