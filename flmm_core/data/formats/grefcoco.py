"""gRefCOCO as it is distributed, and a writer of the same files.

    ROOT/grefcoco/grefs(unc).json   list of refs as in RefCOCO; ann_id and category_id are lists,
                                    [-1] where nothing in the image is meant
    ROOT/grefcoco/instances.json    as in RefCOCO
    ROOT/train2014/COCO_train2014_*.jpg, or wherever RefCOCO's images may lie

Splits: train, val, testA, testB. Protocol (GRES, CVPR 2023): every sentence is scored alone; its
truth is the union of all its targets, and no pixel where there is none. Slices: "no target",
"one target", "several targets".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.refcoco import find_folder, joined_images, refs_of_split, sentences_of
from flmm_core.data.formats.shared.coco_book import CocoBook
from flmm_core.data.formats.shared.coco_files import Instances
from flmm_core.data.formats.shared.fields import brief, field, sentence
from flmm_core.data.formats.shared.json_files import read_json
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    write_image,
    write_whole,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.errors import DataError

FILE_NAME = "grefs(unc).json"
SLICES = ("no target", "one target", "several targets")


def read_grefcoco(
    path: Path, split: str, findings: Findings | None = None
) -> tuple[AnnotatedImage, ...]:
    """The images of a split in the order of their first refs, each with all its refs.

    Args:
        path: The folder that holds "grefcoco/", or that folder itself.
        split: "train", "val", "testA" or "testB".
        findings: Collects faults; without it the first is raised.

    Raises:
        DataError: A file or image is missing, broken or does not fit another.
    """
    findings = findings or Findings()
    folder = find_folder(path, "grefcoco", ())
    refs_path = folder / FILE_NAME
    refs = refs_of_split(read_json(refs_path), refs_path, split, findings)
    instances = Instances(folder / "instances.json", findings)
    objects: dict[int, list[GroundedObject]] = {}
    for ref in refs:
        with findings.part():
            image_id, thing = _object(ref, refs_path, instances)
            objects.setdefault(image_id, []).append(thing)
    return joined_images(folder, instances, objects, findings)


def _object(
    ref: dict[Any, Any], refs_path: Path, instances: Instances
) -> tuple[int, GroundedObject]:
    """(image id, object) of a ref, its targets joined and checked against its image."""
    where = f"ref {ref['ref_id']} of {refs_path}"
    image_id = field(ref, "image_id", int, where)
    if not instances.has_image(image_id):
        raise DataError(
            f"Ref {ref['ref_id']} of {refs_path} has no image.",
            found=f"Its image_id is {image_id}, which is not among the 'images' of "
            f"{instances.path}.",
            repair="Use refs and instances of one release.",
        )
    targets = _targets(ref, where)
    for ann_id in targets:
        theirs = instances.image_of(ann_id, where)
        if theirs != image_id:
            raise DataError(
                f"Ref {ref['ref_id']} of {refs_path} and its annotation name different images.",
                found=f"The ref says image_id {image_id}; annotation {ann_id} in "
                f"{instances.path} says {theirs}.",
                repair="Use refs and instances of one release.",
            )
    masks = [instances.mask(ann_id) for ann_id in targets]
    categories = dict.fromkeys(instances.category(ann_id) for ann_id in targets)
    return image_id, GroundedObject(
        mask=rle.merge(masks) if masks else rle.empty(*instances.size(image_id)),
        sentences=sentences_of(ref, refs_path),
        category=", ".join(categories),
        slice=SLICES[min(len(targets), 2)],
        split=ref["split"],
        name=str(ref["ref_id"]),
    )


def _targets(ref: dict[Any, Any], where: str) -> list[int]:
    """The ids of what a ref means, each once; none where it says -1."""
    stored = field(ref, "ann_id", object, where)
    listed = stored if isinstance(stored, list) else [stored]
    if not listed or not all(type(ann_id) is int for ann_id in listed):
        raise DataError(
            f"{sentence(where)} has {brief(stored)} for 'ann_id'.",
            found="Expected a list of annotation ids, or [-1] where nothing is meant.",
        )
    targets = [] if listed == [-1] else list(dict.fromkeys(listed))
    if bool(ref.get("no_target", not targets)) != (not targets):
        raise DataError(
            f"{sentence(where)} contradicts itself.",
            found=f"Its 'no_target' is {ref['no_target']}, its 'ann_id' is {brief(stored)}.",
            repair="Get an unchanged copy of the file.",
        )
    return targets


def write_grefcoco(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images and their objects as a gRefCOCO folder.

    An object's `parts` are written as an annotation each, an empty mask as no target. Images go
    to `folder/images`; the two annotation files are written last and whole.

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.

    Returns:
        `folder`, which `read_grefcoco` takes.
    """
    book = CocoBook()
    refs: list[dict[str, Any]] = []
    for picture, size in new_images(pictures):
        write_image(picture, folder / "images" / picture.file_name)
        image_id = book.add_image(picture.file_name, size)
        written: dict[bytes, tuple[int, int]] = {}  # (annotation, category) of each target
        for thing in picture.objects:
            masks = [m for m in thing.parts or (thing.read_mask(),) if rle.area(m)]
            for mask in masks:
                if mask["counts"] not in written:
                    ann_id = book.add(mask, image_id, thing.category)
                    written[mask["counts"]] = ann_id, book.category_id(thing.category)
            ids = [written[mask["counts"]] for mask in masks] or [(-1, -1)]
            ann_ids, category_ids = (list(column) for column in zip(*ids, strict=True))
            ref = book.ref(thing, picture.file_name, image_id, ann_ids, category_ids)
            refs.append({**ref, "no_target": not masks})
    target = folder / "grefcoco"
    write_whole(target / FILE_NAME, json.dumps(refs).encode())
    write_whole(target / "instances.json", json.dumps(book.instances).encode())
    return folder
