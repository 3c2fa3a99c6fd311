"""Parquet files with the columns of published data sets, written by `datasets` itself."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset, Features, List, Value, load_dataset
from datasets import Image as ImageColumn
from numpy.typing import NDArray
from PIL import Image
from pycocotools import mask as coco

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.findings import Findings
from flmm_core.data.formats import FORMATS
from flmm_core.data.images import read_image
from flmm_core.data.tools.check import check_source
from flmm_core.data.tools.convert import convert_source
from flmm_core.errors import DataError
from tests.data.conftest import read

HW = 24, 32
POLYGON = [2.5, 3.25, 20.0, 4.0, 25.75, 20.5, 6.0, 18.0]
OTHER = [26.0, 2.0, 31.0, 2.0, 31.0, 9.5, 26.0, 9.5]
NAME = "COCO_train2014_000000000009.jpg"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))


def picture(shade: int = 90, form: str = "JPEG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", HW[::-1], (shade, 40, 10)).save(file, form)
    return file.getvalue()


def filled(*polygons: list[float]) -> NDArray[Any]:
    return np.asarray(coco.decode(coco.merge(coco.frPyObjects(list(polygons), *HW))), dtype=bool)


def code(*polygons: list[float]) -> dict[str, Any]:
    whole = coco.merge(coco.frPyObjects(list(polygons), *HW))
    return {"size": list(HW), "counts": whole["counts"].decode()}


def stored(name: str | None = None, shade: int = 90) -> dict[str, Any]:
    return {"bytes": picture(shade), "path": name}


def lmms_lab() -> tuple[list[dict[str, Any]], Features]:
    """lmms-lab/RefCOCO: a row a ref; the polygon is flat, in single precision."""
    rows = [
        {
            "question_id": "1", "image": stored(), "question": "Please caption the circled area.",
            "answer": ["the red mug", "mug on the left"], "segmentation": POLYGON,
            "bbox": [1, 2, 3, 4], "iscrowd": 0, "file_name": "COCO_train2014_000000000009_0.jpg",
        },
        {
            "question_id": "2", "image": stored(), "question": "Please caption the circled area.",
            "answer": ["a spoon"], "segmentation": OTHER, "bbox": [1, 2, 3, 4], "iscrowd": 0,
            "file_name": "COCO_train2014_000000000009_1.jpg",
        },
    ]  # fmt: skip
    text, number = Value("string"), Value("float32")
    features = Features(
        question_id=text, image=ImageColumn(), question=text, answer=List(text),
        segmentation=List(number), bbox=List(number), iscrowd=Value("int8"), file_name=text,
    )  # fmt: skip
    return rows, features


def jxu124() -> tuple[list[dict[str, Any]], Features]:
    """jxu124/refcoco: no images; COCO's annotation and image as JSON."""
    rows = []
    for ref_id, (said, polygon) in enumerate(
        ((["the red mug", "mug on the left"], POLYGON), (["a spoon"], OTHER))
    ):
        sentences = [{"raw": s, "sent": s, "sent_id": 1, "tokens": s.split()} for s in said]
        rows.append(
            {
                "ref_id": ref_id, "ann_id": 5, "image_id": 9, "split": "val", "file_name": NAME,
                "sentences": sentences, "raw_sentences": json.dumps(sentences), "captions": said,
                "raw_anns": json.dumps({"segmentation": [polygon], "iscrowd": 0, "id": 5}),
                "raw_image_info": json.dumps({"file_name": NAME, "height": 24, "width": 32}),
                "image_path": f"coco/train2014/{NAME}", "bbox": [1.0, 2.0, 3.0, 4.0],
            }
        )  # fmt: skip
    text = Value("string")
    sentence = {"raw": text, "sent": text, "sent_id": Value("int64"), "tokens": List(text)}
    features = Features(
        ref_id=Value("int64"), ann_id=Value("int64"), image_id=Value("int64"), split=text,
        file_name=text, sentences=List(sentence), raw_sentences=text, captions=List(text),
        raw_anns=text, raw_image_info=text, image_path=text, bbox=List(Value("float64")),
    )  # fmt: skip
    return rows, features


def benchmark() -> tuple[list[dict[str, Any]], Features]:
    """jxu124/refcoco-benchmark: a row an image, with a list of refs."""
    refs = [
        {
            "ann_info": {"id": number, "segmentation": [polygon]},
            "ref_info": {"ref_id": number, "sentences": [{"raw": s, "sent": s} for s in said]},
        }
        for number, (said, polygon) in enumerate(
            ((["the red mug", "mug on the left"], POLYGON), (["a spoon"], OTHER))
        )
    ]
    text, number = Value("string"), Value("int64")
    ann = {"id": number, "segmentation": List(List(Value("float64")))}
    ref = {"ref_id": number, "sentences": List({"raw": text, "sent": text})}
    features = Features(image=ImageColumn(), ref_list=List({"ann_info": ann, "ref_info": ref}))
    return [{"image": stored(NAME), "ref_list": refs}], features


