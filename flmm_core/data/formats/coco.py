"""COCO-style annotations of a user's own images, and a writer of them.

    ROOT/instances.json        {"images", "annotations", "categories"}; or another file's path
    ROOT/images/...            images as `file_name` says, in ROOT, ROOT/images or ROOT/SPLIT;
                               or in the folder of the source's option ",images=DIR"

With a split: ROOT/SPLIT/instances.json, ROOT/SPLIT/_annotations.coco.json (Roboflow) or
ROOT/annotations/instances_SPLIT.json (COCO itself).

An annotation with "phrases" (a list of strings) or "caption" (a string) is one object. All other
annotations of an image are joined by category, crowds included; its name is their phrase, with
spaces for underscores. Images without annotations are skipped. Annotations without a mask (only a
box) are left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats import Source
from flmm_core.data.formats.shared.class_masks import class_phrase
from flmm_core.data.formats.shared.coco_json import Instances, NewInstances
from flmm_core.data.formats.shared.image_paths import ImagePaths
from flmm_core.data.formats.shared.new_image import NewImage, checked
from flmm_core.data.records import Record, find_file, texts
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Mask
from flmm_core.errors import DataError
from flmm_core.files import write_json

FILE_NAME = "instances.json"


def read(source: Source, findings: Findings) -> tuple[AnnotatedImage, ...]:
    """The images of a file in the order of their first annotations."""
    path, split = _find(source), source.split
    instances = Instances(path, findings)
    named: dict[int, list[GroundedObject]] = {}
    joined: dict[int, dict[str, list[Mask]]] = {}
    for ann_id, annotation in instances.annotations.items():
        with findings.part():
            where = instances.name(ann_id)
            image_id = instances.image_of(ann_id, where)
            named.setdefault(image_id, [])
            mask, category = instances.mask(ann_id), instances.category(ann_id)
            sentences = _sentences(annotation, where)
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
    images: list[AnnotatedImage] = []
    roots = [path.parent, *path.parents[1:2]]
    folders = [r / sub for r in roots for sub in ("", "images", split, f"images/{split}")]
    paths = ImagePaths(source.image_folders(folders), instances.file_names)
    for image_id, things in named.items():
        things += [
            GroundedObject(rle.merge(masks), (class_phrase(category),), category, split=split)
            for category, masks in joined.get(image_id, {}).items()
        ]
        if not things:
            continue  # none of its annotations can be used
        with findings.part():
            name = instances.file_name(image_id)
            file = paths.find(
                name,
                f"The image {name} of {path}",
                "Put the images beside the file, or name their folder: "
                f"--data {source.format}:PATH,images=DIR.",
            )
            images.append(AnnotatedImage(name, file, instances.size(image_id), tuple(things)))
    for image_id in instances.images:
        if image_id not in named:
            findings.skip(f"image {image_id} in {path}", "it has no annotation", counts=False)
    return tuple(images)


def _find(source: Source) -> Path:
    path, split = source.path, source.split
    if path.is_file() and not split:
        return path
    names = [FILE_NAME, "_annotations.coco.json", f"annotations/{FILE_NAME}"]
    if split:
        names = [f"{split}/{FILE_NAME}", f"{split}/_annotations.coco.json"]
        names += [f"annotations/instances_{split}.json", f"annotations/{split}.json"]
    return find_file(
        [path],
        names,
        f"The COCO annotation file of {source.label}",
        "Give the path of the file itself, without '@' and a split.",
    )


def _sentences(annotation: Record, where: str) -> tuple[str, ...]:
    said, caption = annotation.get("phrases"), annotation.get("caption")
    if said is None:
        return () if caption is None else texts([caption], "caption", where)
    return () if said == [] else texts(said, "phrases", where)


def write(folder: Path, images: Iterable[NewImage]) -> None:
    """Write ROOT/SPLIT/images, and last ROOT/SPLIT/instances.json, with "phrases"."""
    files: dict[str, NewInstances] = {}
    for new, image_hw in checked(images):
        for split, indices in new.by_split().items():
            instances = files.setdefault(split, NewInstances())
            instances.add_image(new, image_hw, folder / split / "images")
            for thing in (new.objects[index] for index in indices):
                instances.add(thing.read_mask(), thing.category, phrases=list(thing.sentences))
    for split, instances in files.items():
        write_json(folder / split / FILE_NAME, instances.content(), compact=True)
