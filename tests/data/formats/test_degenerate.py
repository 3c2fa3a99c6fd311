"""In every format an annotation that marks nothing is left out; only what is said absent is."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pycocotools import mask as coco

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.findings import Findings
from flmm_core.data.formats import FORMATS
from flmm_core.data.sample import AnnotatedImage
from flmm_core.data.tools.check import check_source
from tests.data.conftest import read

THIN = [30.6, 18.3, 30.6, 18.3, 31.7, 18.3, 31.7, 18.3]
"""Annotation of COCO 2017 (cocodataset/cocoapi#355)."""
NO_MASK: tuple[Any, ...] = (
    [], None, [[]], [[1, 2]], [[1, 2, 3, 4]], [THIN], [[1, 2, 3, 4], THIN],
    {"size": [96, 96], "counts": [96 * 96]},
)  # fmt: skip
POINTS: tuple[Any, ...] = ([], [[1, 2]], [[1, 2], [8, 9]])

Change = Callable[[Any], None]


def facts(images: tuple[AnnotatedImage, ...]) -> list[Any]:
    """All phrases and masks, without the ids of objects."""
    return [
        (image.file_name, thing.sentences, thing.read_mask()["counts"], thing.absent)
        for image in images
        for thing in image.objects
    ]


def rewrite(file: Path, change: Change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def without_masks(content: Any) -> list[Any]:
    return [{**annotation, "segmentation": []} for annotation in content["annotations"]]


def draw(form: str, folder: Path) -> str:
    scenes = draw_images(2, 11, extras=FORMATS[form].extras)
    FORMATS[form].write(folder, scenes)
    return f"{form}:{folder}@train"


def test_pycocotools_finds_no_pixel_either() -> None:
    codes = coco.frPyObjects([THIN], 96, 96)
    assert coco.area(codes).sum() == 0


@pytest.mark.parametrize("mask", NO_MASK)
@pytest.mark.parametrize("form", ["refcoco", "coco", "grefcoco"])
def test_an_annotation_without_a_pixel(form: str, mask: Any, tmp_path: Path) -> None:
    source = draw(form, tmp_path)
    (file,) = tmp_path.rglob("instances.json")

    def spoil(content: Any) -> None:
        for place in (0, 1):  # that is lost, and one without a key
            content["annotations"][place]["segmentation"] = mask
        if mask is None:
            del content["annotations"][1]["segmentation"]

    before = facts(read(source))
    rewrite(file, spoil)
    findings = Findings()
    after = facts(read(source, findings))
    lost = [fact for fact in before if fact not in after]
    assert len(lost) == len(findings.skipped) >= 2
    assert after == [fact for fact in before if fact in after]
    assert all(one.counts and str(file) in one.name + one.reason for one in findings.skipped)
    assert len([one for one in after if one[3]]) == len([one for one in before if one[3]])
    report = check_source(source)
    assert report.faults == ()
    assert len(report.skipped) == len(lost)


@pytest.mark.parametrize("segmentation", [[], [[1, 2, 3, 4]], [THIN]])
def test_an_object_of_a_line(segmentation: Any, tmp_path: Path) -> None:
    source = draw("jsonl", tmp_path)
    file = tmp_path / "train" / "metadata.jsonl"
    before, lines = facts(read(source)), file.read_text().splitlines()
    line = json.loads(lines[0])
    line["objects"]["segmentation"][1] = segmentation
    names = line["objects"]["phrases"]
    line["captions"] = [[
        {"text": f"{words[0]} ", "object": index} for index, words in enumerate(names)
    ]]  # fmt: skip
    file.write_text("\n".join([json.dumps(line), *lines[1:]]))
    findings = Findings()
    images = read(source, findings)
    assert facts(images) == before[:1] + before[2:]
    assert len(findings.skipped) == 1
    # The words stay in the caption, but nobody looks for them.
    assert [piece.phrase for piece in images[0].caption[:3]] == [0, None, 1]
    assert "".join(piece.text for piece in images[0].caption).split() == [
        word for words in names for word in words[0].split()
    ]


def test_what_a_file_says_is_absent_stays_so(tmp_path: Path) -> None:
    empty = {"size": [96, 96], "counts": [96 * 96]}
    for form in ("jsonl", "refcoco", "grefcoco"):
        folder = tmp_path / form
        FORMATS[form].write(folder, draw_images(2, 11, extras=("absent",)))
        assert check_source(f"{form}:{folder}@train").absent == 2
    file = tmp_path / "jsonl" / "train" / "metadata.jsonl"
    line = json.loads(file.read_text().splitlines()[0])
    line["objects"]["segmentation"][0] = empty
    file.write_text(json.dumps(line))
    report = check_source(f"jsonl:{tmp_path / 'jsonl'}@train")
    assert (report.absent, report.skipped) == (2, ())


@pytest.mark.parametrize("points", [*POINTS, [[900, 900], [950, 900], [950, 950]]])
def test_a_shape_of_labelme(points: Any, tmp_path: Path) -> None:
    source = draw("labelme", tmp_path)
    file = sorted(tmp_path.rglob("*.json"))[0]
    before = facts(read(source))
    bad = {"label": "a far cloud", "points": points, "shape_type": "polygon"}
    rewrite(file, lambda content: content["shapes"].append(bad))
    findings = Findings()
    assert facts(read(source, findings)) == before
    number = len(json.loads(file.read_text())["shapes"]) - 1
    assert [one.name for one in findings.skipped] == [f"shape {number} of {file}"]


@pytest.mark.parametrize("kind", ["point", "points", "line", "linestrip"])
def test_shapes_without_area(kind: str, tmp_path: Path) -> None:
    source = draw("labelme", tmp_path)
    file = sorted(tmp_path.rglob("*.json"))[0]
    before = facts(read(source))
    bad = {"label": "a wire", "points": [[1, 1], [5, 5], [9, 1]], "shape_type": kind}
    rewrite(file, lambda content: content["shapes"].append(bad))
    findings = Findings()
    assert facts(read(source, findings)) == before
    assert [one.reason for one in findings.skipped] == [f"a {kind} has no area"]


@pytest.mark.parametrize("points", POINTS)
def test_a_query_without_a_target(points: Any, tmp_path: Path) -> None:
    source = draw("reasonseg", tmp_path)
    file = sorted(tmp_path.rglob("*.json"))[0]
    before = facts(read(source))

    def spoil(content: Any) -> None:
        content["shapes"] = [{"label": "target", "points": points, "shape_type": "polygon"}]

    rewrite(file, spoil)
    findings = Findings()
    assert facts(read(source, findings)) == before[1:]
    assert findings.skipped[-1].reason == "it covers no pixel"


@pytest.mark.parametrize("form", ["refcoco", "grefcoco"])
def test_a_ref_without_sentences(form: str, tmp_path: Path) -> None:
    source = draw(form, tmp_path)
    before = facts(read(source))
    (file,) = tmp_path.rglob("refs(unc).p" if form == "refcoco" else "grefs(unc).json")
    if form == "refcoco":
        refs = pickle.loads(file.read_bytes())
        refs[0]["sentences"] = []
        file.write_bytes(pickle.dumps(refs))
    else:
        rewrite(file, lambda refs: refs[0].update(sentences=[]))
    findings = Findings()
    assert facts(read(source, findings)) == before[1:]
    assert [one.reason for one in findings.skipped] == ["it has no sentence"]


@pytest.mark.parametrize("form", ["coco", "labelme", "refcoco", "jsonl"])
def test_an_empty_set_is_an_error(form: str, tmp_path: Path) -> None:
    source = draw(form, tmp_path)
    for file in tmp_path.rglob("*.json*"):
        if form == "labelme":
            rewrite(file, lambda content: content.update(shapes=[]))
        elif form == "coco":
            rewrite(file, lambda content: content.update(annotations=[]))
        elif form == "refcoco":
            rewrite(
                file, lambda content: [a.update(segmentation=[]) for a in content["annotations"]]
            )
        else:
            lines = [json.loads(line) for line in file.read_text().splitlines()]
            for line in lines:
                objects = line["objects"]
                objects["segmentation"] = [[]] * len(objects["phrases"])
            file.write_text("\n".join(map(json.dumps, lines)))
    report = check_source(source)
    assert [fault.asked for fault in report.faults] == [f"The data source '{source}' is empty."]
    assert report.skipped
    assert f"{len(report.skipped)} left out, the first " in report.faults[0].found
