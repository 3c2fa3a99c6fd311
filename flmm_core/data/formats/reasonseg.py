"""ReasonSeg (LISA, CVPR 2024) as it is distributed, and a writer of the same files.

    ROOT/ReasonSeg/val/NAME.jpg
    ROOT/ReasonSeg/val/NAME.json    {"text": ["the place where ...?"], "is_sentence": true,
                                     "shapes": [{"label": "target", "points": [[x, y], ...]},
                                                {"label": "ignore", "points": ...}]}

One target per image, the union of its polygons. Polygons are painted from the largest to the
smallest, of equal ones the last in the file first, so a small "ignore" region within the target is
not part of it; shapes labeled "flag" are skipped. Points are truncated to whole pixels, and the
polygons filled as OpenCV fills them, with the publishers' pixels. Most files are UTF-8, some are
cp1252.

Splits: train, val, test. Pixels in "ignore" are not scored. Published scores take the first text of
each image, as "flmm-paper" does. Slices: "long query" (a sentence), "short query" (a phrase).
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.formats.shared.opencv_fill import fill_poly
from flmm_core.data.formats.shared.polygons import check_points, rectangles
from flmm_core.data.images import image_size_of
from flmm_core.data.records import expect, field, find_file, read_json, texts, unfit
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError, did_you_mean
from flmm_core.files import write_json

NOT_UTF8 = "cp1252"
"""The encoding of files that are not UTF-8, as the publishers read them."""
IMAGE_ENDINGS = (".jpg", ".jpeg", ".png")
SLICES = {True: "long query", False: "short query"}


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split by name, each with its one object; of the images the size is read."""
    images: list[AnnotatedImage] = []
    for file in sorted(_find_split(source.path, source.split).glob("*.json")):
        with findings.part():
            images.append(_image(file, source, findings))
    return tuple(images)


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


def _image(file: Path, source: Source, findings: Findings) -> AnnotatedImage:
    where = f"the file {file}"
    record = expect(read_json(file, NOT_UTF8), dict, where)
    path = find_file(
        source.image_folders([file.parent]),
        [f"{file.stem}{ending}" for ending in IMAGE_ENDINGS],
        f"The image of {file}",
        "Each image lies beside its JSON file under the same name.",
    )
    is_sentence = record.get("is_sentence")
    if is_sentence not in (True, False):
        raise unfit(where, "is_sentence", is_sentence, "true or false")
    height, width = image_size_of(path, upright=not source.as_stored)
    shapes = field(record, "shapes", list, where)
    target, ignored = _paint(shapes, height, width, file, findings)
    thing = GroundedObject(
        mask=rle.encode(target),
        sentences=texts(field(record, "text", list, where), "text", where),
        slice=SLICES[bool(is_sentence)],
        split=source.split,
        name="target",
        ignore=rle.encode_any(ignored),
    )
    return AnnotatedImage(path.name, path, (height, width), (thing,))


def _paint(
    shapes: list[Any], height: int, width: int, file: Path, findings: Findings
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """(target, ignored), each (H, W) bool; they do not overlap."""
    painted: list[tuple[bool, NDArray[np.bool_]]] = []
    for number, shape in enumerate(shapes):
        where = f"shape {number} of {file}"
        label = field(shape, "label", str, where).lower()
        if label == "flag":
            continue
        if "ignore" not in label and label != "target":
            raise DataError(
                f"Shape {number} of {file} has the label '{shape['label']}'.",
                found="Known: target, ignore, flag.",
            )
        try:
            points = check_points(field(shape, "points", list, where), 3, where)
        except DegenerateError as error:  # the other shapes can be used
            findings.skip(error.name, error.reason)
            continue
        whole = [(int(x), int(y)) for x, y in points]
        painted.append(("ignore" in label, fill_poly(whole, height, width)))
    target = np.zeros((height, width), dtype=np.bool_)
    ignored = target.copy()
    for is_ignored, region in sorted(painted, key=lambda pair: int(pair[1].sum()))[::-1]:
        target[region] = not is_ignored
        ignored[region] = is_ignored
    return target, ignored


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write a ReasonSeg folder, one image file per object, each before its JSON file.

    Masks are decomposed into rectangles. Pixels are saved as JPEG, as in the real data set;
    encoded files are copied unchanged.
    """
    for new, _ in checked(images):
        name = Path(new.file_name)
        ending = name.suffix if isinstance(new.image, (bytes, Path)) else ".jpg"
        for number, thing in enumerate(new.objects):
            stem = f"{name.with_suffix('').as_posix().replace('/', '_')}_{number}"
            target = folder / "ReasonSeg" / (thing.split or "train") / f"{stem}{ending}"
            new.save(target)
            shapes = _shapes("target", thing.read_mask())
            if thing.ignore is not None:
                shapes += _shapes("ignore", thing.ignore)
            record = {
                "text": list(thing.sentences),
                "is_sentence": thing.slice != SLICES[False],
                "shapes": shapes,
            }
            write_json(target.with_suffix(".json"), record, compact=True)


def _shapes(label: str, mask: Mask) -> list[dict[str, Any]]:
    return [
        {"label": label, "labels": [label], "shape_type": "polygon", "points": corners}
        for corners in rectangles(rle.decode(mask))
    ]
