"""YOLO segmentation as Ultralytics trains on it, and as Roboflow, CVAT and Label Studio export it.

    ROOT/data.yaml             train: images/train   val: images/val   names: {0: mug, 1: spoon}
    ROOT/images/train/a.jpg    ROOT/labels/train/a.txt    a line per polygon: CLASS x0 y0 x1 y1 ...

The coordinates are fractions of the image's width and height. A split is any key of data.yaml: a
folder, a .txt file that lists images, or a list of those. The labels of an image are found as
Ultralytics does, by the last "images" of its path. ROOT/classes.txt (one name a line) stands for
data.yaml in exports that have no splits.

Masks have the pixels of Ultralytics: points in pixels without their fractions, filled by OpenCV.
All polygons of one class in an image are joined; the class name is their phrase, with spaces for
underscores. Boxes have no mask and are left out. Images without labels are skipped.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.class_masks import ClassMasks
from flmm_core.data.formats.shared.opencv_fill import fill_poly
from flmm_core.data.formats.shared.tables import read_text, read_yaml
from flmm_core.data.images import IMAGE_ENDINGS, image_size_of
from flmm_core.data.records import brief, expect, field, read_lines, sentence
from flmm_core.data.sample import AnnotatedImage
from flmm_core.errors import DataError, did_you_mean

SLACK = 0.01
"""How far a point may lie beyond the image, as a fraction of it; Ultralytics allows as much."""
_NO_SPLITS = ("path", "names", "nc", "download", "kpt_shape", "flip_idx", "channels", "yaml_file")


@dataclass(frozen=True)
class _Labels:
    """The names of the classes, and where the images of a split are."""

    file: Path
    names: dict[int, str]
    folders: tuple[Path, ...]


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split, sorted by their paths; PATH may be the YAML file."""
    labels = _open(source.path, source.split)
    images: list[AnnotatedImage] = []
    for path in dict.fromkeys(path for place in labels.folders for path in _images(place)):
        with findings.part():
            masks = ClassMasks(image_size_of(path, upright=not source.as_stored), source.split)
            _read_labels(path, labels, masks, findings)
            if things := masks.objects():
                name = path.relative_to(labels.file.parent) if _within(path, labels) else path
                images.append(AnnotatedImage(name.as_posix(), path, masks.image_hw, things))
    return tuple(images)


def _within(path: Path, labels: _Labels) -> bool:
    return path.is_relative_to(labels.file.parent)


def _open(path: Path, split: str) -> _Labels:
    if path.is_dir():
        known = ("data.yaml", "data.yml", "dataset.yaml")
        files = [path / name for name in known if (path / name).is_file()]
        files += sorted([*path.glob("*.yaml"), *path.glob("*.yml")])
        if not files and (path / "classes.txt").is_file():
            return _without_yaml(path, split)
        if not files:
            raise DataError(
                f"There is no data.yaml in {path}.",
                found="A YOLO data set has one, with the names of its classes and the folders of "
                "its splits, or a classes.txt.",
                repair="Give the folder that holds it, or the YAML file itself.",
            )
        path = files[0]
    return _of_yaml(path, split)


def _of_yaml(file: Path, split: str) -> _Labels:
    record = expect(read_yaml(file), dict, f"the file {file}")
    names = _names(field(record, "names", object, f"the file {file}"), file)
    splits = [str(key) for key, value in record.items() if key not in _NO_SPLITS and value]
    if split not in splits:
        raise DataError(
            f"There is no split '{split}' in {file}. {did_you_mean(split, splits)}".rstrip()
            if split
            else f"The data set {file} has splits, and none is named.",
            found=f"Its splits: {', '.join(map(str, splits)) or 'none'}.",
            repair="Name one of them after the '@'.",
        )
    listed = record[split] if isinstance(record[split], list) else [record[split]]
    root = file.parent / str(record.get("path") or "")
    folders = tuple(_place(root, file, str(entry), split) for entry in listed)
    return _Labels(file, names, folders)


