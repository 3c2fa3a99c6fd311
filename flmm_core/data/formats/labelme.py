"""LabelMe's annotations: one JSON file an image; and a writer of them.

    ROOT/a.jpg   ROOT/a.json   {"imagePath": "a.jpg", "imageWidth": 640, "imageHeight": 480,
                                "shapes": [{"label": "the red mug", "shape_type": "polygon",
                                            "points": [[x, y], ...]}]}

With a split the files lie in ROOT/SPLIT. Shapes: polygon, rectangle, circle, and mask (a PNG in
base64 whose corners are the two points); points and lines have no area and are left out.

A label is a phrase; all shapes of one label in an image are joined. The label "__ignore__" marks
pixels that are not scored. Images without shapes are skipped.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.degenerate import NO_PIXEL
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.formats.shared.polygons import check_points, fill
from flmm_core.data.records import (
    Record,
    brief,
    expect,
    field,
    find_file,
    image_size,
    read_json,
    sentence,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError
from flmm_core.files import write_json

IGNORE = "__ignore__"
LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}
WITHOUT_AREA = ("point", "points", "line", "linestrip")


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a folder, sorted by the names of their JSON files; PATH may be one of them."""
    path, split = source.path, source.split
    folder = path / split
    files = [path] if path.is_file() and not split else sorted(folder.glob("*.json"))
    if not files:
        there = sorted({file.parent.name for file in path.glob("*/*.json")})
        raise DataError(
            f"There is no LabelMe file in {folder}.",
            found=f"Looked for {folder}/*.json. Folders with such files: "
            f"{', '.join(there) or 'none'}.",
            repair="Give the folder that LabelMe saved to; a folder in it after an '@'.",
        )
    images: list[AnnotatedImage] = []
    for file in files:
        with findings.part():
            if image := _image(file, split, findings):
                images.append(image)
    return tuple(images)


def _image(file: Path, split: str, findings: Findings) -> AnnotatedImage | None:
    """The image of a file; None if no shape of it can be used."""
    where = f"the file {file}"
    record = expect(read_json(file), dict, where)
    # LabelMe on Windows writes backslashes.
    name = PureWindowsPath(field(record, "imagePath", str, where)).as_posix()
    path = find_file(
        [file.parent],
        [name],
        f"The image {name} of {file}",
        "Save the image there; 'imagePath' is relative to the folder of the file.",
        found="The file holds the image in 'imageData'. " if record.get("imageData") else "",
    )
    height, width = image_size(record, where, ("imageHeight", "imageWidth"))
    regions: dict[str, NDArray[np.bool_]] = {}
    shapes = field(record, "shapes", list, where)
    if not shapes:
        findings.skip(str(file), "it has no shape", counts=False)
    for number, shape in enumerate(shapes):
        with findings.part():
            label, region = _shape(shape, height, width, f"shape {number} of {file}")
            if not region.any():
                raise DegenerateError(f"shape {number} of {file}", NO_PIXEL)
            regions[label] = regions[label] | region if label in regions else region
    ignored = regions.pop(IGNORE, np.zeros((height, width), dtype=np.bool_))
    objects = [
        GroundedObject(
            rle.encode(region),
            (label,),
            split=split,
            name=str(index),
            ignore=rle.encode_any(ignored & ~region),
        )
        for index, (label, region) in enumerate(regions.items())
    ]
    return AnnotatedImage(name, path, (height, width), tuple(objects)) if objects else None


def _shape(shape: Any, height: int, width: int, where: str) -> tuple[str, NDArray[np.bool_]]:
    label = field(shape, "label", str, where).strip()
    if not label:
        raise DataError(f"{sentence(where)} has an empty label.")
    kind = shape.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        raise DegenerateError(where, f"a {kind} has no area")
    if not isinstance(kind, str) or kind not in LEAST_POINTS:
        raise DataError(
            f"{sentence(where)} is a {brief(kind)}, which has no area.",
            found=f"Shapes that can be read: {', '.join(LEAST_POINTS)}.",
            repair="Draw it as a polygon, or remove it.",
        )
    points = check_points(field(shape, "points", list, where), LEAST_POINTS[kind], where)
    if kind == "polygon":
        return label, fill(points, height, width)
    (x0, y0), (x1, y1) = points[0], points[1]
    if kind == "rectangle":
        return label, fill([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], height, width)
    if kind == "circle":  # its center and a point on it
        rows, columns = np.ogrid[:height, :width]
        inside = np.hypot(columns - x0, rows - y0) <= np.hypot(x1 - x0, y1 - y0)
        return label, np.asarray(inside, dtype=np.bool_)
    return label, _stored(shape, (round(x0), round(y0)), height, width, where)


def _stored(
    shape: Record, corner: tuple[int, int], height: int, width: int, where: str
) -> NDArray[np.bool_]:
    encoded = field(shape, "mask", str, where)
    try:
        data = base64.b64decode(encoded, validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as stored:
            patch = np.asarray(stored.convert("L")) > 0
    except Exception as error:  # decoders raise nearly anything on broken data
        raise DataError(
            f"The mask of {where} is not a PNG in base64.", found=f"{error}."
        ) from error
    left, top = corner
    if left < 0 or top < 0 or top + patch.shape[0] > height or left + patch.shape[1] > width:
        raise DataError(
            f"The mask of {where} does not fit its image.",
            found=f"It is {patch.shape[0]} x {patch.shape[1]} at row {top}, column {left}; the "
            f"image is {height} x {width} (height x width).",
        )
    region = np.zeros((height, width), dtype=np.bool_)
    region[top : top + patch.shape[0], left : left + patch.shape[1]] = patch
    return region


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write ROOT/SPLIT/NAME.json after the image NAME.

    Every sentence becomes a shape of type "mask", which LabelMe 5.3 or newer shows.
    """
    for new, (height, width) in checked(images):
        if not all(rle.area(thing.read_mask()) for thing in new.objects):
            raise ValueError(f"{new.file_name}: LabelMe has no empty shapes")
        for split, indices in new.by_split().items():
            shapes: list[dict[str, Any]] = []
            for thing in (new.objects[index] for index in indices):
                shapes += [_record(words, thing.read_mask()) for words in thing.sentences]
                shapes += [_record(IGNORE, thing.ignore)] if thing.ignore is not None else []
            path = folder / split / new.file_name
            new.save(path)
            record: dict[str, Any] = {
                "version": "5.3.0",
                "flags": {},
                "shapes": shapes,
                "imagePath": path.name,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            write_json(path.with_suffix(".json"), record, compact=True)


def _record(label: str, mask: Mask) -> dict[str, Any]:
    left, top, width, height = rle.bbox(mask)
    patch = Image.fromarray(rle.decode(mask)[top : top + height, left : left + width])
    data = io.BytesIO()
    patch.save(data, "PNG")
    return {
        "label": label,
        "points": [[left, top], [left + width - 1, top + height - 1]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(data.getvalue()).decode(),
    }
