"""Written data sets, read as the field's own readers do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import load_dataset
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco
from pycocotools.coco import COCO

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.tools.check import check_source
from flmm_core.data.tools.convert import convert_source
from tests.data.conftest import Distributed

SCENES = {"count": 6, "seed": 5, "kinds": ("plain", "occlusion", "small")}


def drawn(form: str, root: Path) -> list[NewImage]:
    scenes = list(draw_images(**SCENES, extras=(*FORMATS[form].extras, "absent")))  # type: ignore[arg-type]
    FORMATS[form].write(root, scenes)
    return scenes


def refer_masks(root: Path, dataset: str, refs: list[Any], images: Path) -> list[NDArray[Any]]:
    """The union of each ref's masks, by the rules that REFER and G_REFER share.

    A segmentation is indexed as a list; polygons are converted, all else is decoded as it is.
    """
    data = json.loads((root / dataset / "instances.json").read_text())
    sizes = {image["id"]: (image["height"], image["width"]) for image in data["images"]}
    names = {image["id"]: image["file_name"] for image in data["images"]}
    annotations = {annotation["id"]: annotation for annotation in data["annotations"]}
    found = []
    for ref in refs:
        size = sizes[ref["image_id"]]
        assert (images / names[ref["image_id"]]).is_file()
        ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
        union = np.zeros(size, dtype=np.uint8)
        for ann_id in ids if ids != [-1] else []:
            codes = annotations[ann_id]["segmentation"]
            if isinstance(codes[0], list):
                codes = coco.frPyObjects(codes, *size)
            union |= coco.decode(codes).max(axis=2)
        found.append(union)
    return found


def test_refer_reads_a_written_refcoco(tmp_path: Path) -> None:
    scenes = drawn("refcoco", tmp_path)
    refs = pickle.loads((tmp_path / "refcoco" / "refs(unc).p").read_bytes())
    images = tmp_path / "images" / "mscoco" / "images" / "train2014"
    masks = refer_masks(tmp_path, "refcoco", refs, images)
    expected = [thing for scene in scenes for thing in scene.objects]
    for ref, mask, thing in zip(refs, masks, expected, strict=True):
        np.testing.assert_array_equal(mask, rle.decode(thing.read_mask()))
        assert tuple(said["sent"] for said in ref["sentences"]) == thing.sentences
    assert sum(not mask.any() for mask in masks) == len(scenes)  # what is not there


def test_g_refer_reads_a_written_grefcoco(tmp_path: Path) -> None:
    scenes = drawn("grefcoco", tmp_path)
    refs = json.loads((tmp_path / "grefcoco" / "grefs(unc).json").read_text())
    masks = refer_masks(tmp_path, "grefcoco", refs, tmp_path / "images" / "train2014")
    expected = [thing for scene in scenes for thing in scene.objects]
    for mask, thing in zip(masks, expected, strict=True):
        np.testing.assert_array_equal(mask, rle.decode(thing.read_mask()))
    assert any(len(ref["ann_id"]) == 2 for ref in refs)


@pytest.mark.parametrize("form", ["coco", "refcoco", "grefcoco"])
def test_pycocotools_reads_written_instances(
    form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    scenes = list(draw_images(**SCENES))  # type: ignore[arg-type]
    FORMATS[form].write(tmp_path, scenes)
    (file,) = tmp_path.rglob("instances.json")
    read = COCO(str(file))
    assert "index created" in capsys.readouterr().out
    expected = [rle.decode(thing.read_mask()) for scene in scenes for thing in scene.objects]
    for annotation, mask in zip(read.dataset["annotations"], expected, strict=True):
        np.testing.assert_array_equal(read.annToMask(annotation), mask)


# --- datasets.load_dataset -----------------------------------------------------------------------


def load(tmp_path: Path, *args: str, **more: str) -> dict[str, Any]:
    parts = load_dataset(*args, **more, cache_dir=str(tmp_path / "hub"))
    return {name: list(part) for name, part in parts.items()}


def same(row: dict[str, Any], new: NewImage) -> None:
    assert isinstance(new.image, Image.Image)
    np.testing.assert_array_equal(np.asarray(row["image"]), np.asarray(new.image))
    columns = row["objects"]
    assert columns["phrases"] == [list(thing.sentences) for thing in new.objects]
    for code, thing in zip(columns["segmentation"], new.objects, strict=True):
        np.testing.assert_array_equal(coco.decode(code), rle.decode(thing.read_mask()))


def test_every_split_is_loaded_with_its_annotations(tmp_path: Path) -> None:
    made = Distributed(tmp_path / "in").save()
    out = tmp_path / "out"
    for split in ("val", "testA"):
        convert_source(f"refcoco:{made.root}@{split}", out)
        assert check_source(f"jsonl:{out}@{split}").faults == ()
    rows = load(tmp_path, str(out))
    assert {name: len(part) for name, part in rows.items()} == {"val": 2, "testA": 1}
    assert rows["val"][0]["objects"]["phrases"] == [
        ["left dog", "the dog on the left"],
        ["a cat"],
    ]
    # The folder of a split, by itself or among others, although images are named "train2014".
    for split, objects in (("val", [2, 1]), ("testA", [1])):
        alone = load(tmp_path, "imagefolder", data_dir=str(out / split))
        assert [len(row["objects"]["phrases"]) for row in alone["train"]] == objects


@pytest.mark.parametrize("form", ["jsonl", "grefcoco", "png", "reasonseg", "labelme"])
@pytest.mark.parametrize("link", [False, True])
def test_conversions_of_every_kind_are_imagefolders(form: str, link: bool, tmp_path: Path) -> None:
    scenes = list(draw_images(3, 8, extras=FORMATS[form].extras))
    FORMATS[form].write(tmp_path / "in", scenes)
    target, _ = convert_source(f"{form}:{tmp_path / 'in'}@train", tmp_path / "out", link=link)
    (rows,) = load(tmp_path, "imagefolder", data_dir=str(target)).values()
    assert len(rows) == (3 if form != "reasonseg" else sum(len(s.objects) for s in scenes))
    columns = {key for row in rows for key in (row, row["objects"]) for key in key}
    assert {"image", "width", "height", "objects", "phrases", "segmentation"} <= columns
    assert ("captions" in columns) == (form == "png")
    assert ("ignore" in columns) == (form == "reasonseg")


def test_a_drawn_imagefolder_is_loaded_exactly(tmp_path: Path) -> None:
    scenes = list(draw_images(**SCENES, split="train"))  # type: ignore[arg-type]
    FORMATS["jsonl"].write(tmp_path / "in", scenes)
    for rows in (
        load(tmp_path, str(tmp_path / "in"))["train"],
        load(tmp_path, "imagefolder", data_dir=str(tmp_path / "in"))["train"],
        load(tmp_path, "imagefolder", data_dir=str(tmp_path / "in" / "train"))["train"],
    ):
        for row, new in zip(rows, scenes, strict=True):
            same(row, new)


def test_a_readme_of_somebody_else_stays(tmp_path: Path) -> None:
    made = Distributed(tmp_path / "in").save()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "README.md").write_text("mine")
    convert_source(f"refcoco:{made.root}@val", tmp_path / "out")
    assert (tmp_path / "out" / "README.md").read_text() == "mine"
