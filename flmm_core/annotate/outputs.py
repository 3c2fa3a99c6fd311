"""What is written of results: overlays, masks, records, COCO and LabelMe files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flmm_core.errors import DataError
from flmm_core.files import write_json
from flmm_core.pipeline.result_files import RESULT

KINDS = {
    "overlay": "overlay.png, the image with all masks",
    "masks": "mask-1.png, ... (0 and 255), one per phrase",
    "attention": "attention-1.png, ... and attention.npz, where each phrase's words look",
    "coco": "instances.json, COCO annotations of all images",
    "labelme": "labelme/NAME.json, one LabelMe file per image",
}
COCO = "instances.json"
LABELME = "labelme"


def write_coco(folder: Path, images: Iterable[tuple[Path, Mapping[str, Any]]]) -> Path:
    """Write instances.json of images and their contents of result.json; returns its path.

    `--data coco:FOLDER` reads it.
    """
    named = ((relative_name(path, folder), content) for path, content in images)
    write_json(folder / COCO, coco_content(named), compact=True)
    return folder / COCO


def coco_content(images: Iterable[tuple[str, Mapping[str, Any]]]) -> dict[str, Any]:
    """The content of a COCO file of images, by `file_name`, and their contents of result.json.

    Every mask is an annotation with its phrase as category and in "phrases", its score and its
    probability.
    """
    from flmm_core.data import rle
    from flmm_core.data.formats.shared.coco_json import NewInstances

    instances = NewInstances()
    for name, content in images:
        height, width = content["height"], content["width"]
        instances.images.append(
            {"id": len(instances.images) + 1, "file_name": name, "height": height, "width": width}
        )
        for record in content["found"]:
            if record["area"]:
                phrase, more = record["phrase"], ("score", "probability")
                mask = rle.to_rle(record["segmentation"], height, width, source=name)
                facts = {key: record[key] for key in more if record[key] is not None}
                instances.add(mask, phrase, phrases=[phrase], **facts)
    return instances.content()


def write_labelme(
    folder: Path, images: Iterable[tuple[Path, str, Mapping[str, Any]]]
) -> list[Path]:
    """Write FOLDER/labelme/NAME.json of images, their names and contents of result.json.

    Each mask is a shape with its phrase as label; the image stays where it is.
    """
    from flmm_core.data import rle
    from flmm_core.data.formats.labelme import new_record, new_shape

    place, written = folder / LABELME, []
    for path, name, content in images:
        height, width = content["height"], content["width"]
        shapes = [
            new_shape(
                record["phrase"],
                rle.to_rle(record["segmentation"], height, width, source=str(path)),
            )
            for record in content["found"]
            if record["area"]
        ]
        file = place / f"{name.replace('/', '_')}.json"
        while file in written:  # "a/b.jpg" and "a_b.jpg"
            file = file.with_name(f"{file.stem}_.json")
        write_json(
            file, new_record(relative_name(path, place), (height, width), shapes), compact=True
        )
        written.append(file)
    return written


def relative_name(path: Path, folder: Path) -> str:
    """How a file in a folder names an image elsewhere: relative, so that both can be moved."""
    try:
        name = os.path.relpath(os.path.realpath(path), os.path.realpath(folder))
    except ValueError:  # another drive of Windows
        name = os.path.realpath(path)
    return Path(name).as_posix()


def read_result(folder: Path) -> dict[str, Any] | None:
    """The content of an earlier result.json; None if there is none or it cannot be read."""
    from flmm_core.data.records import read_json

    try:
        content = read_json(folder / RESULT)
    except DataError:
        return None
    return content if isinstance(content, dict) else None
