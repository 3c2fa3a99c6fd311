from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flmm_core.data.formats import FORMATS, DataFormat, Source
from flmm_core.data.sources import open_source, open_sources, parse_source
from flmm_core.errors import DataError, UsageError


@pytest.mark.parametrize(
    ("text", "name", "path", "split"),
    [
        ("shapes@train", "shapes", None, "train"),
        ("refcoco:/data/coco@val", "refcoco", "/data/coco", "val"),
        ("refcoco+:coco@testA", "refcoco+", "coco", "testA"),
        ("refcocog:/data/coco@google-val", "refcocog", "/data/coco", "google-val"),
        ("jsonl:/my/metadata.jsonl", "jsonl", "/my/metadata.jsonl", None),
        ("jsonl:/me@home/metadata.jsonl", "jsonl", "/me@home/metadata.jsonl", None),
        ("jsonl:/me@home/set@val", "jsonl", "/me@home/set", "val"),
        ("jsonl:/a@b@val", "jsonl", "/a@b", "val"),
        ("refcoco:C:/data@val", "refcoco", "C:/data", "val"),
    ],
)
def test_the_parts_of_a_source(text: str, name: str, path: str | None, split: str | None) -> None:
    assert parse_source(text) == Source(name, Path(path or ""), split or "")


@pytest.mark.parametrize(
    ("text", "images", "as_stored"),
    [
        ("refcoco:/rrsisd@val,images=/data/JPEGImages", "/data/JPEGImages", False),
        ("refcoco:/rrsisd@val,images=C:\\my, photos@home", "C:\\my, photos@home", False),
        ("refcoco:/rrsisd@val,exif=ignore", None, True),
        ("refcoco:/rrsisd@val,images=a,exif=ignore", "a", True),
        ("refcoco:/rrsisd@val,exif=ignore,images=a,b", "a,b", True),
    ],
)
def test_options_behind_a_source(text: str, images: str | None, as_stored: bool) -> None:
    expected = Source("refcoco", Path("/rrsisd"), "val", images and Path(images), as_stored)
    assert parse_source(text) == expected


@pytest.mark.parametrize(
    ("options", "found"),
    [
        (",images=", "The option 'images' is wrong."),
        (",exif=upright", "The option 'exif' is wrong."),
        (",images=a,images=b", "The option 'images' is given twice."),
    ],
)
def test_options_that_say_nothing(options: str, found: str) -> None:
    text = f"coco:/a{options}"
    with pytest.raises(UsageError) as caught:
        parse_source(text)
    assert str(caught.value) == (
        f"The data source '{text}' cannot be read.\n{found}\n"
        "Write ,images=DIR for the folder of the images, or ,exif=ignore if they were annotated "
        "as they are stored."
    )


formats = st.sampled_from(list(FORMATS.values()))
paths = st.text("ab/:@. ", min_size=1).map(lambda tail: f"/d{tail}/x")
splits = st.text("abAB-.", min_size=1)


@given(formats, paths, splits, st.booleans())
def test_what_is_put_together_comes_apart(
    wanted: DataFormat, path: str, split: str, short: bool
) -> None:
    path = path if wanted.has_path else ""
    split = "" if short and not wanted.needs_split else split
    text = wanted.name + (f":{path}" if path else "") + (f"@{split}" if split else "")
    assert parse_source(text) == Source(wanted.name, Path(path), split)


def test_the_users_folder_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert parse_source("refcoco:~/coco@val").path == Path("/home/me/coco")


