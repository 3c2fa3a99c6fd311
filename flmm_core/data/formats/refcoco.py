"""RefCOCO, RefCOCO+ and RefCOCOg as they are distributed, and a writer of the same files.

    ROOT/refcoco/instances.json      images, categories, annotations (polygons or RLE)
    ROOT/refcoco/refs(unc).p         pickled list of refs: ann_id, image_id, split, sentences
    ROOT/refcoco+/...                the same;  ROOT/refcocog/refs(umd).p, refs(google).p
    ROOT/train2014/COCO_train2014_*.jpg, or ROOT/images/..., or as `file_name` says; or in the
                                     folder of the source's option ",images=DIR"

Splits: "train", "val", ...; with a prefix ("google-val") from that maker's refs. Sentences are
read in their cleaned form (`sent`). Two extra keys of a ref, which others ignore: "slice" is the
part of the data set that scores are reported by; "no_target" says that nothing is meant.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.coco_json import NewInstances
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.formats.shared.plain_pickle import read_plain_pickle
from flmm_core.data.formats.shared.refs import add_ref, find_folder, read_refs
from flmm_core.data.records import Record, field, find_file
from flmm_core.data.sample import AnnotatedImage
from flmm_core.files import write_bytes, write_json

SPLIT_MAKERS: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Whose splits are read by default."""

_MAKERS = ("unc", "umd", "google")


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a split; see `read_refs`. PATH is ROOT or the data set's folder."""
    folder = find_folder(source.path, source.format, tuple(SPLIT_MAKERS))
    maker, _, split = source.split.partition("-")
    if maker not in _MAKERS:
        maker, split = SPLIT_MAKERS[source.format], source.split
    others = sorted(other.name for other in folder.glob("refs(*).p"))
    refs_path = find_file(
        [folder],
        [f"refs({maker}).p"],
        f"The refs file of {source.label}",
        "Add the file, or name the maker of another one in the split, "
        "for example '@google-val' for refs(google).p.",
        found=f"There are: {', '.join(others) or 'none'}. ",
    )
    return read_refs(read_plain_pickle(refs_path), refs_path, source, split, _meaning, findings)


def _meaning(ref: Record, where: str) -> tuple[list[int], str]:
    absent = ref.get("no_target") is True
    return [] if absent else [field(ref, "ann_id", int, where)], str(ref.get("slice", ""))


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write a RefCOCO folder that any reader of RefCOCO can read, the two annotation files last."""
    instances = NewInstances()
    refs: list[dict[str, Any]] = []
    for new, image_hw in checked(images):
        instances.add_image(new, image_hw, folder / "images/mscoco/images/train2014")
        for thing in new.objects:
            ann_id = instances.add(thing.read_mask(), thing.category)
            category_id = instances.category_id(thing.category)
            add_ref(refs, thing, instances.images[-1], ann_id, category_id)
            if thing.absent:
                refs[-1]["no_target"] = True
    target = folder / "refcoco"
    write_bytes(target / "refs(unc).p", pickle.dumps(refs, protocol=2))
    write_json(target / "instances.json", instances.content(), compact=True)
