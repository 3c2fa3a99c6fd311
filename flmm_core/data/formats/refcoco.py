"""RefCOCO, RefCOCO+ and RefCOCOg as they are distributed, and a writer of the same files.

    ROOT/refcoco/instances.json      images, categories, annotations (polygons or RLE)
    ROOT/refcoco/refs(unc).p         pickled list of refs: ann_id, image_id, split, sentences
    ROOT/refcoco+/...                the same;  ROOT/refcocog/refs(umd).p, refs(google).p
    ROOT/train2014/COCO_train2014_*.jpg, or ROOT/images/..., or as `file_name` says

Sentences are taken in their cleaned form (`sent`). An extra key "slice" in a ref, which others
ignore, names the part of the data set that scores are reported by.
"""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.coco_book import CocoBook
from flmm_core.data.formats.shared.coco_files import Instances, find_train2014
from flmm_core.data.formats.shared.fields import field, mapping
from flmm_core.data.formats.shared.unpickle import read_plain_pickle
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    write_image,
    write_whole,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.errors import DataError, did_you_mean

SPLIT_MAKERS: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Whose division into splits is meant if the split does not say ("google-val" does)."""

_MAKERS = ("unc", "umd", "google")


def read_refcoco(
    path: Path, dataset: str, split: str, findings: Findings | None = None
) -> tuple[AnnotatedImage, ...]:
    """The images of a split in the order of their first refs, each with all its refs.

    Every ref is one object. Masks are checked and compressed here, so that a broken annotation
    is named before any work is done; images are only looked up.

    Args:
        path: The folder that holds the data set's folder, or that folder itself.
        dataset: "refcoco", "refcoco+" or "refcocog".
        split: "train", "val", ...; with a maker before it ("google-val") from that maker's refs.
        findings: Collects faults; without it the first is raised.

    Raises:
        DataError: A file or image is missing, broken or does not fit another.
    """
    findings = findings or Findings()
    folder = find_folder(path, dataset, tuple(SPLIT_MAKERS))
    maker, _, rest = split.partition("-")
    if maker not in _MAKERS:
        maker, rest = SPLIT_MAKERS[dataset], split
    refs_path = folder / f"refs({maker}).p"
    if not refs_path.is_file():
        others = sorted(other.name for other in folder.glob("refs(*).p"))
        raise DataError(
            f"The refs file {refs_path} is missing.",
            found=f"In that folder: {', '.join(others) or 'no refs file at all'}.",
            repair="Add the file, or name the maker of another one in the split, "
            "for example '@google-val' for refs(google).p.",
        )
    refs = refs_of_split(read_plain_pickle(refs_path), refs_path, rest, findings)
    instances = Instances(folder / "instances.json", findings)
    objects: dict[int, list[GroundedObject]] = {}
    for ref in refs:
        with findings.part():
            image_id, thing = _object(ref, refs_path, instances)
            objects.setdefault(image_id, []).append(thing)
    return joined_images(folder, instances, objects, findings)


def joined_images(
    folder: Path,
    instances: Instances,
    objects: Mapping[int, Sequence[GroundedObject]],
    findings: Findings,
) -> tuple[AnnotatedImage, ...]:
    """Objects by image id -> images, with their files looked up."""
    paths = find_train2014(folder, instances, list(objects), findings)
    return tuple(
        AnnotatedImage(
            instances.file_name(image_id),
            paths[image_id],
            instances.size(image_id),
            tuple(objects[image_id]),
        )
        for image_id in objects
        if image_id in paths
    )


def find_folder(path: Path, dataset: str, siblings: Sequence[str]) -> Path:
    """The folder of a data set: below `path`, or `path` itself unless it is a sibling's."""
    candidates = [path / dataset]
    if path.name == dataset or path.name not in siblings:
        candidates.append(path)
    for folder in candidates:
        if (folder / "instances.json").is_file():
            return folder
    raise DataError(
        f"The data set '{dataset}' was not found in {path}.",
        found="Looked for:\n" + "\n".join(f"  {c / 'instances.json'}" for c in candidates),
        repair=f"Give the folder that holds '{dataset}/' with its instances.json.",
    )


# --- refs --------------------------------------------------------------------------------------