@pytest.mark.parametrize("text", ["", "refcoco:@val", "shapes@", "@val", ":/data", "  "])
def test_a_source_of_another_form(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(text)
    assert str(caught.value) == (
        f"The data source '{text}' cannot be read.\n"
        "Expected NAME[:PATH][@SPLIT].\n"
        "For example: shapes@train, refcoco:/data/coco@val, jsonl:/my/metadata.jsonl."
    )


def test_an_unknown_name() -> None:
    with pytest.raises(UsageError) as caught:
        open_source("refcocoo:/data@val")
    first, known, repair = str(caught.value).splitlines()
    assert first == (
        "Unknown data source 'refcocoo' in 'refcocoo:/data@val'. Did you mean 'refcoco'?"
    )
    assert known.startswith("Known: shapes@SPLIT, refcoco:PATH@SPLIT, refcoco+:PATH@SPLIT, ")
    assert all(f"{name}:PATH" in known for name in FORMATS if name != "shapes")
    assert "jsonl:PATH[@SPLIT], " in known
    assert repair == "Write one of these names before the ':' or '@'."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "refcoco@val",
            (
                "The data source 'refcoco@val' has no path.\n"
                "Expected refcoco:PATH@SPLIT: RefCOCO (unc splits).\n"
                "Write the folder or file after a ':'."
            ),
        ),
        (
            "refcoco:/data",
            (
                "The data source 'refcoco:/data' needs a split.\n"
                "Expected refcoco:PATH@SPLIT: RefCOCO (unc splits).\n"
                "Write the split after an '@', for example '@train'."
            ),
        ),
        (
            "shapes",
            (
                "The data source 'shapes' needs a split.\n"
                "Expected shapes@SPLIT: drawn scenes: train, val, test, hard, absent, narrated, "
                "narrated-val, narrated-test.\n"
                "Write the split after an '@', for example '@train'."
            ),
        ),
        (
            "shapes:/data@train",
            (
                "The data source 'shapes:/data@train' takes no path, but '/data' was given.\n"
                "Expected shapes@SPLIT: drawn scenes: train, val, test, hard, absent, narrated, "
                "narrated-val, narrated-test.\n"
                "Leave out the path and the ':'."
            ),
        ),
        (
            "yolo:/data,images=/photos",
            (
                "The data source 'yolo:/data,images=/photos' takes no option 'images'.\n"
                "Expected yolo:PATH[@SPLIT]: YOLO segmentation: data.yaml.\n"
                "Leave it out."
            ),
        ),
        (
            "shapes@train,exif=ignore",
            (
                "The data source 'shapes@train,exif=ignore' takes no option 'exif'.\n"
                "Expected shapes@SPLIT: drawn scenes: train, val, test, hard, absent, narrated, "
                "narrated-val, narrated-test.\n"
                "Leave it out."
            ),
        ),
    ],
)
def test_a_source_with_a_part_too_few_or_too_many(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(text)
    assert str(caught.value) == message
    assert caught.value.exit_code == 2


@pytest.fixture
def root(tmp_path: Path, drawn_images: Any) -> Path:
    return FORMATS["refcoco"].write(tmp_path / "drawn", drawn_images)


def test_drawn_scenes_go_through_the_refcoco_reader(
    monkeypatch: pytest.MonkeyPatch, root: Path
) -> None:
    monkeypatch.setattr("flmm_core.data.drawn.splits.ensure_shapes", lambda split: root)
    shapes, same = open_source("shapes@train"), open_source(f"refcoco:{root}@train")
    assert [s.name for s in shapes] == [s.name.replace("refcoco@", "shapes@", 1) for s in same]
    assert [s.phrases for s in shapes] == [s.phrases for s in same]
    assert [s.caption for s in shapes] == [
        "the red square.",
        "left square.",
        "a ring.",
        "ein kleiner Käfer.",
    ]
    with pytest.raises(DataError, match="There is no split 'hard'"):
        open_source("shapes@hard")


def test_both_formats_give_the_same_samples(tmp_path: Path, root: Path, drawn_images: Any) -> None:
    other = FORMATS["jsonl"].write(tmp_path / "lines", drawn_images)
    for protocol in ("standard", "flmm-paper"):
        first = open_source(f"refcoco:{root}@train", protocol)
        second = open_source(f"jsonl:{other}@train", protocol)
        assert len(first) == len(second) > 0
        for one, two in zip(first, second, strict=True):
            assert one.segments == two.segments
            assert one.image_hw == two.image_hw
            assert [p.mask for p in one.phrases] == [p.mask for p in two.phrases]
            assert one.image_path.read_bytes() == two.image_path.read_bytes()


def test_several_sources_follow_one_another(root: Path) -> None:
    texts = [f"refcoco:{root}@train", f"refcoco:{root}@val", f"refcoco:{root}@train"]
    joined = open_sources(texts)
    parts = [sample for text in texts for sample in open_source(text)]
    assert list(joined) == parts
    assert len(joined) == len(parts) == 9
    assert joined[-1] == parts[-1]
    assert joined[3:6] == tuple(parts[3:6])
    assert len({sample.name for sample in joined[:5]}) == 5
    with pytest.raises(IndexError):
        joined[9]
    with pytest.raises(UsageError, match="No data source was given"):
        open_sources([])


def test_samples_travel_to_other_processes(root: Path) -> None:
    joined = open_sources([f"refcoco:{root}@train", f"refcoco:{root}@val"], "flmm-paper")
    assert list(pickle.loads(pickle.dumps(joined))) == list(joined)


def test_data_and_metrics_load_no_torch() -> None:
    code = (
        "import sys, flmm_core.data.sources, flmm_core.data.images, flmm_core.evaluation.scores\n"
        "sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
