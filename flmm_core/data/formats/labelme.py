"""LabelMe's annotations: one JSON file an image; and a writer of them.

    ROOT/a.jpg   ROOT/a.json   {"imagePath": "a.jpg", "imageWidth": 640, "imageHeight": 480,
                                "shapes": [{"label": "the red mug", "shape_type": "polygon",
                                            "points": [[x, y], ...]}]}

With a split the files lie in ROOT/SPLIT. Shapes: polygon, rectangle, circle, and mask (a PNG in
base64 whose corners are the two points); others have no area.

Protocol: a label is a phrase, and all shapes of one label in an image are joined: the words mean
all of them. The label "__ignore__" marks pixels that count neither way for any phrase of the
image. Images without shapes are left out, counted and listed.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.fields import brief, field, image_size, mapping, sentence
from flmm_core.data.formats.shared.json_files import is_file, read_json
from flmm_core.data.formats.shared.polygons import check_points, fill
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    write_image,
    write_whole,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError

IGNORE = "__ignore__"
LEAST_POINTS = {"polygon": 3, "rectangle": 2, "circle": 2, "mask": 2}


def read_labelme(
    path: Path, split: str | None = None, findings: Findings | None = None
) -> tuple[AnnotatedImage, ...]:
    """The images of a folder by the names of their JSON files.

    Args:
        path: ROOT, or one JSON file.
        split: A folder in ROOT, or None for ROOT itself.
        findings: Collects faults; without it the first is raised.

    Raises:
        DataError: A file or image is missing or broken.
    """
    findings = findings or Findings()
    folder = path / split if split else path
    files = [path] if path.is_file() and not split else sorted(folder.glob("*.json"))
    if not files:
        there = sorted({file.parent.name for file in path.glob("*/*.json")})
        raise DataError(
            f"There is no LabelMe file in {folder}.",
            found=f"Looked for {folder}/*.json. Folders with such files: "
            f"{', '.join(there) or 'none'}.",
            repair="Give the folder that LabelMe saved to; a folder in it after an '@'.",
        )
    pictures: list[AnnotatedImage] = []
    for file in files:
        with findings.part():
            picture = _image(file, split or "", findings)
            if picture.objects:
                pictures.append(picture)
            else:
                findings.skip(str(file), "it has no shape")
    return tuple(pictures)


def _image(file: Path, split: str, findings: Findings) -> AnnotatedImage:
    where = f"the file {file}"
    record = mapping(read_json(file), where)
    # LabelMe on Windows writes backslashes.
    name = PureWindowsPath(field(record, "imagePath", str, where)).as_posix()
    image = file.parent / name
    if not is_file(image):
        raise DataError(
            f"The image {name} of {file} is missing.",
            found=f"Looked for {image}."
            + (" The file holds the image in 'imageData'." if record.get("imageData") else ""),
            repair="Save the image there; 'imagePath' is relative to the folder of the file.",
        )
    height, width = image_size(record, where, ("imageHeight", "imageWidth"))
    regions: dict[str, NDArray[np.bool_]] = {}
    for number, shape in enumerate(field(record, "shapes", list, where)):
        with findings.part():
            label, region = _shape(shape, height, width, f"shape {number} of {file}")
            regions[label] = regions[label] | region if label in regions else region
    ignored = regions.pop(IGNORE, np.zeros((height, width), dtype=np.bool_))
    objects = [
        GroundedObject(
            rle.encode(region),
            (label,),
            split=split,
            name=str(index),
            ignore=_outside(ignored, region),
        )
        for index, (label, region) in enumerate(regions.items())
    ]
    return AnnotatedImage(name, image, (height, width), tuple(objects))


def _outside(ignored: NDArray[np.bool_], region: NDArray[np.bool_]) -> Mask | None:
    rest = ignored & ~region
    return rle.encode(rest) if rest.any() else None


def _shape(shape: Any, height: int, width: int, where: str) -> tuple[str, NDArray[np.bool_]]:
    """(label, region) of a shape."""
    label = field(mapping(shape, where), "label", str, where).strip()
    if not label:
        raise DataError(f"{sentence(where)} has an empty label.")
    kind = shape.get("shape_type") or "polygon"
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
    if kind == "circle":  # its centre and a point on it
        rows, columns = np.ogrid[:height, :width]
        inside = np.hypot(columns - x0, rows - y0) <= np.hypot(x1 - x0, y1 - y0)
        return label, np.asarray(inside, dtype=np.bool_)
    return label, _stored(shape, (round(x0), round(y0)), height, width, where)


def _stored(
    shape: dict[Any, Any], corner: tuple[int, int], height: int, width: int, where: str
) -> NDArray[np.bool_]:
    """The region of a shape that is a PNG, put where its first point says."""
    try:
        data = base64.b64decode(field(shape, "mask", str, where), validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as stored:
            patch = np.asarray(stored.convert("L")) > 0
    except DataError:
        raise
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


def write_labelme(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images and their objects as ROOT/SPLIT/NAME.json beside NAME's image.

    Every sentence becomes a shape of the kind "mask", which LabelMe 5.3 or newer shows. A JSON
    file is written after its image.

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.

    Returns:
        `folder`, which `read_labelme` takes together with a split.
    """
    for picture, (height, width) in new_images(pictures):
        shapes: dict[str, list[dict[str, Any]]] = {}
        for thing in picture.objects:
            region = rle.decode(thing.read_mask())
            if not region.any():
                raise ValueError(f"{picture.file_name}: LabelMe has no empty shapes")
            of_split = shapes.setdefault(thing.split or "train", [])
            of_split += [_record(words, region) for words in thing.sentences]
            if thing.ignore is not None:
                of_split.append(_record(IGNORE, rle.decode(thing.ignore)))
        for split, records in shapes.items():
            image = folder / split / picture.file_name
            write_image(picture, image)
            record: dict[str, Any] = {
                "version": "5.3.0",
                "flags": {},
                "shapes": records,
                "imagePath": image.name,
                "imageData": None,
                "imageHeight": height,
                "imageWidth": width,
            }
            write_whole(image.with_suffix(".json"), json.dumps(record, ensure_ascii=False).encode())
    return folder


def _record(label: str, region: NDArray[np.bool_]) -> dict[str, Any]:
    rows, columns = np.nonzero(region)
    top, bottom = int(rows.min()), int(rows.max())
    left, right = int(columns.min()), int(columns.max())
    patch = Image.fromarray(region[top : bottom + 1, left : right + 1])
    data = io.BytesIO()
    patch.save(data, "PNG")
    return {
        "label": label,
        "points": [[left, top], [right, bottom]],
        "group_id": None,
        "description": "",
        "shape_type": "mask",
        "flags": {},
        "mask": base64.b64encode(data.getvalue()).decode(),
    }
