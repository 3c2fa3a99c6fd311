"""Photos that their EXIF data turn, annotated upright or as they are stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.data.tools.check import check_source
from flmm_core.data.tools.convert import convert_source
from flmm_core.errors import DataError
from flmm_core.feature_cache.key import sample_key

ORIENTATIONS = list(range(1, 9))


def photo(path: Path, orientation: int, size: tuple[int, int] = (12, 10)) -> np.ndarray:
    """Saves an image with an orientation, and gives its stored pixels."""
    pixels = np.random.default_rng(3).integers(0, 255, (*size[::-1], 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels).save(path, exif=exif)
    return pixels


def annotate(folder: Path, size: tuple[int, int]) -> str:
    """A COCO file for "a.png" of this size."""
    data = {
        "images": [{"id": 1, "file_name": "a.png", "width": size[0], "height": size[1]}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[1, 1, 5, 1, 5, 4, 1, 4]]}
        ],
        "categories": [{"id": 1, "name": "cup"}],
    }
    (folder / "instances.json").write_text(json.dumps(data))
    return f"coco:{folder}"


def shown(sample: Sample) -> np.ndarray:
    """The pixels that training, evaluation and reports see."""
    return np.asarray(
        read_image(sample.image_path, image_hw=sample.image_hw, as_stored=sample.as_stored)
    )


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("option", ["", ",exif=ignore"])
@pytest.mark.parametrize("as_stored", [False, True])
def test_the_size_tells_how_a_photo_was_annotated(
    tmp_path: Path, orientation: int, option: str, as_stored: bool
) -> None:
    stored = photo(tmp_path / "a.png", orientation)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    annotated = stored if as_stored else upright
    text = annotate(tmp_path, annotated.shape[1::-1]) + option
    if orientation < 5:  # the size says nothing
        annotated = stored if option else upright
    (sample,) = open_source(text)
    np.testing.assert_array_equal(shown(sample), annotated)
    assert check_source(text).faults == ()


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("option", ["", ",exif=ignore"])
def test_a_square_photo_is_upright_unless_the_source_says_otherwise(
    tmp_path: Path, orientation: int, option: str
) -> None:
    stored = photo(tmp_path / "a.png", orientation, (10, 10))
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "a.png")))
    (sample,) = open_source(annotate(tmp_path, (10, 10)) + option)
    np.testing.assert_array_equal(shown(sample), stored if option else upright)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("option", ["", ",exif=ignore"])
@pytest.mark.parametrize("link", [False, True])
def test_a_converted_photo_is_seen_alike_without_the_option(
    tmp_path: Path, orientation: int, option: str, link: bool
) -> None:
    stored = photo(tmp_path / "a.png", orientation)
    text = annotate(tmp_path, stored.shape[1::-1]) + option
    (before,) = open_source(text)
    convert_source(text, tmp_path / "out", link=link)
    (after,) = open_source(f"jsonl:{tmp_path / 'out'}@train")
    np.testing.assert_array_equal(shown(after), shown(before))
    assert (after.phrases, after.image_hw) == (before.phrases, before.image_hw)
    with Image.open(after.image_path) as image:  # what `datasets` decodes
        np.testing.assert_array_equal(np.asarray(ImageOps.exif_transpose(image)), shown(before))


@pytest.mark.parametrize("form", ["labelme", "reasonseg"])
@pytest.mark.parametrize("option", ["", ",exif=ignore"])
def test_without_a_size_the_option_tells(tmp_path: Path, form: str, option: str) -> None:
    shape = {"label": "target", "points": [[1, 1], [5, 1], [5, 4]]}
    record = {"imagePath": "a.png", "text": ["cup"], "is_sentence": False, "shapes": [shape]}
    (tmp_path / "val").mkdir()
    (tmp_path / "val" / "a.json").write_text(json.dumps(record))
    stored = photo(tmp_path / "val" / "a.png", 6)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / "val" / "a.png")))
    (sample,) = open_source(f"{form}:{tmp_path}@val{option}")
    np.testing.assert_array_equal(shown(sample), stored if option else upright)


def test_another_size_is_a_fault_either_way(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 6)
    text = annotate(tmp_path, (12, 12))
    for option, how in (("", "12 x 10 (height x width, upright)"), (
        ",exif=ignore", "10 x 12 (height x width, as stored)"
    )):  # fmt: skip
        (fault,) = check_source(text + option).faults
        assert f"It is {how}, the annotations say 12 x 12." in str(fault)
        (sample,) = open_source(text + option)
        with pytest.raises(DataError, match="neither resized nor turned"):
            shown(sample)


def test_the_cache_tells_them_apart(tmp_path: Path) -> None:
    photo(tmp_path / "a.png", 3)
    text = annotate(tmp_path, (12, 10))
    keys = [sample_key(open_source(t)[0], "digest") for t in (text, f"{text},exif=ignore")]
    assert keys[0] != keys[1]


@pytest.mark.parametrize("form", ["masks", "masks of classes", "voc", "yolo"])
@pytest.mark.parametrize("option", ["", ",exif=ignore"])
@pytest.mark.parametrize("as_stored", [False, True])
def test_masks_beside_a_photo_tell_how_it_was_annotated(
    tmp_path: Path, form: str, option: str, as_stored: bool
) -> None:
    name = "JPEGImages" if form == "voc" else "images"
    (tmp_path / name).mkdir()
    stored = photo(tmp_path / name / "a.png", 6)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(tmp_path / name / "a.png")))
    annotated = stored if as_stored else upright
    if form == "yolo":  # has no size
        annotated = stored if option else upright
        (tmp_path / "labels").mkdir()
        (tmp_path / "labels" / "a.txt").write_text("0 0.1 0.1 0.9 0.1 0.9 0.9\n")
        (tmp_path / "data.yaml").write_text("train: images\nnames: [cup]\n")
    else:
        folder = {"masks": "masks/a", "voc": "SegmentationClass"}.get(form, "masks")
        (tmp_path / folder).mkdir(parents=True)
        file = "cup.png" if form == "masks" else "a.png"
        mask = np.zeros(annotated.shape[:2], dtype=np.uint8)
        mask[2:5, 1:4] = 1
        Image.fromarray(mask).save(tmp_path / folder / file)
        (tmp_path / "classes.txt").write_text("background\ncup\n" if "of" in form else "")
        if form != "masks of classes":
            (tmp_path / "classes.txt").unlink()
    text = f"{form.split()[0]}:{tmp_path}{'@train' if form == 'yolo' else ''}{option}"
    assert check_source(text).faults == ()
    (sample,) = open_source(text)
    np.testing.assert_array_equal(shown(sample), annotated)
