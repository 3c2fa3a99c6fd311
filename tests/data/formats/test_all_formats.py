"""What holds of every format: drawn scenes come back, convert to one format, and travel."""

from __future__ import annotations

import json
import pickle
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.formats.jsonl import image_name
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.images import read_image
from flmm_core.data.protocols import PROTOCOLS
from flmm_core.data.sample import Phrase, Sample, StoredMask
from flmm_core.data.sources import open_source, open_sources, read_source
from flmm_core.data.tools.convert import convert_source
from flmm_core.errors import DataError, UsageError


def drawn(form: str, folder: Path, images: int = 5) -> list[NewImage]:
    scenes = list(
        draw_images(images, 11, kinds=("plain", "occlusion", "size"), extras=FORMATS[form].extras)
    )
    FORMATS[form].write(folder, scenes)
    return scenes


def facts(phrase: Phrase) -> Any:
    ignored = phrase.ignore and phrase.ignore["counts"]
    return phrase.text, phrase.mask["counts"], ignored


def phrases(samples: Sequence[Sample]) -> Counter[Any]:
    return Counter(facts(phrase) for sample in samples for phrase in sample.phrases)


@pytest.mark.parametrize("form", writable_formats())
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_drawn_scenes_come_back_from_every_format(form: str, protocol: str, tmp_path: Path) -> None:
    scenes = drawn(form, tmp_path)
    samples = open_source(f"{form}:{tmp_path}@train", protocol)
    assert samples.skipped == ()
    expected = Counter(
        (
            words,
            thing.read_mask()["counts"],
            thing.ignore and thing.ignore["counts"],
        )
        for scene in scenes
        for thing in scene.objects
        for words in thing.sentences
    )
    assert phrases(samples) == expected
    for sample in samples:
        assert read_image(sample.image_path, image_hw=sample.image_hw)


@pytest.mark.parametrize("form", writable_formats())
@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("link", [False, True])
def test_conversion_changes_no_sample(form: str, protocol: str, link: bool, tmp_path: Path) -> None:
    drawn(form, tmp_path / "in")
    text = f"{form}:{tmp_path / 'in'}@train"
    target, skipped = convert_source(text, tmp_path / "out", link=link)
    assert (target, skipped) == (tmp_path / "out" / "train", ())
    before = open_source(text, protocol)
    after = open_source(f"jsonl:{tmp_path / 'out'}@train", protocol)
    assert len(before) == len(after)
    for one, other in zip(before, after, strict=True):
        assert one.segments == other.segments
        assert one.phrases == other.phrases
        assert one.image_hw == other.image_hw
        assert one.image_path.read_bytes() == other.image_path.read_bytes()
        assert other.image_path.is_symlink() == link


@pytest.mark.parametrize("form", writable_formats())
def test_samples_of_every_format_travel_to_other_processes(form: str, tmp_path: Path) -> None:
    drawn(form, tmp_path, 2)
    samples = open_source(f"{form}:{tmp_path}@train")
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)


def test_masks_of_a_panoptic_png_stay_in_their_file(tmp_path: Path) -> None:
    drawn("png", tmp_path, 2)
    _, images = read_source(f"png:{tmp_path}@train")
    assert all(isinstance(t.mask, StoredMask) for p in images for t in p.objects)
    samples = open_source(f"png:{tmp_path}@train")
    for file in tmp_path.glob("annotations/panoptic_segmentation/train2017/*.png"):
        file.unlink()
    with pytest.raises(DataError, match="cannot be read"):
        samples[0]


def test_what_converting_cannot_do_leaves_nothing(tmp_path: Path) -> None:
    drawn("coco", tmp_path / "in", 3)
    text = f"coco:{tmp_path / 'in'}@train"

    def stop(items: Any) -> Any:
        yield next(iter(items))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        convert_source(text, tmp_path / "out", track=stop)
    assert not (tmp_path / "out").exists()
    target, _ = convert_source(text, tmp_path / "out")
    with pytest.raises(UsageError) as caught:
        convert_source(text, tmp_path / "out")
    assert str(caught.value) == (
        f"The folder '{target}' is there already.\nGive another folder, or remove it first."
    )


def test_images_of_one_name_stay_apart_and_none_leaves_the_folder(tmp_path: Path) -> None:
    scenes = drawn("jsonl", tmp_path / "in", 3)
    folder = tmp_path / "in" / "train"
    lines = (folder / "metadata.jsonl").read_text()
    for number, scene in enumerate(scenes):
        place = folder.parent / f"{number}"
        place.mkdir()
        name = image_name(scene.file_name)
        (folder / "images" / name).rename(place / "a.png")
        lines = lines.replace(f"images/{name}", f"../{number}/a.png")
    (folder / "metadata.jsonl").write_text(lines.replace("../1/a", "../0/../1/a"))
    target, _ = convert_source(f"jsonl:{tmp_path / 'in'}@train", tmp_path / "out")
    names = [p.relative_to(target).as_posix() for p in target.rglob("*.png")]
    assert sorted(names) == ["images/0/1/a.png", "images/0/a.png", "images/2/a.png"]
    samples = open_source(f"jsonl:{tmp_path / 'out'}@train")
    for sample, scene in zip({s.image_path: s for s in samples}.values(), scenes, strict=True):
        assert np.array_equal(np.asarray(read_image(sample.image_path)), np.asarray(scene.image))


def test_no_target_is_a_mask_without_a_pixel(tmp_path: Path) -> None:
    drawn("grefcoco", tmp_path)
    samples = open_source(f"grefcoco:{tmp_path}@train")
    of_slice: dict[str, list[int]] = {}
    for sample in samples:
        for phrase in sample.phrases:
            of_slice.setdefault(phrase.slice, []).append(rle.area(phrase.mask))
    assert set(of_slice) == {"no target", "one target", "several targets"}
    assert not any(of_slice["no target"])
    assert all(of_slice["one target"] + of_slice["several targets"])


def test_what_was_left_out_is_known_of_joined_sources(tmp_path: Path) -> None:
    drawn("png", tmp_path, 2)
    file = tmp_path / "annotations" / "png_coco_train2017.json"
    narratives = json.loads(file.read_text())
    for segment in narratives[0]["segments"]:
        segment["segment_ids"] = []
    file.write_text(json.dumps(narratives))
    text = f"png:{tmp_path}@train"
    joined = open_sources([text, text])
    assert len(joined) == 2
    assert [(item.name, item.reason) for item in joined.skipped] == [
        (f"narrative 0 of {file}", "none of its phrases has a segment")
    ] * 2
