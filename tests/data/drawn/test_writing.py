from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from flmm_core import files
from flmm_core.data import rle
from flmm_core.data.drawn import splits
from flmm_core.data.drawn.splits import SPLITS, ensure_shapes
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.images import read_image
from flmm_core.data.sources import open_source
from flmm_core.errors import UsageError


@pytest.fixture
def small_splits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The default splits, three images each, in a cache folder of their own."""
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    few = {name: replace(plan, count=3) for name, plan in SPLITS.items()}
    monkeypatch.setattr(splits, "SPLITS", few)
    return tmp_path / "cache"


@pytest.mark.parametrize("format_name", ["refcoco", "grefcoco", "jsonl", "coco"])
def test_what_is_written_is_read_back_exactly(format_name: str, tmp_path: Path) -> None:
    images = list(draw_images(4, seed=9, kinds=("plain", "size"), sentences=2))
    FORMATS[format_name].write(tmp_path, images)
    samples = open_source(f"{format_name}:{tmp_path}@train")
    drawn = [(p, o, w) for p in images for o in p.objects for w in o.sentences]
    assert len(samples) == len(drawn) > 8
    for sample, (image, thing, words) in zip(samples, drawn, strict=True):
        assert sample.phrases[0].text == words
        if format_name in ("refcoco", "jsonl"):
            assert sample.phrases[0].slice == thing.slice
        mask = rle.decode(sample.phrases[0].mask)
        assert np.array_equal(mask, rle.decode(thing.mask))
        assert np.array_equal(np.asarray(read_image(sample.image_path)), np.asarray(image.image))


def test_splits_share_no_scene_and_only_test_is_plain(small_splits: Path) -> None:
    samples = {name: open_source(f"shapes@{name}") for name in SPLITS}
    images = {
        name: {read_image(s.image_path).tobytes() for s in part} for name, part in samples.items()
    }
    assert len(set().union(*images.values())) == sum(map(len, images.values()))
    assert {p.slice for s in samples["test"] for p in s.phrases} == {"plain"}
    assert "plain" not in {p.slice for s in samples["hard"] for p in s.phrases}
    assert SPLITS["test"].count >= 300


@pytest.mark.parametrize("split", ["val", "absent"])
def test_half_of_the_phrases_of_two_splits_name_nothing(split: str, small_splits: Path) -> None:
    for sample in open_source(f"shapes@{split}", "flmm-paper"):
        absent = [p for p in sample.phrases if not rle.area(p.mask)]
        there = [p for p in sample.phrases if rle.area(p.mask)]
        assert len(absent) == len(there)
        assert {p.slice for p in absent} <= {"absent", "swapped"}
        assert not {p.slice for p in there} & {"absent", "swapped"}


def test_a_third_of_the_phrases_to_train_on_name_nothing() -> None:
    there, absent = Counter[int](), Counter[int]()
    for image in draw_images(60, seed=3, extras=SPLITS["train"].extras):
        there[sum(not thing.absent for thing in image.objects)] += 1
        absent[sum(thing.absent for thing in image.objects)] += 1
    assert 0.25 < sum(absent.elements()) / sum((there + absent).elements()) < 0.42
    assert {0, max(there)} <= set(absent)  # nor does their number tell anything


def test_absent_names_are_of_every_kind_and_never_true() -> None:
    kinds: Counter[tuple[str, bool, bool]] = Counter()
    articles: Counter[str] = Counter()
    first = 0
    for image in draw_images(60, seed=3, extras=("half absent",)):
        words = [(thing, tuple(thing.sentences[0].split()[-2:])) for thing in image.objects]
        painted = {name for thing, name in words if not thing.absent}
        colors, shapes = ({name[part] for name in painted} for part in (0, 1))
        for thing, (color, shape) in words:
            articles[thing.sentences[0].split()[0] if thing.absent else ""] += 1
            if thing.absent:
                assert (color, shape) not in painted
                kinds[thing.slice, color in colors, shape in shapes] += 1
        first += image.objects[0].absent
    assert set(kinds) == {
        ("swapped", True, True),
        ("absent", True, False),
        ("absent", False, True),
        ("absent", False, False),
    }
    assert min(kinds.values()) > 0.1 * kinds.total()
    assert {"a", "an", "the"} < set(articles)
    assert 15 < first < 45  # their place does not tell them


def test_one_absent_name_an_image_comes_last() -> None:
    for image in draw_images(10, seed=3, extras=("absent",)):
        assert [thing.absent for thing in image.objects[-2:]] == [False, True]


def test_a_split_is_drawn_once(small_splits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = ensure_shapes("test")
    monkeypatch.setattr(splits, "draw_images", None)  # a second drawing would fail
    assert ensure_shapes("test") == folder


def test_a_stop_while_drawing_leaves_nothing(
    small_splits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*args: object, **kwargs: object) -> object:
        yield next(draw_images(1, 1))
        raise KeyboardInterrupt

    monkeypatch.setattr(splits, "draw_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        ensure_shapes("test")
    assert list(small_splits.iterdir()) == []


def test_hidden_objects_are_not_asked_for() -> None:
    for image in draw_images(30, seed=2, kinds=("occlusion",)):
        for thing in image.objects:
            assert rle.area(thing.mask) > 0


def test_unknown_split_and_kind_are_named() -> None:
    with pytest.raises(UsageError) as split:
        ensure_shapes("tset")
    assert str(split.value) == (
        "Unknown split 'tset' of 'shapes'. Did you mean 'test'?\n"
        "Known: train, val, test, hard, absent, narrated, narrated-val, narrated-test."
    )
    with pytest.raises(UsageError, match=r"Unknown kind of scene 'plane'. Did you mean 'plain'"):
        next(draw_images(1, 0, kinds=("plane",)))
    with pytest.raises(UsageError, match="0 images cannot be drawn"):
        next(draw_images(0, 0))


def test_scenes_are_kept_in_the_users_cache_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FLMM_CACHE", raising=False)
    monkeypatch.setattr(files, "user_cache_path", lambda name, **_: tmp_path / name)
    assert files.cache_folder() == tmp_path / "flmm"
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("FLMM_CACHE", "~/scenes")
    assert files.cache_folder() == Path("/home/me/scenes")
