"""Label Studio's exports, JSON and JSON-MIN: brushes, polygons, rectangles and ellipses.

    PATH/export.json      [{"data": {"image": "/data/upload/1/0a1b2c3d-mug.jpg"}, "annotations":
                           [{"result": [{"type": "brushlabels", "original_width": 640, ...}]}]}]
    PATH/mug.jpg          or in PATH/images; with or without the prefix that uploads get

PATH may be the file; with a split, PATH/SPLIT.json or PATH/SPLIT/*.json.

A region with a text of its own (a per-region TextArea) is one object, which its texts refer to. All
other regions of one label in an image are joined, and the label is their phrase; "ignore" marks
pixels that are not scored. Of several annotations of a task the one marked as ground truth is read,
else the first that was not skipped. A brush's mask is what is not transparent; the other shapes are
filled as COCO fills polygons. Predictions are not read.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.brush_rle import decode_brush
from flmm_core.data.formats.shared.class_masks import ClassMasks
from flmm_core.data.formats.shared.degenerate import NO_PIXEL
from flmm_core.data.formats.shared.image_paths import ImagePaths, spellings
from flmm_core.data.formats.shared.label_maps import VOID_NAMES
from flmm_core.data.formats.shared.polygons import Points, check_points
from flmm_core.data.images import IMAGE_ENDINGS, image_size_of
from flmm_core.data.records import (
    Record,
    brief,
    expect,
    image_size,
    is_finite_number,
    read_json,
    sentence,
    texts,
    unfit,
)
from flmm_core.data.records import field as key_of
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.errors import DataError

SHAPES = ("brush", "polygon", "rectangle", "ellipse")
NO_AREA = ("keypoint", "vector")
_UPLOAD = re.compile(r"^[0-9a-f]{8}-")
"""What Label Studio puts before the names of uploaded files."""


@dataclass
class _Region:
    """What the results of one region say together."""

    where: str
    shape: str = ""
    value: Record = field(default_factory=dict)
    labels: list[str] = field(default_factory=list)
    texts: tuple[str, ...] = ()
    size: tuple[int, int] | None = None
    turned: float = 0


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images in the order of the tasks, file by file."""
    images: list[AnnotatedImage] = []
    for file in _files(source.path, source.split):
        content = read_json(file)
        tasks = (
            [content] if isinstance(content, dict) else expect(content, list, f"the file {file}")
        )
        named = [(task, _image_name(task)) for task in tasks]
        folders = [
            base / sub for base in (file.parent, file.parent.parent) for sub in ("", "images")
        ]
        paths = ImagePaths(source.image_folders(folders), [name for _, name in named if name])
        for number, (task, name) in enumerate(named):
            with findings.part():
                where = f"task {number} of {file}"
                if not name:
                    raise DataError(
                        f"{sentence(where)} has no image.",
                        found="Expected the path of an image in its 'data', such as 'image'.",
                    )
                if image := _task(task, name, paths, where, source, findings):
                    images.append(image)
    return tuple(images)


def _files(path: Path, split: str) -> list[Path]:
    if path.is_file() and not split:
        return [path]
    files = [path / f"{split}.json"] if split else sorted(path.glob("*.json"))
    files = [file for file in files if file.is_file()] or sorted((path / split).glob("*.json"))
    if not files:
        raise DataError(
            f"There is no Label Studio export in {path / split}.",
            found=f"Looked for {path / (split or '*')}.json and {path / split}/*.json.",
            repair="Export as JSON or JSON-MIN, and give the file or its folder.",
        )
    return files


def _image_name(task: Any) -> str:
    """The path of a task's image as written, or "": 'image', else what ends like one."""
    data = task.get("data", task) if isinstance(task, dict) else {}
    data = data if isinstance(data, dict) else {}
    listed = [text for text in data.values() if isinstance(text, str)]
    names = [text if "?d=" in text else text.split("?")[0] for text in listed]
    if listed and isinstance(data.get("image"), str):
        return names[listed.index(data["image"])]
    images = (name for name in names if Path(name).suffix.lower() in IMAGE_ENDINGS)
    return next(images, "")


