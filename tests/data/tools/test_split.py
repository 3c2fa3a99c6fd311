"""Splitting by image: nothing is lost, nothing is in two parts, and the shares are right."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sources import read_source
from flmm_core.data.tools.split import split_source
from flmm_core.errors import UsageError

PARTS = ("train", "val", "test")
SHARES = {"val": 0.2, "test": 0.1}


def content(text: str) -> Counter[tuple[bytes, str, bytes]]:
    """The objects of a source: pixels, words and mask of each."""
    _, images = read_source(text)
    return Counter(
        (
            hashlib.sha256(np.asarray(Image.open(image.path)).tobytes()).digest(),
            "|".join(thing.sentences),
            rle.decode(thing.read_mask()).tobytes(),
        )
        for image in images
        for thing in image.objects
    )


def files(folder: Path) -> dict[str, bytes]:
    found = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("form", ["refcoco", "png", "coco", "jsonl"])
def test_every_object_is_in_one_part_and_no_image_in_two(form: str, tmp_path: Path) -> None:
    FORMATS[form].write(tmp_path / "in", draw_images(20, 1, extras=FORMATS[form].extras))
    source = f"{form}:{tmp_path / 'in'}@train"
    counts, skipped = split_source(source, tmp_path / "out", SHARES)
    parts = {name: content(f"jsonl:{tmp_path / 'out'}@{name}") for name in PARTS}
    assert sum(parts.values(), Counter()) == content(source)
    images = {name: {image for image, _, _ in part} for name, part in parts.items()}
    assert [len(images[name]) for name in PARTS] == [14, 4, 2]
    assert counts == {"train": 14, "val": 4, "test": 2}
    assert len(set.union(*images.values())) == 20
    assert skipped == ()


def test_the_seed_alone_decides_not_the_order_of_the_lines(tmp_path: Path) -> None:
    FORMATS["jsonl"].write(tmp_path / "in", draw_images(12, 1))
    source = f"jsonl:{tmp_path / 'in'}@train"
    split_source(source, tmp_path / "a", SHARES)
    path = tmp_path / "in" / "train" / "metadata.jsonl"
    path.write_text("".join(reversed(path.read_text().splitlines(keepends=True))))
    split_source(source, tmp_path / "b", SHARES)
    split_source(source, tmp_path / "c", SHARES, seed=1)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    assert files(tmp_path / "a") != files(tmp_path / "c")


def classes(root: Path, numbers: list[int]) -> str:
    """A YOLO set of one object an image, of these classes."""
    (root / "images" / "train").mkdir(parents=True)
    (root / "labels" / "train").mkdir(parents=True)
    names = [f"class {n}" for n in range(max(numbers) + 1)]
    (root / "data.yaml").write_text(json.dumps({"train": "images/train", "names": names}))
    chance = np.random.default_rng(0)
    for place, number in enumerate(numbers):
        pixels = chance.integers(0, 255, (10, 12, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / "train" / f"{place:03}.png")
        label = root / "labels" / "train" / f"{place:03}.txt"
        label.write_text(f"{number} 0.1 0.1 0.5 0.1 0.5 0.6\n")
    return f"yolo:{root}@train"


def test_categories_are_spread_evenly(tmp_path: Path) -> None:
    numbers = [0] * 60 + [1] * 30 + [2] * 10
    split_source(classes(tmp_path / "in", numbers), tmp_path / "out", SHARES, seed=3)
    for name, share in {"train": 0.7, **SHARES}.items():
        _, images = read_source(f"jsonl:{tmp_path / 'out'}@{name}")
        found = Counter(thing.category for image in images for thing in image.objects)
        assert found == {
            f"class {n}": round(share * numbers.count(n)) for n in range(3)
        }  # all are whole numbers


def test_equal_files_stay_together(tmp_path: Path) -> None:
    source = classes(tmp_path / "in", [0] * 10)
    folder = tmp_path / "in" / "images" / "train"
    for copy in ("004", "007", "009"):
        shutil.copy(folder / "001.png", folder / f"{copy}.png")
    for seed in range(6):
        split_source(source, tmp_path / str(seed), {"val": 0.3, "test": 0.2}, seed=seed)
        homes = {name for name in PARTS if any(
            path.read_bytes() == (folder / "001.png").read_bytes()
            for path in (tmp_path / str(seed) / name).rglob("*.png")
        )}  # fmt: skip
        assert len(homes) == 1


def test_the_command_names_what_to_train_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = classes(tmp_path / "in", [0, 1, 0, 1, 0])
    out = tmp_path / "out"
    assert main(["data", "split", source, str(out), "--test", "0", "--link"]) == 0
    assert capsys.readouterr().out.splitlines()[-2:] == [
        f"jsonl:{out}@train (4 images)",
        f"jsonl:{out}@val (1 image)",
    ]
    assert all(path.is_symlink() for path in out.rglob("*.png"))
    assert not (out / "test").exists()
    loaded = datasets.load_dataset(str(out), cache_dir=str(tmp_path / "cache"))
    assert {name: len(part) for name, part in loaded.items()} == {"train": 4, "val": 1}
    assert main(["data", "split", source, str(out)]) == 2
    assert f"The folder '{out / 'train'}' is there already." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("shares", "first"),
    [
        ({"val": 0.5, "test": 0.5}, "The shares (0.5 for val, 0.5 for test) leave nothing to"),
        ({"val": 0.1, "test": 0.1}, "'{}' has too few images to be split (0.1 for val, 0.1 for"),
    ],
)
def test_what_cannot_be_split_is_told_and_nothing_written(
    shares: dict[str, float], first: str, tmp_path: Path
) -> None:
    source = classes(tmp_path / "in", [0, 0])
    with pytest.raises(UsageError) as error:
        split_source(source, tmp_path / "out", shares)
    assert error.value.asked.startswith(first.format(source))
    assert not (tmp_path / "out").exists()