def _names(listed: Any, file: Path) -> dict[int, str]:
    pairs = dict(enumerate(listed)) if isinstance(listed, list) else listed
    if not isinstance(pairs, dict) or not all(
        type(key) is int and name is not None and str(name).strip() for key, name in pairs.items()
    ):
        raise DataError(
            f"The 'names' of {file} are {brief(listed)}.",
            found="Expected a list of class names, or a mapping from class numbers to them.",
        )
    return {key: str(name).strip() for key, name in pairs.items()}


def _place(root: Path, file: Path, entry: str, split: str) -> Path:
    """The folder or list of a split, which is relative to `root`, or to the file's folder."""
    # Roboflow writes "../train/images" for what lies in the file's own folder.
    entries = [entry, entry.removeprefix("../")]
    places = [base / name for base in (root, file.parent) for name in entries]
    for place in places:
        with suppress(OSError, ValueError):  # names that no file can have
            if place.exists():
                return place
    raise DataError(
        f"The images of the split '{split}' of {file} are missing.",
        found="\n  ".join(["Looked for:", *dict.fromkeys(map(str, places))]),
        repair="Correct the path in the file; it is relative to 'path', or to the file's folder.",
    )


def _without_yaml(path: Path, split: str) -> _Labels:
    if split:
        raise DataError(
            f"The data set {path} has no split '{split}'.",
            found="Its classes.txt names no splits.",
            repair="Leave '@' and the split away, or add a data.yaml that names it.",
        )
    file = path / "classes.txt"
    lines = enumerate(read_text(file).splitlines())
    names = {number: line.strip() for number, line in lines if line.strip()}
    folder = path / "images"
    return _Labels(file, names, (folder if folder.is_dir() else path,))


def _images(place: Path) -> Iterator[Path]:
    if place.is_dir():
        yield from sorted(p for p in place.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
        return
    for line in read_text(place).splitlines():
        if name := line.strip():
            yield place.parent / name


def _read_labels(path: Path, labels: _Labels, masks: ClassMasks, findings: Findings) -> None:
    file = label_path(path)
    lines = list(read_lines(file)) if file.is_file() else []
    if not any(line.strip() for line in lines):
        findings.skip(f"the image {path}", f"there is no label in {file}", counts=False)
    height, width = masks.image_hw
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        with findings.part():
            where = f"line {number} of {file}"
            name, points = _polygon(line, labels, where)
            # In single precision, as Ultralytics: 0.29 of 100 pixels is 29, not 28.
            scaled = np.array(points, np.float32) * np.array((width, height), np.float32)
            whole = [(int(x), int(y)) for x, y in scaled]
            masks.add(name, fill_poly(whole, height, width), where)


def label_path(image: Path) -> Path:
    """Where the labels of an image are: "images" becomes "labels" where it comes last."""
    parts = list(PurePath(image).parts)
    for index in range(len(parts) - 2, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return Path(*parts).with_suffix(".txt")


def _polygon(line: bytes, labels: _Labels, where: str) -> tuple[str, list[tuple[float, float]]]:
    """The class and the points of a line, as fractions."""
    text = line.decode("utf-8-sig", "replace").strip()
    try:
        number, *rest = (float(word) for word in text.split())
    except ValueError as error:
        raise DataError(
            f"{sentence(where)} is not a list of numbers.", found=f"It is {brief(text)}."
        ) from error
    if number not in labels.names:
        raise DataError(
            f"{sentence(where)} has the class {number:g}, which has no name.",
            found=f"{labels.file} names {len(labels.names)} classes, from 0 on.",
            repair="Add the name, or use the labels and names of one export.",
        )
    if len(rest) == 4:
        raise DegenerateError(where, "it is a box, and has no mask")
    points = list(zip(rest[::2], rest[1::2], strict=False))
    if len(rest) % 2 or not all(
        math.isfinite(n) and -SLACK <= n <= 1 + SLACK for point in points for n in point
    ):
        raise DataError(
            f"{sentence(where)} is not a polygon.",
            found=f"Expected a class and an even number of coordinates from 0 to 1; "
            f"it is {brief(text)}.",
            repair="Coordinates are fractions of the image's width and height.",
        )
    if len(points) < 3:
        raise DegenerateError(where, f"it needs 3 points and has {len(points) or 'none'}")
    return labels.names[int(number)], points
