"""ReasonSeg (LISA, CVPR 2024) as it is distributed, and a writer of the same files.

    ROOT/ReasonSeg/val/NAME.jpg
    ROOT/ReasonSeg/val/NAME.json    {"text": ["the place where ...?"], "is_sentence": true,
                                     "shapes": [{"label": "target", "points": [[x, y], ...]},
                                                {"label": "ignore", "points": ...}]}

One image, one target. Polygons are painted from the largest to the smallest, so a small
"ignore" region within the target is not part of it; shapes labelled "flag" mean nothing. Points
are cut to whole pixels and polygons filled with their outline, as the publishers do. Most files
are UTF-8, some are cp1252.

Splits: train, val, test. Protocol: the truth is the union of the target polygons; pixels in
"ignore" count neither way. Published scores take the first text of each image, as "flmm-paper"
does; "standard" scores every text. Slices: "long query" (a sentence), "short query" (a phrase).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.fields import brief, field, mapping
from flmm_core.data.formats.shared.json_files import read_json
from flmm_core.data.formats.shared.polygons import check_points, fill, rectangles
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    write_image,
    write_whole,
)
from flmm_core.data.images import image_size_of
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError, did_you_mean

ENCODINGS = ("utf-8", "cp1252")
PICTURE_ENDINGS = (".jpg", ".jpeg", ".png")
SLICES = {True: "long query", False: "short query"}


def read_reasonseg(
    path: Path, split: str, findings: Findings | None = None
) -> tuple[AnnotatedImage, ...]:
    """The images of a split by name, each with its one object.

    Masks are painted and compressed here; of the images only the size is read.

    Args:
        path: The folder that holds "ReasonSeg/", or that folder itself.
        split: "train", "val" or "test".
        findings: Collects faults; without it the first is raised.

    Raises:
        DataError: A file or image is missing or broken.
    """
    findings = findings or Findings()
    folder = _find_split(path, split)
    pictures: list[AnnotatedImage] = []
    for file in sorted(folder.glob("*.json")):
        with findings.part():
            pictures.append(_image(file, split))
    return tuple(pictures)


def _find_split(path: Path, split: str) -> Path:
    candidates = [path / "ReasonSeg" / split, path / split]
    for folder in candidates:
        if any(folder.glob("*.json")):
            return folder
    there = sorted(
        {file.parent.name for up in candidates for file in up.parent.glob("*/*.json")}
        - {"explanatory"}
    )
    raise DataError(
        f"There is no split '{split}' of ReasonSeg in {path}. "
        f"{did_you_mean(split, there)}".rstrip(),
        found=f"Its splits: {', '.join(there) or 'none'}. Looked for:\n"
        + "\n".join(f"  {folder}/*.json" for folder in candidates),
        repair="Give the folder that holds 'ReasonSeg/', and name a split after the '@'.",
    )


def _image(file: Path, split: str) -> AnnotatedImage:
    record = mapping(read_json(file, ENCODINGS), f"the file {file}")
    where = f"the file {file}"
    image = next((p for p in map(file.with_suffix, PICTURE_ENDINGS) if p.is_file()), None)
    if image is None:
        raise DataError(
            f"The image of {file} is missing.",
            found=f"Looked for {file.with_suffix('.jpg')}.",
            repair="Each image lies beside its JSON file under the same name.",
        )
    texts = field(record, "text", list, where)
    if not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(
            f"The file {file} has {brief(texts)} for 'text'.",
            found="Expected a list of strings, at least one and none empty.",
        )
    height, width = image_size_of(image)
    target, ignored = _paint(field(record, "shapes", list, where), height, width, file)
    return AnnotatedImage(
        image.name,
        image,
        (height, width),
        (
            GroundedObject(
                mask=rle.encode(target),
                sentences=tuple(text.strip() for text in texts),
                slice=SLICES[_is_sentence(record, file)],
                split=split,
                name="target",
                ignore=rle.encode(ignored) if ignored.any() else None,
            ),
        ),
    )


def _is_sentence(record: dict[Any, Any], file: Path) -> bool:
    value = record.get("is_sentence")
    if value not in (True, False):
        raise DataError(
            f"The file {file} has {brief(value)} for 'is_sentence'.",
            found="Expected true or false.",
        )
    return bool(value)


def _paint(
    shapes: list[Any], height: int, width: int, file: Path
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(target, ignored), each (H, W) bool; they do not overlap."""
    painted: list[tuple[bool, NDArray[np.bool_]]] = []
    for number, shape in enumerate(shapes):
        where = f"shape {number} of {file}"
        label = field(mapping(shape, where), "label", str, where).lower()
        if label == "flag":
            continue
        if "ignore" not in label and label != "target":
            raise DataError(
                f"Shape {number} of {file} has the label '{shape['label']}'.",
                found="Known: target, ignore, flag.",
            )
        points = check_points(field(shape, "points", list, where), 3, where)
        whole = [(float(int(x)), float(int(y))) for x, y in points]
        painted.append(("ignore" in label, fill(whole, height, width)))
    target = np.zeros((height, width), dtype=np.bool_)
    ignored = target.copy()
    for is_ignored, region in sorted(painted, key=lambda pair: -int(pair[1].sum())):
        target[region] = not is_ignored
        ignored[region] = is_ignored
    return target, ignored


def write_reasonseg(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images and their objects as a ReasonSeg folder, one image file an object.

    Masks are written as rectangles, which may have any shape and holes. A JSON file is written
    after its image.

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time. Pixels become JPEG, as in the real
            data set; encoded files are copied unchanged.

    Returns:
        `folder`, which `read_reasonseg` takes.
    """
    for picture, _ in new_images(pictures):
        name = Path(picture.file_name)
        encoded = isinstance(picture.image, (bytes, Path))
        ending = name.suffix if encoded else ".jpg"
        for number, thing in enumerate(picture.objects):
            stem = f"{name.with_suffix('').as_posix().replace('/', '_')}_{number}"
            target = folder / "ReasonSeg" / (thing.split or "train") / f"{stem}{ending}"
            write_image(picture, target)
            shapes = _shapes("target", thing.read_mask())
            if thing.ignore is not None:
                shapes += _shapes("ignore", thing.ignore)
            record = {
                "text": list(thing.sentences),
                "is_sentence": thing.slice != SLICES[False],
                "shapes": shapes,
            }
            write_whole(
                target.with_suffix(".json"), json.dumps(record, ensure_ascii=False).encode()
            )
    return folder


def _shapes(label: str, mask: Mask) -> list[dict[str, Any]]:
    return [
        {"label": label, "labels": [label], "shape_type": "polygon", "points": corners}
        for corners in rectangles(rle.decode(mask))
    ]
