"""Refs to the annotations of an instances.json: what RefCOCO and gRefCOCO share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import DegenerateError, Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.coco_json import Instances, coco_names
from flmm_core.data.formats.shared.degenerate import NO_SENTENCE
from flmm_core.data.formats.shared.image_paths import ImagePaths
from flmm_core.data.records import (
    Record,
    expect,
    field,
    find_file,
    records_by_id,
    sentence,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.errors import DataError, did_you_mean

IMAGE_FOLDERS = (
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "coco/train2014",
    "images",
    "train2017",
    "images/train2017",
    "images/saiapr_tc-12",
    "images/{name}/JPEGImages",
    "images/{name}",
    "JPEGImages",
    "",
)
"""Where the images may lie, below the data set's folder {name} or the one above; those of COCO, of
RefCLEF, and of sets that were made for the same readers (RRSIS-D)."""
GET_IMAGES = (
    "Put the images (of RefCOCO: http://images.cocodataset.org/zips/train2014.zip) into one of "
    "these folders, or name their folder: --data {}:PATH@{},images=DIR."
)

Meaning = Callable[[Record, str], tuple[Sequence[int], str]]
"""(ref, its name for messages) -> the ids of its annotations, and its slice."""


def find_folder(path: Path, dataset: str, siblings: Sequence[str] = ()) -> Path:
    """The folder of a data set: below `path`, or `path` itself unless it is a sibling's folder."""
    candidates = [path / dataset]
    if path.name == dataset or path.name not in siblings:
        candidates.append(path)
    return find_file(
        candidates,
        ["instances.json"],
        f"The data set '{dataset}' in {path}",
        f"Give the folder that holds '{dataset}/' with its instances.json.",
    ).parent


def read_refs(
    refs: Any, refs_path: Path, source: Source, split: str, meaning: Meaning, findings: Findings
) -> tuple[AnnotatedImage, ...]:
    """The images of a split in the order of their first refs, each with one object per ref.

    Masks are checked and compressed at once; images are only looked up. `refs` is the content of
    `refs_path`, which has instances.json beside it; `split` is as the refs name it.
    """
    kept = _of_split(refs, refs_path, split, findings)
    instances = Instances(refs_path.parent / "instances.json", findings)
    objects: dict[int, list[GroundedObject]] = {}
    for ref in kept:
        with findings.part():
            where = f"ref {ref['ref_id']} of {refs_path}"
            thing = _object(ref, where, *meaning(ref, where), instances)
            objects.setdefault(ref["image_id"], []).append(thing)
    paths = _find_images(instances, list(objects), source, findings)
    categories = instances.categories_by_image()
    return tuple(
        AnnotatedImage(
            instances.file_name(key),
            path,
            instances.size(key),
            tuple(objects[key]),
            categories=categories.get(key, frozenset()),
        )
        for key, path in paths.items()
    )


def _of_split(refs: Any, path: Path, split: str, findings: Findings) -> list[Record]:
    kept: list[Record] = []
    splits: Counter[str] = Counter()
    listed = expect(refs, list, f"the file {path}")
    for ref_id, ref in records_by_id(listed, "ref", str(path), findings, "ref_id").items():
        with findings.part():
            its_split = field(ref, "split", str, f"ref {ref_id} of {path}")
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
    ref: Record, where: str, targets: Sequence[int], slice_name: str, instances: Instances
) -> GroundedObject:
    image_id = field(ref, "image_id", int, where)
    for ann_id in targets:
        theirs = instances.image_of(ann_id, where)
        if theirs != image_id:
            raise DataError(
                f"{sentence(where)} and its annotation name different images.",
                found=f"The ref says image_id {image_id}; annotation {ann_id} in "
                f"{instances.path} says {theirs}.",
                repair="Use refs and instances of one release.",
            )
    instances.look_up("image_id", image_id, where)
    try:
        masks = [instances.mask(ann_id) for ann_id in targets]
    except DegenerateError as error:
        raise DegenerateError(where, f"of its {error.name}: {error.reason}") from error
    return GroundedObject(
        mask=rle.merge(masks) if masks else rle.empty(*instances.size(image_id)),
        sentences=_sentences(ref, where),
        category=", ".join(dict.fromkeys(instances.category(ann_id) for ann_id in targets)),
        slice=slice_name,
        split=ref["split"],
        name=str(ref["ref_id"]),
        absent=not masks,
    )


def _sentences(ref: Record, where: str) -> tuple[str, ...]:
    sentences: list[str] = []
    for said in field(ref, "sentences", list, where):
        text = field(said, "sent", str, f"a sentence of {where}").strip()
        # A few sentences are empty after cleaning; their raw form still has words.
        sentences.append(text or str(said.get("raw", "")).strip())
    if not any(sentences):
        raise DegenerateError(where, NO_SENTENCE)
    return tuple(filter(None, sentences))


def _find_images(
    instances: Instances, image_ids: Sequence[int], source: Source, findings: Findings
) -> dict[int, Path]:
    folder = instances.path.parent
    subs = [sub.format(name=folder.name) for sub in IMAGE_FOLDERS]
    usual = [root / sub for sub in subs for root in (folder.parent, folder)]
    paths = ImagePaths(source.image_folders(usual), instances.file_names)
    found: dict[int, Path] = {}
    missing: dict[int, str] = {}
    for image_id in image_ids:
        with findings.part():
            name = instances.file_name(image_id)
            if path := paths.first(name, coco_names(image_id)):
                found[image_id] = path
            else:
                missing[image_id] = name
    for number, (image_id, name) in enumerate(missing.items()):
        with findings.part():
            asked = f"The image {name} of {instances.path}"
            if number:  # what was tried is listed once
                raise DataError(f"{asked} is missing.")
            count = f"{len(missing)} of {len(image_ids)} images are missing. "
            repair = GET_IMAGES.format(source.format, source.split)
            paths.find(name, asked, repair, others=coco_names(image_id), found=count)
    return found


def add_ref(
    refs: list[dict[str, Any]], thing: GroundedObject, image: Record, ann_id: Any, category_id: Any
) -> None:
    """Append a ref to an annotation of an image, or in gRefCOCO to a list of annotations."""
    first = refs[-1]["sent_ids"][-1] + 1 if refs else 0
    sentence_ids = list(range(first, first + len(thing.sentences)))
    refs.append(
        {
            "ref_id": len(refs) + 1,
            "ann_id": ann_id,
            "image_id": image["id"],
            "category_id": category_id,
            "file_name": image["file_name"],
            "split": thing.split or "train",
            "slice": thing.slice,
            "sent_ids": sentence_ids,
            "sentences": [
                {"sent_id": i, "sent": text, "raw": text, "tokens": text.split()}
                for i, text in zip(sentence_ids, thing.sentences, strict=True)
            ],
        }
    )
