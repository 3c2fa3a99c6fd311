"""gRefCOCO as it is distributed, and a writer of the same files.

    ROOT/grefcoco/grefs(unc).json   list of refs as in RefCOCO; ann_id and category_id are lists,
                                    [-1] where nothing in the image is meant
    ROOT/grefcoco/instances.json    as in RefCOCO
    ROOT/train2014/COCO_train2014_*.jpg, or wherever RefCOCO's images may lie

Splits: train, val, testA, testB. The ground truth of a ref is the union of all its targets (GRES,
CVPR 2023), which may be none. Slices: "no target", "one target", "several targets".
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.coco_json import NewInstances
from flmm_core.data.formats.shared.new_image import NewImage, checked, targets
from flmm_core.data.formats.shared.refs import add_ref, find_folder, read_refs
from flmm_core.data.records import RELEASE, Record, brief, field, read_json, sentence, unfit
from flmm_core.data.sample import AnnotatedImage
from flmm_core.errors import DataError
from flmm_core.files import write_json

FILE_NAME = "grefs(unc).json"
SLICES = ("no target", "one target", "several targets")


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split; see `read_refs`. PATH is ROOT or the data set's folder."""
    refs_path = find_folder(source.path, "grefcoco") / FILE_NAME
    refs = read_json(refs_path)
    return read_refs(refs, refs_path, source, source.split, _meaning, findings)


def _meaning(ref: Record, where: str) -> tuple[list[int], str]:
    """The ids of a ref's targets, each once; none for -1."""
    stored = field(ref, "ann_id", object, where)
    listed = stored if isinstance(stored, list) else [stored]
    if not listed or not all(type(ann_id) is int for ann_id in listed):
        expected = "a list of annotation ids, or [-1] where nothing is meant"
        raise unfit(where, "ann_id", stored, expected)
    ann_ids = [] if listed == [-1] else list(dict.fromkeys(listed))
    if bool(ref.get("no_target", not ann_ids)) != (not ann_ids):
        raise DataError(
            f"{sentence(where)} contradicts itself.",
            found=f"Its 'no_target' is {ref['no_target']}, its 'ann_id' is {brief(stored)}.",
            repair=RELEASE,
        )
    return ann_ids, SLICES[min(len(ann_ids), 2)]


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write a gRefCOCO folder, the two annotation files last.

    Each of an object's `parts` is an annotation; an empty mask has none.
    """
    instances = NewInstances()
    refs: list[dict[str, Any]] = []
    for new, image_hw in checked(images):
        instances.add_image(new, image_hw, folder / "images/train2014")
        written: dict[bytes, tuple[int, int]] = {}  # (annotation, category) of each target
        for thing in new.objects:
            masks = targets(thing)
            for mask in masks:
                if mask["counts"] not in written:
                    ann_id = instances.add(mask, thing.category)
                    written[mask["counts"]] = ann_id, instances.category_id(thing.category)
            ids = [written[mask["counts"]] for mask in masks] or [(-1, -1)]
            ann_ids, category_ids = (list(column) for column in zip(*ids, strict=True))
            add_ref(refs, thing, instances.images[-1], ann_ids, category_ids)
            refs[-1]["no_target"] = not masks
    target = folder / "grefcoco"
    write_json(target / FILE_NAME, refs, compact=True)
    write_json(target / "instances.json", instances.content(), compact=True)
