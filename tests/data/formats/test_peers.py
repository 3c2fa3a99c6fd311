"""Written data sets, read as the field's own readers do."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pycocotools import mask as coco
from pycocotools.coco import COCO

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.new_image import NewImage

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