def refcoco_m() -> tuple[list[dict[str, Any]], Features]:
    """moondream/refcoco-m: a row an image, with RLE."""
    samples = [
        {"id": number, "category": "cup", "sentences": said, "mask": code(polygon)}
        for number, (said, polygon) in enumerate(
            ((["the red mug", "mug on the left"], POLYGON), (["a spoon"], OTHER))
        )
    ]
    text = Value("string")
    sample = {
        "id": Value("int64"), "category": text, "sentences": List(text),
        "mask": {"counts": text, "size": List(Value("int32"))},
    }  # fmt: skip
    features = Features(image=ImageColumn(), file_name=text, samples=List(sample))
    return [{"image": stored(), "file_name": NAME, "samples": samples}], features


def rows_of_bits() -> tuple[list[dict[str, Any]], Features]:
    """Ricky06662/ReasonSeg_val: the mask written out as rows of booleans."""
    rows = [
        {"image": stored(), "text": text, "mask": filled(polygon).tolist(), "img_height": 24}
        for text, polygon in (("the red mug", POLYGON), ("a spoon", OTHER))
    ]
    features = Features(
        image=ImageColumn(), text=Value("string"), mask=List(List(Value("bool"))),
        img_height=Value("int64"),
    )  # fmt: skip
    return rows, features


def mask_images() -> tuple[list[dict[str, Any]], Features]:
    """The mask as an image of its own."""
    rows = []
    for text, polygon in (("the red mug", POLYGON), ("a spoon", OTHER)):
        file = io.BytesIO()
        Image.fromarray(filled(polygon) * np.uint8(255)).save(file, "PNG")
        mask = {"bytes": file.getvalue(), "path": None}
        rows.append({"image": stored(), "mask": mask, "caption": text})
    columns = {"image": ImageColumn(), "mask": ImageColumn(), "caption": Value("string")}
    return rows, Features(columns)


LAYOUTS = [lmms_lab, jxu124, benchmark, refcoco_m, rows_of_bits, mask_images]


