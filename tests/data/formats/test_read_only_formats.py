"""What holds of the formats that are only read: drawn scenes come back, convert and travel."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from random import Random

import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from scipy.ndimage import binary_dilation

from flmm_core.data import rle
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.formats.shared.new_image import NewImage
from flmm_core.data.formats.shared.outlines import outlines
from flmm_core.data.images import read_image
from flmm_core.data.protocols import PROTOCOLS
from flmm_core.data.sources import open_source, read_source
from flmm_core.data.tools.check import check_source
from flmm_core.data.tools.convert import convert_source
from tests.data.formats.shared.test_brush_rle import encode
from tests.data.test_any_junk import JUNK, changed, places


def save_images(scenes: list[NewImage], folder: Path) -> None:
    for scene in scenes:
        scene.save(folder / scene.file_name)


def masks(scenes: list[NewImage], root: Path) -> None:
    rows = []
    for scene in scenes:
        for number, thing in enumerate(scene.objects):
            mask = f"{scene.file_name}.{number}.png"
            path = root / "masks" / mask
            path.parent.mkdir(exist_ok=True)
            Image.fromarray(rle.decode(thing.read_mask())).save(path)
            rows += [{"image": scene.file_name, "mask": mask, "text": t} for t in thing.sentences]
    (root / "metadata.json").write_text(json.dumps(rows))


def labelstudio(scenes: list[NewImage], root: Path) -> None:
    tasks = []
    for scene in scenes:
        results = []
        for number, thing in enumerate(scene.objects):
            alpha = rle.decode(thing.read_mask()) * np.uint8(255)
            height, width = alpha.shape
            size = {"id": f"r{number}", "original_width": width, "original_height": height}
            code = {"format": "rle", "rle": list(encode(alpha, [3, 4, 8, 16]))}
            said = {"text": list(thing.sentences)}
            results += [
                {"type": "brushlabels", "value": {**code, "brushlabels": ["x"]}, **size},
                {"type": "textarea", "value": said, **size},
            ]
        tasks.append({"data": {"image": scene.file_name}, "annotations": [{"result": results}]})
    (root / "export.json").write_text(json.dumps(tasks))


def parquet(scenes: list[NewImage], root: Path) -> None:
    rows = [
        {
            "image": {"bytes": (root / "images" / scene.file_name).read_bytes(), "path": None},
            "sentences": list(thing.sentences),
            "segmentation": outlines(rle.decode(thing.read_mask())),
        }
        for scene in scenes
        for thing in scene.objects
    ]
    Dataset.from_list(rows).to_parquet(str(root / "train.parquet"))


EXACT: dict[str, Callable[[list[NewImage], Path], None]] = {
    "masks": masks,
    "labelstudio": labelstudio,
    "parquet": parquet,
}


def voc(scenes: list[NewImage], root: Path) -> None:
    names = sorted({thing.category for scene in scenes for thing in scene.objects})
    lines = [f"{name}:{n},0,0::" for n, name in enumerate(["background", *names])]
    (root / "labelmap.txt").write_text("\n".join(lines))
    (root / "images").rename(root / "JPEGImages")
    (root / "SegmentationClass").mkdir()
    for scene in scenes:
        height, width = scene.objects[0].read_mask()["size"]
        pixels = np.zeros((height, width, 3), np.uint8)
        for thing in scene.objects:
            inside = rle.decode(thing.read_mask())
            pixels[inside] = [names.index(thing.category) + 1, 0, 0]
        Image.fromarray(pixels).save(root / "SegmentationClass" / scene.file_name)


def yolo(scenes: list[NewImage], root: Path) -> None:
    names = sorted({thing.category for scene in scenes for thing in scene.objects})
    (root / "classes.txt").write_text("\n".join(names))
    (root / "labels").mkdir()
    for scene in scenes:
        lines = []
        for thing in scene.objects:
            height, width = thing.read_mask()["size"]
            for outline in outlines(rle.decode(thing.read_mask())):
                points = np.reshape(outline, (-1, 2)) / (width, height)
                numbers = " ".join(f"{n:.6f}" for n in points.ravel())
                lines.append(f"{names.index(thing.category)} {numbers}")
        label = (root / "labels" / scene.file_name).with_suffix(".txt")
        label.write_text("\n".join(lines))


WRITERS = EXACT | {"voc": voc, "yolo": yolo}


@pytest.fixture
def source(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[str, list[NewImage]]:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    scenes = list(draw_images(3, 11, kinds=("plain", "occlusion"), sentences=2))
    save_images(scenes, tmp_path / "in" / "images")
    WRITERS[request.param](scenes, tmp_path / "in")
    return f"{request.param}:{tmp_path / 'in'}", scenes


def test_every_format_that_is_only_read_is_here() -> None:
    read_only = {name for name, entry in FORMATS.items() if not entry.writable}
    assert read_only - {"shapes", "refcoco+", "refcocog"} == set(WRITERS)


@pytest.mark.parametrize("source", EXACT, indirect=True)
def test_drawn_scenes_come_back(source: tuple[str, list[NewImage]]) -> None:
    _, images = read_source(source[0])
    for image, scene in zip(images, source[1], strict=True):
        assert isinstance(scene.image, Image.Image)
        assert read_image(image.path).tobytes() == scene.image.tobytes()
        assert [(thing.sentences, thing.read_mask()) for thing in image.objects] == [
            (thing.sentences, thing.read_mask()) for thing in scene.objects
        ]


@pytest.mark.parametrize("source", ["voc", "yolo"], indirect=True)
def test_classes_of_drawn_scenes_come_back(source: tuple[str, list[NewImage]]) -> None:
    _, images = read_source(source[0])
    scenes = {scene.file_name: scene for scene in source[1]}
    assert len(images) == len(scenes)
    for image in images:
        scene = scenes[image.path.name]
        for thing in image.objects:
            drawn = [o.read_mask() for o in scene.objects if o.category == thing.category]
            union, mask = rle.decode(rle.merge(drawn)), rle.decode(thing.read_mask())
            # OpenCV's polygons include their outline, which takes up to a pixel more.
            most = binary_dilation(union, np.ones((3, 3))) if "yolo" in source[0] else union
            assert not (union & ~mask).any()
            assert not (mask & ~most).any()


@pytest.mark.parametrize("source", WRITERS, indirect=True)
@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_conversion_changes_no_sample(
    source: tuple[str, list[NewImage]], protocol: str, tmp_path: Path
) -> None:
    report = check_source(source[0])
    assert report.faults == report.skipped == ()
    convert_source(source[0], tmp_path / "out")
    converted = f"jsonl:{tmp_path / 'out'}@train"
    assert check_source(converted).faults == ()
    before, after = open_source(source[0], protocol), open_source(converted, protocol)
    for one, other in zip(before, after, strict=True):
        assert (one.segments, one.phrases, one.image_hw) == (
            other.segments,
            other.phrases,
            other.image_hw,
        )
        assert one.image_path.read_bytes() == other.image_path.read_bytes()


@pytest.mark.parametrize("source", ["masks", "labelstudio"], indirect=True)
def test_a_changed_value_never_stops_a_check(source: tuple[str, list[NewImage]]) -> None:
    (file,) = Path(source[0].partition(":")[2]).glob("*.json")
    whole, random = file.read_text(), Random(4)
    content = json.loads(whole)
    spots = [spot for spot in places(content) if "rle" not in spot or spot[-1] in ("rle", 3)]
    for _ in range(25):
        junk = changed(content, random.choice(spots), random.choice(JUNK))
        file.write_text(json.dumps(junk))
        report = check_source(source[0])
        assert all(str(fault) for fault in report.faults)


@pytest.mark.parametrize("source", WRITERS, indirect=True)
def test_samples_travel_to_other_processes(source: tuple[str, list[NewImage]]) -> None:
    samples = open_source(source[0])
    assert list(pickle.loads(pickle.dumps(samples))) == list(samples)
