"""The annotations of LabelMe and its kin (X-AnyLabeling): one JSON file an image; and a writer.

    ROOT/a.jpg   ROOT/a.json   {"imagePath": "a.jpg", "imageWidth": 640, "imageHeight": 480,
                                "shapes": [{"label": "the red mug", "shape_type": "polygon",
                                            "points": [[x, y], ...]}]}

With a split the files lie in ROOT/SPLIT. Shapes, with the pixels that LabelMe's own
`shape_to_mask` gives them: polygon, rectangle (two opposite corners; X-AnyLabeling's have four),
oriented_rectangle, rotation, quadrilateral, circle, and mask (a PNG in base64 whose corners are the
two points). Points and lines have no area and are left out.

Older files have no size, and may hold the image itself in "imageData"; if there is no file of it,
it is kept in the user's cache folder.

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
from flmm_core.data.formats.shared.image_paths import spellings, tails
from flmm_core.data.formats.shared.kept_images import keep_image
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.formats.shared.polygons import check_points, fill, fill_circle
from flmm_core.data.images import image_size_of
from flmm_core.data.records import (
    Record,
    brief,
    expect,
    field,
    find_file,
    first_file,
    image_size,
    read_json,
    sentence,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError
from flmm_core.files import write_json

IGNORE = "__ignore__"
POINTS: dict[str, tuple[int, ...]] = {
    "polygon": (),
    "rectangle": (2, 4),
    "oriented_rectangle": (4,),
    "rotation": (4,),
    "quadrilateral": (4,),
    "circle": (2,),
    "mask": (2,),
}
"""The shapes that have an area, and how many points they may have; a polygon has three or more."""
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
            if image := _image(file, source, findings):
                images.append(image)
    return tuple(images)


def _image(file: Path, source: Source, findings: Findings) -> AnnotatedImage | None:
    """The image of a file; None if no shape of it can be used."""
    where = f"the file {file}"
    record = expect(read_json(file), dict, where)
    name = field(record, "imagePath", str, where)
    path = _find_image(record, name, file, source)
    sides = [record.get(key) for key in ("imageHeight", "imageWidth")]
    height, width = (
        image_size_of(path, upright=not source.as_stored)
        if None in sides
        else image_size(record, where, ("imageHeight", "imageWidth"))
    )
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
            split=source.split,
            name=str(index),
            ignore=rle.encode_any(ignored & ~region),
        )
        for index, (label, region) in enumerate(regions.items())
    ]
    name = PureWindowsPath(name).as_posix()
    return AnnotatedImage(name, path, (height, width), tuple(objects)) if objects else None


def _find_image(record: Record, name: str, file: Path, source: Source) -> Path:
    """Where 'imagePath' says, else beside the file under its name, else what 'imageData' holds."""
    folders = source.image_folders([file.parent])
    names = [*spellings(name), *(tail for tail in tails(name) if Path(tail).stem == file.stem)]
    path = first_file(folders, names)
    if path is None and record.get("imageData") is not None:
        return _unpack(field(record, "imageData", str, f"the file {file}"), name, file)
    return path or find_file(
        folders,
        names,
        f"The image {name} of {file}",
        "Save the image there; 'imagePath' is relative to the folder of the file.",
    )


def _unpack(encoded: str, name: str, file: Path) -> Path:
    """The file of an image in base64, in the cache folder."""
    try:
        return keep_image(base64.b64decode(encoded), "labelme")
    except ValueError as error:
        raise DataError(
            f"The 'imageData' of {file} is not an image in base64.",
            found=f"There is no file named {name} either.",
            repair="Save the image under the name in 'imagePath'.",
        ) from error


def _shape(shape: Any, height: int, width: int, where: str) -> tuple[str, NDArray[np.bool_]]:
    label = field(shape, "label", str, where).strip()
    if not label:
        raise DataError(f"{sentence(where)} has an empty label.")
    kind = shape.get("shape_type") or "polygon"
    if kind in WITHOUT_AREA:
        raise DegenerateError(where, f"a {kind} has no area")
    if not isinstance(kind, str) or kind not in POINTS:
        raise DataError(
            f"{sentence(where)} is a {brief(kind)}, which cannot be read.",
            found=f"Shapes that can be read: {', '.join(POINTS)}.",
            repair="Draw it as a polygon, or remove it.",
        )
    counts = POINTS[kind]
    points = check_points(field(shape, "points", list, where), min(counts, default=3), where)
    if counts and len(points) not in counts:
        raise DataError(
            f"{sentence(where)} is a {kind} of {len(points)} points.",
            found=f"Expected {' or '.join(map(str, counts))}.",
        )
    if kind == "mask":
        return label, _stored(shape, points[0], height, width, where)
    if kind == "circle":
        return label, fill_circle(points, height, width, where)
    if kind == "rectangle" and len(points) == 2:
        (x0, y0), (x1, y1) = points
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1)]
    return label, fill(points, height, width)


def _stored(
    shape: Record, corner: tuple[float, float], height: int, width: int, where: str
) -> NDArray[np.bool_]:
    encoded = field(shape, "mask", str, where)
    left, top = map(int, corner)
    region = np.zeros((height, width), dtype=np.bool_)
    try:
        data = base64.b64decode(encoded, validate=True)
        with Image.open(io.BytesIO(data), formats=["PNG"]) as stored:
            bottom, right = top + stored.height, left + stored.width
            fits = min(left, top) >= 0 and bottom <= height and right <= width
            if fits:
                # The color of a palette's index says nothing.
                pixels = stored if len(stored.getbands()) == 1 else stored.convert("L")
                region[top:bottom, left:right] = np.asarray(pixels) > 0
    except MemoryError:
        raise
    except Exception as error:  # decoders raise nearly anything on broken data
        raise DataError(
            f"The mask of {where} is not a PNG in base64.", found=f"{error}."
        ) from error
    if not fits:
        raise DataError(
            f"The mask of {where} does not fit its image.",
            found=f"It is {bottom - top} x {right - left} at row {top}, column {left}; the "
            f"image is {height} x {width} (height x width).",
        )
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
                shapes += [new_shape(words, thing.read_mask()) for words in thing.sentences]
                shapes += [new_shape(IGNORE, thing.ignore)] if thing.ignore is not None else []
            path = folder / split / new.file_name
            new.save(path)
            record = new_record(path.name, (height, width), shapes)
            write_json(path.with_suffix(".json"), record, compact=True)


def new_record(
    image_path: str, image_hw: tuple[int, int], shapes: list[dict[str, Any]]
) -> dict[str, Any]:
    """The content of a LabelMe file; `image_path` is relative to its folder."""
    return {
        "version": "5.3.0",
        "flags": {},
        "shapes": shapes,
        "imagePath": image_path,
        "imageData": None,
        "imageHeight": image_hw[0],
        "imageWidth": image_hw[1],
    }


def new_shape(label: str, mask: Mask) -> dict[str, Any]:
    """A shape of the type "mask"; the mask is not empty."""
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
