"""What is measured once is read from the disk, unless the file is damaged or another's."""

from __future__ import annotations

import json
import multiprocessing
import pickle
import shutil
from pathlib import Path

import pytest
import torch

from flmm_core.files import sealed
from flmm_core.pipeline.backbone.geometry import measured_views
from flmm_core.pipeline.backbone.geometry.measured_views import Measured, MeasuredGeometry
from recipes.twins import PARTS

SIZE = (40, 60)
OTHER = (60, 40)


def geometry(family: str = "deepseek_vl") -> MeasuredGeometry:
    config, processor = PARTS[family](pixels=32)
    return MeasuredGeometry(config, processor)


def same(one: Measured, other: Measured) -> bool:
    pairs = zip(one.views, other.views, strict=True)
    tokens = all(torch.equal(a.token_index, b.token_index) for a, b in pairs)
    return tokens and str(one) == str(other)


def files(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.json"))


def test_another_process_reads_what_was_measured(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = geometry()
    found = first.at(SIZE)
    sent = pickle.dumps(first)
    assert len(sent) < 200_000  # no twin
    monkeypatch.delattr(measured_views, "Twin")  # nothing can be measured any more
    assert same(pickle.loads(sent).at(SIZE), found)
    assert same(geometry().at(SIZE), found)


@pytest.mark.parametrize("damage", ["cut", "empty", "changed", "foreign", "no object"])
def test_a_file_that_is_not_whole_or_not_this_models_is_measured_again(
    cache: Path, damage: str
) -> None:
    found = geometry().at(SIZE)
    geometry().at(OTHER)
    one, other = files(cache)
    content = json.loads(one.read_text())
    if damage == "cut":
        one.write_bytes(one.read_bytes()[:100])
    elif damage == "empty":
        one.write_bytes(b"")
    elif damage == "no object":
        one.write_text("[1, 2]")
    elif damage == "changed":
        one.write_text(json.dumps({**content, "separators": 7}))
    else:
        shutil.copy(other, one)
    assert same(geometry().at(SIZE), found)
    assert json.loads(one.read_text()) == content == sealed(content)


def test_other_settings_have_other_files(cache: Path) -> None:
    config, processor = PARTS["deepseek_vl"](pixels=32)
    MeasuredGeometry(config, processor).at(SIZE)
    processor.image_processor.min_size = 20
    changed = MeasuredGeometry(config, processor).at((10, 60))
    assert len({path.parent for path in files(cache)}) == 2
    assert changed.views[0].image_box[2] == pytest.approx(1.3, abs=0.02)  # 20 of 32 pixels


def test_a_disk_that_cannot_be_written_keeps_nothing(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cache / "file").touch()
    monkeypatch.setenv("FLMM_CACHE", str(cache / "file"))
    assert geometry().at(SIZE).image_tokens == 16


@pytest.mark.multiprocess
def test_processes_measure_one_size_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(3) as pool:
        found = pool.map(_measure, [geometry()] * 3)
    assert sorted(measured for measured, _ in found) == [False, False, True]
    assert len({text for _, text in found}) == 1
    assert not list(cache.rglob("*.partial"))


def _measure(given: MeasuredGeometry) -> tuple[bool, str]:
    torch.set_num_threads(1)
    found = given.at(SIZE)
    return given._twin is not None, str(found)
