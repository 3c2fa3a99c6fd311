"""COCO-style annotations of a user's own images, and a writer of them.

    ROOT/instances.json        {"images", "annotations", "categories"}; or another file's path
    ROOT/images/...            images as `file_name` says, in ROOT, ROOT/images or ROOT/SPLIT

With a split: ROOT/SPLIT/instances.json, ROOT/SPLIT/_annotations.coco.json (Roboflow) or
ROOT/annotations/instances_SPLIT.json (COCO itself).

Protocol: an annotation with "phrases" (a list of strings) or "caption" (a string) is one object
named by these. All other annotations of an image are joined by their category: its name means all
of them, crowds included. Images without annotations are left out, counted and listed.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats.shared.coco_book import CocoBook
from flmm_core.data.formats.shared.coco_files import Instances, first_file
from flmm_core.data.formats.shared.fields import brief, sentence
from flmm_core.data.formats.shared.writing import (
    NewImage,
    new_images,
    write_image,
    write_whole,
)
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError

FILE_NAME = "instances.json"


def find_coco(path: Path, split: str | None = None) -> Path:
    """The annotation file meant by a path and a split; DataError with all that were tried."""
    if path.is_file() and split is None:
        return path
    names = [FILE_NAME, "_annotations.coco.json", f"annotations/{FILE_NAME}"]
    if split:
        names = [f"{split}/{FILE_NAME}", f"{split}/_annotations.coco.json"]
        names += [f"annotations/instances_{split}.json", f"annotations/{split}.json"]
    found = first_file([path], names)
    if found is not None:
        return found
    meant = f"of the split '{split}' " if split else ""
    raise DataError(
        f"The COCO annotations {meant}are not in {path}.",
        found="Looked for:\n" + "\n".join(f"  {path / name}" for name in names),
        repair="Give the path of the file itself, without '@' and a split.",
    )


def read_coco(
    path: Path, findings: Findings | None = None, split: str = ""
) -> tuple[AnnotatedImage, ...]:
    """The images of a file in the order of their first annotations.

    Args:
        path: The annotation file.
        findings: Collects faults; without it the first is raised.
        split: What the objects say they belong to; a folder of this name may hold the images.

    Raises:
        DataError: A file or image is missing, broken or does not fit another.
    """
    findings = findings or Findings()
    instances = Instances(path, findings)
    named: dict[int, list[GroundedObject]] = {}
    joined: dict[int, dict[str, list[Mask]]] = {}
    for ann_id, annotation in instances.annotations.items():
        with findings.part():
            image_id = instances.image_of(ann_id, instances.name(ann_id))
            mask, category = instances.mask(ann_id), instances.category(ann_id)
            sentences = _sentences(annotation, instances.name(ann_id))
            named.setdefault(image_id, [])
            if sentences:
                named[image_id].append(
                    GroundedObject(mask, sentences, category, split=split, name=str(ann_id))
                )
            elif category:
                joined.setdefault(image_id, {}).setdefault(category, []).append(mask)
            else:
                raise DataError(
                    f"Annotation {ann_id} in {path} has nothing that names it.",
                    repair="Give it a 'category_id', 'phrases' or a 'caption'.",
                )
    pictures: list[AnnotatedImage] = []
    roots = [path.parent, *path.parents[1:2]]
    folders = [r / sub for r in roots for sub in ("", "images", split, f"images/{split}")]
    for image_id, things in named.items():
        things += [
            GroundedObject(rle.merge(masks), (category,), category, split=split)
            for category, masks in joined.get(image_id, {}).items()
        ]
        with findings.part():
            if things:
                pictures.append(_image(image_id, things, instances, folders))
    for image_id in instances.image_ids:
        if image_id not in named:
            findings.skip(f"image {image_id} in {path}", "it has no annotation")
    return tuple(pictures)


def _image(
    image_id: int, things: Sequence[GroundedObject], instances: Instances, folders: Sequence[Path]
) -> AnnotatedImage:
    name = instances.file_name(image_id)
    found = first_file(folders, [name, Path(name).name])
    if found is None:
        tried = dict.fromkeys(folder / name for folder in folders)
        raise DataError(
            f"The image {name} of {instances.path} is missing.",
            found="Looked for:\n" + "\n".join(f"  {path}" for path in tried),
            repair="Put the images beside the file, or into a folder 'images' there.",
        )
    return AnnotatedImage(name, found, instances.size(image_id), tuple(things))


def _sentences(annotation: dict[Any, Any], where: str) -> tuple[str, ...]:
    """What an annotation's own words are; none if it has neither key."""
    said = annotation.get("phrases")
    if said is None:
        said = [annotation["caption"]] if annotation.get("caption") is not None else []
    if not isinstance(said, list) or not all(isinstance(s, str) and s.strip() for s in said):
        raise DataError(
            f"{sentence(where)} has {brief(said)} as its words.",
            found="Expected 'phrases', a list of strings, or 'caption', a string; none empty.",
        )
    return tuple(s.strip() for s in said)


def write_coco(
    folder: Path, pictures: Iterable[NewImage | tuple[Any, str, Sequence[GroundedObject]]]
) -> Path:
    """Write images and their objects as ROOT/SPLIT/instances.json and ROOT/SPLIT/images.

    Every object becomes an annotation with its sentences as "phrases". Files are written last and
    whole; an object without a split goes to "train".

    Args:
        folder: The ROOT; it is created.
        images: See `NewImage`; read once, one at a time.

    Returns:
        `folder`, which `find_coco` takes together with a split.
    """
    books: dict[str, CocoBook] = {}
    for picture, size in new_images(pictures):
        image_ids: dict[str, int] = {}
        for thing in picture.objects:
            split = thing.split or "train"
            book = books.setdefault(split, CocoBook())
            if split not in image_ids:
                image_ids[split] = book.add_image(picture.file_name, size)
                write_image(picture, folder / split / "images" / picture.file_name)
            sentences = list(thing.sentences)
            book.add(thing.read_mask(), image_ids[split], thing.category, phrases=sentences)
    for split, book in books.items():
        write_whole(folder / split / FILE_NAME, json.dumps(book.instances).encode())
    return folder