def _find(name: str, paths: ImagePaths, where: str) -> Path:
    uploaded = Path(spellings(name)[-1]).name
    return paths.find(
        name,
        f"The image {name} of {where}",
        "Put the images beside the export, or into a folder 'images' there; Label Studio exports "
        "them with 'YOLO with Images' or 'COCO with Images'.",
        others=(uploaded, _UPLOAD.sub("", uploaded)),
    )


def _task(
    task: Record, name: str, paths: ImagePaths, where: str, source: Source, findings: Findings
) -> AnnotatedImage | None:
    """The image of a task; None if nothing is marked in it."""
    results = _results(task, where)
    if not results:
        findings.skip(where, "it is not annotated", counts=False)
        return None
    path = _find(name, paths, where)
    regions = list(_regions(results, where, findings))
    sizes = {region.size for region in regions if region.size}
    if len(sizes) == 1:
        image_hw = sizes.pop()
    else:
        image_hw = image_size_of(path, upright=not source.as_stored)
    masks = ClassMasks(image_hw, source.split)
    ignored = np.zeros(image_hw, dtype=np.bool_)
    told: list[GroundedObject] = []
    for region in regions:
        with findings.part():
            if not region.labels and not region.texts:
                raise DegenerateError(region.where, "it has no label")
            marked = _fill(region, image_hw)
            labels = [label for label in region.labels if label.lower() not in VOID_NAMES]
            if not marked.any():
                raise DegenerateError(region.where, NO_PIXEL)
            if region.texts:
                category = ", ".join(labels)
                told.append(
                    GroundedObject(rle.encode(marked), region.texts, category, split=source.split)
                )
            elif not labels:
                ignored |= marked
            for label in labels if not region.texts else ():
                masks.add(label, marked, region.where)
    objects = [
        *masks.objects(ignored),
        *(replace(t, ignore=rle.encode_any(ignored & ~rle.decode(t.read_mask()))) for t in told),
    ]
    things = tuple(replace(thing, name=str(index)) for index, thing in enumerate(objects))
    return (
        AnnotatedImage(Path(spellings(name)[-1]).name, path, image_hw, things) if things else None
    )


def _results(task: Record, where: str) -> list[Any]:
    """The results of a task: of the annotation that counts, or those of JSON-MIN."""
    done = task.get("annotations", task.get("completions"))
    if done is None:  # JSON-MIN has a list of regions under the name of each tool
        lists = [value for value in task.values() if isinstance(value, list)]
        return [result for value in lists for result in value if isinstance(result, dict)]
    kept = [one for one in expect(done, list, f"'annotations' of {where}") if isinstance(one, dict)]
    kept = [one for one in kept if not one.get("was_cancelled")]
    kept.sort(key=lambda one: not one.get("ground_truth"))
    return key_of(kept[0], "result", list, f"an annotation of {where}") if kept else []


def _regions(results: list[Any], where: str, findings: Findings) -> Iterator[_Region]:
    """The regions that have an area, each of all results with its id."""
    regions: dict[Any, _Region] = {}
    for number, result in enumerate(results):
        place = f"result {number} of {where}"
        with findings.part():
            expect(result, dict, place)
            value = result.get("value", result)
            kind = result.get("type") or next((key for key in value if key.endswith("labels")), "")
            key = result.get("id")
            key = key if isinstance(key, (str, int)) else (number,)
            region = regions.setdefault(key, _Region(place))
            _add(region, str(kind).lower(), expect(value, dict, f"the value of {place}"), place)
            if {"original_width", "original_height"} <= set(result):
                region.size = image_size(result, place, ("original_height", "original_width"))
            turned = result.get("image_rotation")
            region.turned = turned if is_finite_number(turned) else 0
    for region in regions.values():
        if region.shape in NO_AREA:
            findings.skip(region.where, f"a {region.shape} has no area")
        elif region.turned % 360:
            findings.skip(region.where, f"it was drawn on the image turned by {region.turned:g}°")
        elif region.shape and region.shape not in SHAPES:
            findings.skip(region.where, f"a {region.shape} cannot be read")
        elif region.shape:
            yield region


