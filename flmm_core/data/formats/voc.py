"""Pascal VOC segmentation as it is distributed, and as CVAT, Roboflow and others export it.

    ROOT/ImageSets/Segmentation/val.txt      the names of a split's images, one a line
    ROOT/JPEGImages/2007_000033.jpg
    ROOT/SegmentationClass/2007_000033.png   classes by color, or by number where there is none
    ROOT/SegmentationObject/2007_000033.png  objects 1, 2, ... of Annotations/2007_000033.xml
    ROOT/labelmap.txt                        own classes, "red_mug:128,0,0::" (CVAT)

PATH is ROOT, VOCdevkit with ROOT in it, or the folder above. All objects of a class in an image are
joined; the class name is their phrase ("dining table" for "diningtable"). SegmentationClass has all
that this needs; where it is missing, the objects of SegmentationObject are named by their order in
Annotations, as VOC numbers them. 255, the border of every object, is not scored.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.label_maps import (
    BACKGROUND,
    VOID,
    class_objects,
    color_code,
    colors_of,
    open_mask,
    present,
    values_of,
)
from flmm_core.data.formats.shared.tables import read_text
from flmm_core.data.images import IMAGE_ENDINGS
from flmm_core.data.records import brief, find_file, read_bytes
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.errors import DataError, did_you_mean

CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip
"""VOC's classes, 1 to 20."""
PHRASES = {
    "diningtable": "dining table",
    "pottedplant": "potted plant",
    "tvmonitor": "TV monitor",
}
VOID_COLOR = color_code(224, 224, 192)
"""The color of 255 in VOC's palette."""


@dataclass(frozen=True)
class _Names:
    """The classes by number and by color."""

    numbers: Mapping[int, str]
    colors: Mapping[int, str]


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split in the order of its list; without a split all that have masks."""
    root = _find_root(source.path, source.split)
    names = _names(root)
    images: list[AnnotatedImage] = []
    for name in _split_names(root, source.split):
        with findings.part():
            path = find_file(
                source.image_folders([root / "JPEGImages"]),
                [f"{name}{ending}" for ending in IMAGE_ENDINGS],
                f"The image {name} of {root}",
                "Put the images of the data set into 'JPEGImages'.",
            )
            image_hw, things = _objects(root, name, names, source.split, findings)
            if things:
                images.append(AnnotatedImage(path.name, path, image_hw, things))
            else:
                findings.skip(f"the image {path}", "no class is marked in it", counts=False)
    return tuple(images)


def _find_root(path: Path, split: str) -> Path:
    """The newest of the folders that have masks, and the split if one is asked for."""
    years = [*path.glob("VOC2*"), *path.glob("VOCdevkit/VOC2*")]
    roots = [
        root
        for root in [path, *sorted(years, reverse=True)]
        if any((root / sub).is_dir() for sub in ("SegmentationClass", "SegmentationObject"))
    ]
    if not roots:
        raise DataError(
            f"There is no Pascal VOC segmentation in {path}.",
            found="Looked for 'SegmentationClass' or 'SegmentationObject' there, in VOC2* and in "
            "VOCdevkit/VOC2*.",
            repair="Give the folder that holds them.",
        )
    return next((root for root in roots if split and _list_of(root, split).is_file()), roots[0])


def _list_of(root: Path, split: str) -> Path:
    return root / "ImageSets" / "Segmentation" / f"{split}.txt"


def _split_names(root: Path, split: str) -> list[str]:
    if not split:
        return sorted({file.stem for file in root.glob("Segmentation*/*.png")})
    file = _list_of(root, split)
    if not file.is_file():
        there = sorted(other.stem for other in file.parent.glob("*.txt"))
        raise DataError(
            f"There is no split '{split}' in {root}. {did_you_mean(split, there)}".rstrip(),
            found=f"Its splits: {', '.join(there) or 'none'}; looked for {file}.",
            repair="Name one of them after the '@', or none to read all images.",
        )
    return [line.split()[0] for line in read_text(file).splitlines() if line.strip()]


def _names(root: Path) -> _Names:
    file = root / "labelmap.txt"
    if not file.is_file():
        numbers = dict(enumerate(CLASSES, start=1))
        return _Names(numbers, {_color(n): name for n, name in numbers.items()})
    listed: dict[str, int] = {}
    for number, line in enumerate(read_text(file).splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        name, _, rest = line.partition(":")
        red, _, more = rest.partition(":")[0].partition(",")
        try:
            color = color_code(int(red), *(int(part) for part in more.split(",")))
        except (TypeError, ValueError) as error:
            raise DataError(
                f"Line {number} of {file} is not a class.",
                found=f"Expected 'name:red,green,blue::'; it is {brief(line)}.",
            ) from error
        listed[name.strip()] = color
    return _Names(dict(enumerate(listed)), {color: name for name, color in listed.items()})


def _color(number: int) -> int:
    """The color of a number in VOC's palette: its bits, three at a time, from the highest on."""
    bands = [0, 0, 0]
    for bit in range(8):
        for band in range(3):
            bands[band] |= (number >> (3 * bit + band) & 1) << (7 - bit)
    return color_code(*bands)


def _objects(
    root: Path, name: str, names: _Names, split: str, findings: Findings
) -> tuple[tuple[int, int], tuple[GroundedObject, ...]]:
    """(H, W) and the objects of an image."""
    path, known, void = root / "SegmentationClass" / f"{name}.png", names.numbers, VOID
    if path.is_file():
        mask = open_mask(path)
        values = colors_of(mask)
        # Palettes hold the colors of the classes, unless a tool left them out.
        if mask.mode.startswith("RGB") or set(names.colors) & set(present(values)) - {BACKGROUND}:
            known, void = names.colors, VOID_COLOR
        else:
            values = values_of(mask, path)
    else:
        path, known = root / "SegmentationObject" / path.name, _annotated(root, name)
        values = values_of(open_mask(path), path)
    things = class_objects(
        values, known, str(path), findings, split=split, void=void, phrases=PHRASES
    )
    return (values.shape[0], values.shape[1]), things


def _annotated(root: Path, name: str) -> dict[int, str]:
    """The class of each object of an image, by its number from 1 on."""
    file = root / "Annotations" / f"{name}.xml"
    try:
        tree = ElementTree.fromstring(read_bytes(file))
    except ElementTree.ParseError as error:
        raise DataError(f"The file {file} is not XML.", found=f"{error}.") from error
    listed = [(thing.findtext("name") or "").strip() for thing in tree.iter("object")]
    return {number: label for number, label in enumerate(listed, start=1) if label}