def write(path: Path, rows: list[dict[str, Any]], features: Features | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Dataset.from_list(rows, features=features).to_parquet(str(path))
    return path


@pytest.mark.parametrize("layout", LAYOUTS)
def test_columns_of_published_data_sets(layout: Any, tmp_path: Path) -> None:
    root = tmp_path / "set"
    write(root / "data" / "val-00000-of-00001.parquet", *layout())
    (root / "train2014").mkdir()
    if layout is jxu124:
        (root / "train2014" / NAME).write_bytes(picture())
    report = check_source(f"parquet:{root}@val")
    assert (report.faults, report.skipped, report.images) == ((), (), 1)
    (image,) = read(f"parquet:{root}@val")
    assert image.image_hw == HW
    assert image.path.read_bytes() == picture()
    mug, spoon = image.objects
    assert mug.sentences[0] == "the red mug"
    assert mug.sentences[1:] in ((), ("mug on the left",))
    assert spoon.sentences == ("a spoon",)
    np.testing.assert_array_equal(rle.decode(mug.read_mask()), filled(POLYGON))
    np.testing.assert_array_equal(rle.decode(spoon.read_mask()), filled(OTHER))
    assert mug.category == ("cup" if layout is refcoco_m else "")


@pytest.mark.parametrize(
    "segmentation", [[POLYGON, OTHER], code(POLYGON, OTHER), json.dumps([POLYGON, OTHER])]
)
def test_masks_of_several_parts(tmp_path: Path, segmentation: Any) -> None:
    rows = [{"image": stored(), "text": "both", "segmentation": segmentation}]
    write(tmp_path / "a.parquet", rows)
    (image,) = read(f"parquet:{tmp_path / 'a.parquet'}")
    mask = rle.decode(image.objects[0].read_mask())
    np.testing.assert_array_equal(mask, filled(POLYGON, OTHER))


@pytest.mark.parametrize(
    ("files", "split"),
    [
        (["data/val-00000-of-00002.parquet", "data/val-00001-of-00002.parquet"], "val"),
        (["val/0000.parquet", "val/0001.parquet"], "val"),
        (["val.parquet"], "val"),
        (["data/refcoco_unc_val-00000-of-00001-23c6.parquet"], "refcoco_unc_val"),
        (["testA-00000-of-00001.parquet"], "testA"),
    ],
)
def test_the_files_of_a_split(tmp_path: Path, files: list[str], split: str) -> None:
    for number, name in enumerate(files):
        row = {"image": stored(shade=number), "text": f"mug {number}", "segmentation": POLYGON}
        write(tmp_path / name, [row])
    write(tmp_path / "data" / "train-00000-of-00001.parquet", [{"text": "other"}])
    found = read(f"parquet:{tmp_path}@{split}")
    words = [thing.sentences[0] for image in found for thing in image.objects]
    assert words == [f"mug {number}" for number in range(len(files))]
    with pytest.raises(DataError) as caught:
        read(f"parquet:{tmp_path}@vol")
    listed = str(caught.value).splitlines()[1].removeprefix("Its splits: ").rstrip(".")
    assert set(listed.split(", ")) == {split, "train"}


def test_a_data_set_of_the_hub_that_was_downloaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Real huggingface_hub without a connection, on a copy as it keeps them."""
    copy = tmp_path / "hub" / "datasets--somebody--RefCOCO"
    write(copy / "snapshots" / ("a" * 40) / "data" / "val-00000-of-00001.parquet", *lmms_lab())
    (copy / "refs").mkdir()
    (copy / "refs" / "main").write_text("a" * 40)
    script = (
        "from flmm_core.data.sources import open_source\n"
        "print([s.phrases[0].text for s in open_source('parquet:somebody/RefCOCO@val')])\n"
        "open_source('parquet:nobody/RefCOCO@val')"
    )
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd="/")
    assert done.stdout == "['the red mug', 'mug on the left', 'a spoon']\n"
    assert "There is no folder or file 'nobody/RefCOCO', and no such data set of the Hub" in (
        done.stderr
    )


def test_a_converted_set_pushed_as_parquet_comes_back(tmp_path: Path) -> None:
    scenes = list(draw_images(3, 4, sentences=2))
    FORMATS["jsonl"].write(tmp_path / "in", scenes)
    rows = load_dataset(str(tmp_path / "in"), split="train", cache_dir=str(tmp_path / "hub"))
    rows.to_parquet(str(tmp_path / "out" / "train.parquet"))
    before, after = (
        read(f"jsonl:{tmp_path / 'in'}@train"),
        read(f"parquet:{tmp_path / 'out'}@train"),
    )
    for one, other in zip(before, after, strict=True):
        assert [(t.sentences, t.mask, t.category) for t in one.objects] == [
            (t.sentences, t.mask, t.category) for t in other.objects
        ]
        assert read_image(one.path).tobytes() == read_image(other.path).tobytes()
    target, _ = convert_source(f"parquet:{tmp_path / 'out'}@train", tmp_path / "lines")
    assert len(list(target.rglob("*.png"))) == 3


def test_what_marks_nothing_is_left_out(tmp_path: Path) -> None:
    rows = [
        {"image": stored(), "text": "mug", "segmentation": POLYGON},
        {"image": stored(), "text": "line", "segmentation": [1.0, 1.0, 5.0, 5.0]},
        {"image": stored(), "text": " ", "segmentation": POLYGON},
    ]
    path, findings = write(tmp_path / "a.parquet", rows), Findings()
    (image,) = read(f"parquet:{path}", findings)
    assert len(image.objects) == 1
    reasons = sorted(item.reason for item in findings.skipped)
    assert reasons == ["it covers no pixel", "it has no sentence"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": None}, "Row 0 of {file} has no column with words."),
        ({"segmentation": None}, "Row 0 of {file} has no column with a mask."),
        ({"image": None}, "Row 0 of {file} has no column with an image."),
        ({"image": {"bytes": b"x", "path": None}}, "The image of row 0 of {file} is not an image"),
        ({"segmentation": "[1"}, "The mask of row 0 of {file} is not JSON."),
        ({"segmentation": {"size": [3, 3], "counts": "04"}}, "The RLE is 3 x 3, the image 24 x 32"),
        ({"segmentation": picture()[:50]}, "The mask of row 0 of {file} is not an image, or is"),
        ({"image": "gone.jpg"}, "The image gone.jpg of row 0 of {file} is missing."),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    row = {"image": stored(), "text": "mug", "segmentation": POLYGON} | change
    path = write(tmp_path / "a.parquet", [row])
    with pytest.raises(DataError) as caught:
        read(f"parquet:{path}")
    assert message.format(file=path) in str(caught.value)


def test_a_file_that_is_cut_off(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", *lmms_lab())
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(DataError, match=r"a\.parquet is not a parquet file, or is broken"):
        read(f"parquet:{path}")


def test_pyarrow_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", *lmms_lab())
    script = (
        "import sys\nsys.modules['pyarrow'] = None\n"
        f"from flmm_core.cli import main\nsys.exit(main(['data', 'check', 'parquet:{path}']))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert "pip install 'flmm[parquet]'" in done.stdout + done.stderr
    assert done.returncode == 3