def _add(region: _Region, kind: str, value: Record, where: str) -> None:
    """What one result says of its region."""
    if kind == "textarea":
        said = value.get("text")
        region.texts = texts([said] if isinstance(said, str) else said, "text", where)
        return
    shape = kind.removesuffix("labels")
    known = (*SHAPES, *NO_AREA, "bitmask", "magicwand")
    if shape in known:
        region.shape, region.value = shape, value
    if shape in known or kind == "labels":
        for key in (kind, "labels"):
            if isinstance(listed := value.get(key), list) and listed:
                region.labels += texts(listed, key, where)


def _fill(region: _Region, image_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels of a region."""
    value, where = region.value, region.where
    if region.shape == "brush":
        try:
            return decode_brush(bytes(key_of(value, "rle", list, where)), image_hw)
        except (ValueError, TypeError) as error:
            raise DataError(
                f"The brush of {where} cannot be decoded.", found=f"{sentence(str(error))}."
            ) from error
    if region.shape == "ellipse":
        return _ellipse(value, image_hw, where)
    if region.shape == "polygon":
        corners = check_points(key_of(value, "points", list, where), 3, where)
        scale = image_hw[1] / 100, image_hw[0] / 100
        corners = [(x * scale[0], y * scale[1]) for x, y in corners]
    else:
        x, y, width, height = _pixels(value, ("x", "y", "width", "height"), image_hw, where)
        sine, cosine = _turn(value, where)
        steps = (0, 0), (width, 0), (width, height), (0, height)
        corners = [(x + dx * cosine - dy * sine, y + dx * sine + dy * cosine) for dx, dy in steps]
    return _fill_as_coco(corners, image_hw, where)


def _fill_as_coco(corners: Points, image_hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    _check_near(corners, image_hw, where)
    height, width = image_hw
    parts = coco.frPyObjects([[n for point in corners for n in point]], height, width)
    return np.ascontiguousarray(coco.decode(parts)[..., 0]).view(np.bool_)


def _check_near(points: Points, image_hw: tuple[int, int], where: str) -> None:
    """DataError if points are so far outside the image that drawing them takes no end."""
    height, width = image_hw
    if any(abs(x) > 10 * width + 10 or abs(y) > 10 * height + 10 for x, y in points):
        raise DataError(
            f"The shape of {where} lies far outside its image.",
            found=f"Its points in pixels: {brief(points)}; the image is {height} x {width}.",
            repair="Coordinates are percentages of the image's width and height.",
        )


def _ellipse(value: Record, image_hw: tuple[int, int], where: str) -> NDArray[np.bool_]:
    """The pixels whose centers are inside."""
    x, y, a, b = _pixels(value, ("x", "y", "radiusX", "radiusY"), image_hw, where)
    sine, cosine = _turn(value, where)
    rows, columns = np.ogrid[: image_hw[0], : image_hw[1]]
    dx, dy = columns + 0.5 - x, rows + 0.5 - y
    _check_near([(x, y), (a, b)], image_hw, where)
    if a <= 0 or b <= 0:
        return np.zeros(image_hw, dtype=np.bool_)
    along, across = dx * cosine + dy * sine, dy * cosine - dx * sine
    return np.asarray((along * b) ** 2 + (across * a) ** 2 <= (a * b) ** 2, dtype=np.bool_)


def _pixels(
    value: Mapping[Any, Any], keys: tuple[str, ...], image_hw: tuple[int, int], where: str
) -> list[float]:
    """The values of keys, alternately percentages of the width and of the height, in pixels."""
    for key in keys:
        if not is_finite_number(value.get(key)):
            raise unfit(where, key, value.get(key), "a percentage of the image's size")
    return [float(value[key]) * image_hw[1 - i % 2] / 100 for i, key in enumerate(keys)]


def _turn(value: Mapping[Any, Any], where: str) -> tuple[float, float]:
    """Sine and cosine of a shape's rotation, which is clockwise."""
    degrees = value.get("rotation") or 0
    if not is_finite_number(degrees):
        raise unfit(where, "rotation", degrees, "degrees")
    return math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
