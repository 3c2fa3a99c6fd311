"""RefCOCO, RefCOCO+ and RefCOCOg as they are distributed, and a writer of the same files.

    ROOT/refcoco/instances.json      pictures, categories, annotations (polygons or RLE)
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

from flmm_core.data import coco_masks
from flmm_core.data.fields import field, mapping, picture_size
from flmm_core.data.sample import AnnotatedPicture, GroundedObject, Mask
from flmm_core.data.unpickle import read_plain_pickle
from flmm_core.data.writing import NewPicture, new_pictures, write_picture, write_whole
from flmm_core.errors import DataError, did_you_mean

SPLIT_MAKERS: Mapping[str, str] = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
"""Whose division into splits is meant if the split does not say ("google-val" does)."""

_MAKERS = ("unc", "umd", "google")

PICTURE_FOLDERS = (
    "train2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "coco/train2014",
    "images",
    "train2017",
    "images/train2017",
    "",
)


def read_refcoco(path: Path, dataset: str, split: str) -> tuple[AnnotatedPicture, ...]:
    """The pictures of a split in the order of their first refs, each with all its refs.

    Every ref is one object. Masks are checked and compressed here, so that a broken annotation
    is named before any work is done; pictures are only looked up.

    Args:
        path: The folder that holds the data set's folder, or that folder itself.
        dataset: "refcoco", "refcoco+" or "refcocog".
        split: "train", "val", ...; with a maker before it ("google-val") from that maker's refs.

    Raises:
        DataError: A file or picture is missing, broken or does not fit another.
    """
    folder = _find_folder(path, dataset)
    maker, _, rest = split.partition("-")
    if maker not in _MAKERS:
        maker, rest = SPLIT_MAKERS[dataset], split
    refs_path = folder / f"refs({maker}).p"
    refs = _read_refs(refs_path, rest)
    instances = _Instances(folder / "instances.json")
    objects: dict[int, list[GroundedObject]] = {}
    for ref in refs:
        image_id, thing = _object(ref, refs_path, instances)
        objects.setdefault(image_id, []).append(thing)
    paths = _find_pictures(folder, instances, list(objects))
    return tuple(
        AnnotatedPicture(
            instances.file_name(image_id), paths[image_id], instances.size(image_id), tuple(things)
        )
        for image_id, things in objects.items()
    )


def _find_folder(path: Path, dataset: str) -> Path:
    candidates = [path / dataset]
    if path.name == dataset or path.name not in SPLIT_MAKERS:
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


def _read_refs(path: Path, split: str) -> list[dict[Any, Any]]:
    """The refs of a split; DataError if the file, its form or the split is wrong."""
    if not path.is_file():
        others = sorted(other.name for other in path.parent.glob("refs(*).p"))
        raise DataError(
            f"The refs file {path} is missing.",
            found=f"In that folder: {', '.join(others) or 'no refs file at all'}.",
            repair="Add the file, or name the maker of another one in the split, "
            "for example '@google-val' for refs(google).p.",
        )
    refs = read_plain_pickle(path)
    if not isinstance(refs, list):
        raise DataError(
            f"The file {path} is not a list of refs.", found=f"It is a {type(refs).__name__}."
        )
    seen: set[int] = set()
    kept: list[dict[Any, Any]] = []
    splits: Counter[str] = Counter()
    for number, ref in enumerate(refs):
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
    ref: dict[Any, Any], refs_path: Path, instances: _Instances
) -> tuple[int, GroundedObject]:
    """(image id, object) of a ref, with its mask checked against its picture."""
    where = f"ref {ref['ref_id']} of {refs_path}"
    ann_id = field(ref, "ann_id", int, where)
    image_id = instances.image_of(ann_id, where)
    if field(ref, "image_id", int, where) != image_id:
        raise DataError(
            f"Ref {ref['ref_id']} of {refs_path} and its annotation name different pictures.",
            found=f"The ref says image_id {ref['image_id']}; annotation {ann_id} in "
            f"{instances.path} says {image_id}.",
            repair="Use refs and instances of one release.",
        )
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
    return image_id, GroundedObject(
        mask=instances.mask(ann_id),
        sentences=tuple(sentences),
        category=instances.category(ann_id),
        slice=str(ref.get("slice", "")),
        split=ref["split"],
        name=str(ref["ref_id"]),
    )


# --- instances ---------------------------------------------------------------------------------


class _Instances:
    """instances.json by id, checked where it is used."""

    def __init__(self, path: Path) -> None:
        self.path = path
        data = mapping(_read_json(path), str(path))
        self._images = self._by_id(data, "images", "picture")
        self._annotations = self._by_id(data, "annotations", "annotation")
        self._categories = self._by_id(data, "categories", "category")

    def _by_id(self, data: dict[Any, Any], key: str, what: str) -> dict[int, dict[Any, Any]]:
        found: dict[int, dict[Any, Any]] = {}
        for number, record in enumerate(field(data, key, list, f"the file {self.path}")):
            where = f"{what} number {number} of {self.path}"
            its_id = field(mapping(record, where), "id", int, where)
            if its_id in found:
                raise DataError(
                    f"The {what} id {its_id} stands twice in {self.path}.",
                    repair="Ids must be unique; get an unchanged copy of the file.",
                )
            found[its_id] = record
        return found

    def image_of(self, ann_id: int, asker: str) -> int:
        """The image id of an annotation, which has a picture."""
        if ann_id not in self._annotations:
            raise DataError(
                f"Annotation {ann_id} is not in {self.path}.",
                found=f"It is the ann_id of {asker}.",
                repair="Use refs and instances of one release.",
            )
        image_id = field(self._annotations[ann_id], "image_id", int, self._name(ann_id))
        if image_id not in self._images:
            raise DataError(
                f"Annotation {ann_id} in {self.path} has no picture.",
                found=f"Its image_id is {image_id}, which is not among the file's 'images'.",
                repair="Get an unchanged copy of the file.",
            )
        return image_id

    def mask(self, ann_id: int) -> Mask:
        annotation = self._annotations[ann_id]
        segmentation = field(annotation, "segmentation", object, self._name(ann_id))
        height, width = self.size(annotation["image_id"])
        return coco_masks.to_rle(segmentation, height, width, source=self._name(ann_id))

    def category(self, ann_id: int) -> str:
        category_id = self._annotations[ann_id].get("category_id")
        if category_id is None:
            return ""
        if category_id not in self._categories:
            raise DataError(
                f"Annotation {ann_id} in {self.path} has no category.",
                found=f"Its category_id is {category_id}, which is not among the file's "
                "'categories'.",
            )
        where = f"category {category_id} in {self.path}"
        return field(self._categories[category_id], "name", str, where)

    def size(self, image_id: int) -> tuple[int, int]:
        return picture_size(self._images[image_id], f"picture {image_id} in {self.path}")

    def file_name(self, image_id: int) -> str:
        where = f"picture {image_id} in {self.path}"
        return field(self._images[image_id], "file_name", str, where)

    def _name(self, ann_id: int) -> str:
        return f"annotation {ann_id} in {self.path}"


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise DataError(
            f"The file {path} cannot be read.", found=f"{error.strerror or error}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"The file {path} is not whole JSON.",
            found=f"{error}.",
            repair="The file may be cut off; download or copy it again.",
        ) from error


# --- pictures ----------------------------------------------------------------------------------


def _find_pictures(
    folder: Path, instances: _Instances, image_ids: Sequence[int]
) -> dict[int, Path]:
    """Where each picture lies; DataError with every path that was tried if one is missing."""
    roots = [root / sub for sub in PICTURE_FOLDERS for root in (folder.parent, folder)]
    present = [root for root in roots if root.is_dir()]
    found: dict[int, Path] = {}
    missing: list[int] = []
    for image_id in image_ids:
        names = _picture_names(instances, image_id)
        for path in (root / name for root in present for name in names):
            if path.is_file():
                found[image_id] = path
                break
        else:
            missing.append(image_id)
    if missing:
        tried = [root / name for root in roots for name in _picture_names(instances, missing[0])]
        raise DataError(
            f"The picture {instances.file_name(missing[0])} of {instances.path} is missing, "
            f"one of {len(missing)} of {len(image_ids)}.",
            found="Looked for:\n" + "\n".join(f"  {path}" for path in tried),
            repair="Put COCO's train2014 pictures "
            "(http://images.cocodataset.org/zips/train2014.zip) into one of these folders.",
        )
    return found


def _picture_names(instances: _Instances, image_id: int) -> list[str]:
    """What a picture may be called: as the file says, and as COCO 2014 and 2017 call it."""
    names = [instances.file_name(image_id)]
    names += [f"COCO_train2014_{image_id:012d}.jpg", f"{image_id:012d}.jpg"]
    return list(dict.fromkeys(names))


# --- writing -----------------------------------------------------------------------------------


def write_refcoco(
    folder: Path,
    pictures: Iterable[NewPicture | tuple[Any, str, Sequence[GroundedObject]]],
    *,
    dataset: str = "refcoco",
) -> Path:
    """Write pictures and their objects as a RefCOCO folder that any reader of RefCOCO takes.

    Pictures go to `folder/images`, as they come; the two annotation files are written last and
    whole, so that a folder that has them is complete. An object without a split goes to "train".

    Args:
        folder: The ROOT; it is created.
        pictures: See `NewPicture`; read once, one at a time.
        dataset: "refcoco", "refcoco+" or "refcocog".

    Returns:
        `folder`, which `read_refcoco` takes.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    refs: list[dict[str, Any]] = []
    categories: dict[str, int] = {}
    sentence_id = 0
    for image_id, (picture, (height, width)) in enumerate(new_pictures(pictures), start=1):
        write_picture(picture, folder / "images" / picture.file_name)
        name = str(picture.file_name)
        images.append({"id": image_id, "file_name": name, "height": height, "width": width})
        for thing in picture.objects:
            category_id = categories.setdefault(thing.category or "object", len(categories) + 1)
            ann_id = len(annotations) + 1
            annotations.append(_annotation(thing.mask, ann_id, image_id, category_id))
            sentence_ids = list(range(sentence_id, sentence_id + len(thing.sentences)))
            sentence_id += len(thing.sentences)
            refs.append(
                {
                    "ref_id": ann_id,
                    "ann_id": ann_id,
                    "image_id": image_id,
                    "category_id": category_id,
                    "file_name": name,
                    "split": str(thing.split or "train"),
                    "slice": str(thing.slice),
                    "sent_ids": sentence_ids,
                    "sentences": [
                        {"sent_id": i, "sent": str(s), "raw": str(s), "tokens": str(s).split()}
                        for i, s in zip(sentence_ids, thing.sentences, strict=True)
                    ],
                }
            )
    instances = {
        "info": {"description": "RefCOCO format"},
        "images": images,
        "annotations": annotations,
        "categories": [{"id": i, "name": n, "supercategory": n} for n, i in categories.items()],
    }
    target = folder / dataset
    write_whole(target / f"refs({SPLIT_MAKERS[dataset]}).p", pickle.dumps(refs, protocol=2))
    write_whole(target / "instances.json", json.dumps(instances).encode())
    return folder


def _annotation(mask: Mask, ann_id: int, image_id: int, category_id: int) -> dict[str, Any]:
    height, width = mask["size"]
    return {
        "id": ann_id,
        "image_id": image_id,
        "category_id": category_id,
        "iscrowd": 0,
        "area": coco_masks.area(mask),
        "bbox": list(coco_masks.bbox(mask)),
        "segmentation": {"size": [int(height), int(width)], "counts": mask["counts"].decode()},
    }