def refs_of_split(refs: Any, path: Path, split: str, findings: Findings) -> list[dict[Any, Any]]:
    """The refs of a split.

    Raises:
        DataError: What was read is no list of refs, or has no such split.
    """
    if not isinstance(refs, list):
        raise DataError(
            f"The file {path} is not a list of refs.", found=f"It is a {type(refs).__name__}."
        )
    seen: set[int] = set()
    kept: list[dict[Any, Any]] = []
    splits: Counter[str] = Counter()
    for number, ref in enumerate(refs):
        with findings.part():
            where = f"ref number {number} of {path}"
            ref_id = field(mapping(ref, where), "ref_id", int, where)
            if ref_id in seen:
                raise DataError(
                    f"The ref id {ref_id} stands twice in {path}.",
                    repair="Ids must be unique; get an unchanged copy of the file.",
                )
            seen.add(ref_id)
            its_split = field(ref, "split", str, where)
            splits[its_split] += 1
            if its_split == split:
                kept.append(ref)
    if not kept:
        there = ", ".join(f"{name} ({count} refs)" for name, count in splits.items())
        raise DataError(
            f"There is no split '{split}' in {path}. {did_you_mean(split, splits)}".rstrip(),
            found=f"Its splits: {there or 'none'}.",
            repair="Name one of them after the '@'.",
        )
    return kept


def _object(
    ref: dict[Any, Any], refs_path: Path, instances: Instances
) -> tuple[int, GroundedObject]:
    """(image id, object) of a ref, with its mask checked against its image."""
    where = f"ref {ref['ref_id']} of {refs_path}"
    ann_id = field(ref, "ann_id", int, where)
    image_id = instances.image_of(ann_id, where)
    if field(ref, "image_id", int, where) != image_id:
        raise DataError(
            f"Ref {ref['ref_id']} of {refs_path} and its annotation name different images.",
            found=f"The ref says image_id {ref['image_id']}; annotation {ann_id} in "
            f"{instances.path} says {image_id}.",
            repair="Use refs and instances of one release.",
        )
    sentences = sentences_of(ref, refs_path)
    return image_id, GroundedObject(
        mask=instances.mask(ann_id),
        sentences=sentences,
        category=instances.category(ann_id),
        slice=str(ref.get("slice", "")),
        split=ref["split"],
        name=str(ref["ref_id"]),
    )


def sentences_of(ref: Mapping[Any, Any], refs_path: Path) -> tuple[str, ...]:
    """A ref's sentences, at least one, none of them empty."""
    where = f"ref {ref['ref_id']} of {refs_path}"
    sentences: list[str] = []
    for said in field(ref, "sentences", list, where):
        text = field(mapping(said, f"a sentence of {where}"), "sent", str, where).strip()
        # Cleaning has left nothing of a few sentences; their raw form still has words.
        text = text or str(said.get("raw", "")).strip()
        if not text:
            raise DataError(f"Ref {ref['ref_id']} of {refs_path} has an empty sentence.")
        sentences.append(text)
    if not sentences:
        raise DataError(f"Ref {ref['ref_id']} of {refs_path} has no sentence.")
    return tuple(sentences)


# --- writing -----------------------------------------------------------------------------------


def write_refcoco(
    folder: Path,
    pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]],
    *,
    dataset: str = "refcoco",
) -> Path:
    """Write images and their objects as a RefCOCO folder that any reader of RefCOCO takes.

    Images go to `folder/images`, as they come; the two annotation files are written last and
    whole, so that a folder that has them is complete. An object without a split goes to "train".

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.
        dataset: "refcoco", "refcoco+" or "refcocog".

    Returns:
        `folder`, which `read_refcoco` takes.
    """
    book = CocoBook()
    refs: list[dict[str, Any]] = []
    for picture, size in new_images(pictures):
        write_image(picture, folder / "images" / picture.file_name)
        image_id = book.add_image(picture.file_name, size)
        for thing in picture.objects:
            ann_id = book.add(thing.read_mask(), image_id, thing.category)
            category_id = book.category_id(thing.category)
            refs.append(book.ref(thing, picture.file_name, image_id, ann_id, category_id))
    target = folder / dataset
    write_whole(target / f"refs({SPLIT_MAKERS[dataset]}).p", pickle.dumps(refs, protocol=2))
    write_whole(target / "instances.json", json.dumps(book.instances).encode())
    return folder
