"""`flmm ground` over many images: what is written, what is kept, what is lost."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from flmm_core.annotate.each import Asked, ground_each
from flmm_core.annotate.outputs import KINDS
from flmm_core.cli import main
from flmm_core.data import rle
from flmm_core.data.findings import Findings
from flmm_core.data.formats import FORMATS, Source
from flmm_core.errors import FlmmError, RunError
from flmm_core.images import to_image
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from flmm_core.pipeline.result_files import write_result

Capture = pytest.CaptureFixture[str]
PHRASES = ("red ring", "the star")


@pytest.fixture
def photos(tmp_path: Path, scenes: list[Path]) -> Path:
    """a.png, in/a.png (two images of one name), in/turned.jpg and a broken one."""
    folder = tmp_path / "photos"
    (folder / "in").mkdir(parents=True)
    shutil.copy(scenes[0], folder / "a.png")
    shutil.copy(scenes[1], folder / "in" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6  # stored lying on its side
    turned = to_image(scenes[2]).crop((0, 0, 90, 60))
    turned.save(folder / "in" / "turned.jpg", exif=exif)
    (folder / "in" / "broken.png").write_bytes((scenes[3]).read_bytes()[:900])
    return folder


def ground(head: Path, output: Path, *arguments: object) -> int:
    words = [arg for phrase in PHRASES for arg in ("-p", phrase)]
    given = [*map(str, arguments), *words, "--head", str(head), "--output", str(output)]
    return main(["ground", *given])


def found(folder: Path) -> dict[str, object]:
    content: dict[str, object] = json.loads((folder / "result.json").read_text())
    return content


def test_images_are_written_apart_and_a_broken_one_is_told_at_the_end(
    photos: Path, head: Path, grounder: Grounder, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    saves = [arg for kind in KINDS for arg in ("--save", kind)]
    assert ground(head, out, photos, *saves) == 1
    shown = capsys.readouterr()
    assert "flmm: 1 of 4 images cannot be used.\n" in shown.err
    assert f"{photos / 'in' / 'broken.png'}: " in shown.err
    assert len(json.loads((out / "left-out.json").read_text())) == 1
    assert not (out / "in" / "broken.png").exists()
    assert len(shown.out.splitlines()) == 3

    good = {name: photos / name for name in ("a.png", "in/a.png", "in/turned.jpg")}
    for name, path in good.items():
        alone = grounder.ground(path, PHRASES)
        names = {file.name for file in (out / name).iterdir()}
        assert names == {
            *("result.json", "overlay.png", "mask-1.png", "mask-2.png"),
            *("attention.npz", "attention-1.png", "attention-2.png"),
        }
        check_attention(out / name, alone)
        for number in range(2):
            with Image.open(out / name / f"mask-{number + 1}.png") as stored:
                values = np.asarray(stored)
            assert set(np.unique(values)) <= {0, 255}
            assert differing(values > 0, alone.mask(number).numpy()) < 1e-3
    assert found(out / "in" / "turned.jpg")["height"] == 90  # upright

    coco = COCO(str(out / "instances.json"))
    masks = {}
    for ann in coco.loadAnns(coco.getAnnIds()):
        image, (category,) = coco.loadImgs(ann["image_id"])[0], coco.loadCats(ann["category_id"])
        assert (out / image["file_name"]).resolve() in [path.resolve() for path in good.values()]
        masks[Path(image["file_name"]).name, image["height"], category["name"]] = coco.annToMask(
            ann
        )
    written = {}
    for name in good:
        for record in found(out / name)["found"]:  # type: ignore[attr-defined]
            if record["area"]:
                with Image.open(out / name / record["mask"]) as stored:
                    mask = np.asarray(stored) > 0
                written[name, record["phrase"]] = mask
    assert len(written) == len(coco.getAnnIds()) >= 3
    for format_name, place in (("coco", out), ("labelme", out / "labelme")):
        findings = Findings()
        images = FORMATS[format_name].read(Source(format_name, place), findings)
        read = {
            (image.path.resolve(), *thing.sentences): rle.decode(thing.read_mask())
            for image in images
            for thing in image.objects
        }
        expected = {
            (good[name].resolve(), phrase): mask for (name, phrase), mask in written.items()
        }
        assert read.keys() == expected.keys()
        for key, mask in expected.items():
            assert np.array_equal(read[key], mask), (format_name, key)
    for (file, height, phrase), mask in masks.items():
        matching = [m for (n, p), m in written.items() if (Path(n).name, p) == (file, phrase)]
        assert any(m.shape[0] == height and np.array_equal(m, mask) for m in matching)


def check_attention(folder: Path, alone: Result) -> None:
    with np.load(folder / "attention.npz") as stored:
        assert list(stored["phrases"]) == list(PHRASES)
        assert stored["image_box"].shape == (4,)
        assert np.allclose(stored["attention"], alone.heat.maps[:, 0].numpy(), atol=1e-5)
    with Image.open(folder / "attention-2.png") as painted:
        assert painted.size == alone.image.size


def test_painted_attention_is_bright_where_the_words_look(
    grounder: Grounder, tmp_path: Path
) -> None:
    result = grounder.ground(Image.new("RGB", (90, 60), (90, 90, 90)), ["the star"])
    write_result(result, tmp_path / "out", kinds=["attention"])
    with Image.open(tmp_path / "out" / "attention-1.png") as painted:
        bright = np.asarray(painted.convert("L")).astype(float)
    looked = result.attention(0).numpy()
    assert np.corrcoef(bright.ravel(), looked.ravel())[0, 1] > 0.8


def differing(one: np.ndarray, other: np.ndarray) -> float:
    """Share of pixels; the last bits of sums depend on what else is in a batch."""
    return float((one != other).mean())


def test_a_second_run_grounds_only_what_is_missing_or_changed(
    photos: Path, head: Path, grounder: Grounder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Grounder, "from_pretrained", lambda *_, **__: grounder)
    out, loads = tmp_path / "out", []
    true = Grounder.ground_prepared

    def counting(self: Grounder, asked: list[object], **more: object) -> list[Result]:
        loads.append(len(asked))
        return true(self, asked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Grounder, "ground_prepared", counting)
    paths = photos / "a.png", photos / "in" / "a.png"
    assert ground(head, out, paths[0], paths[1]) == 0
    first = {p: p.stat().st_mtime_ns for p in out.rglob("*.png") if p.is_file()}
    assert (sum(loads), len(first)) == (2, 6)
    assert ground(head, out, *paths) == 0
    assert sum(loads) == 2
    (out / "a.png" / "result.json").unlink()
    assert ground(head, out, *paths) == 0
    assert sum(loads) == 3
    shutil.copy(photos / "a.png", photos / "in" / "a.png")
    assert ground(head, out, *paths) == 0
    assert sum(loads) == 4
    assert ground(head, out, *paths, "--save", "masks") == 0
    assert sum(loads) == 6
    assert not (out / "a.png" / "overlay.png").exists()  # of an earlier run
    assert ground(head, out, *paths, "--save", "masks", "--overwrite") == 0
    assert sum(loads) == 8


def test_requests_of_stdin_are_answered_as_json(
    photos: Path,
    head: Path,
    grounder: Grounder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    monkeypatch.setattr(Grounder, "from_pretrained", lambda *_, **__: grounder)
    monkeypatch.chdir(photos)
    lines = b'a.png\n{"image": "in/a.png", "phrases": ["blue dot"]}\ngone.png\n'
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(lines)))
    assert ground(head, tmp_path / "out", "-", "--json") == 1
    shown = capsys.readouterr()
    answer = json.loads(shown.out)
    phrases = [[one["phrase"] for one in image.get("found", ())] for image in answer["images"]]
    assert phrases == [list(PHRASES), ["blue dot"], []]
    assert answer["images"][2]["error"].startswith("The image gone.png cannot be read.")
    assert "1 of 3 images" in shown.err


def test_batches_are_filled_across_images_and_read_ahead(
    scenes: list[Path], grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches, read = [], []
    true = Grounder.ground_prepared

    def watching(self: Grounder, asked: list[object], **more: object) -> list[Result]:
        batches.append((len(asked), len(read)))
        return true(self, asked, **more)  # type: ignore[arg-type]

    def reading(path: Path) -> Path:
        read.append(path)
        return path

    monkeypatch.setattr(Grounder, "ground_prepared", watching)
    asked = [
        Asked(number, lambda path=path: reading(path), PHRASES)  # type: ignore[misc]
        for number, path in enumerate(scenes)
    ]
    outcomes = dict(ground_each(grounder, asked, batch_size=4, readers=2))
    assert [count for count, _ in batches] == [2, 2, 2]
    assert batches[0][1] > 2  # more than the first batch was read before it ran
    monkeypatch.undo()
    for number, path in enumerate(scenes):
        outcome, alone = outcomes[number], grounder.ground(path, PHRASES)
        assert isinstance(outcome, Result)
        assert differing(outcome.masks.numpy(), alone.masks.numpy()) < 1e-3


def test_an_image_that_the_model_cannot_take_costs_only_itself(
    scenes: list[Path], grounder: Grounder, monkeypatch: pytest.MonkeyPatch
) -> None:
    true = Grounder.ground_prepared

    def failing(self: Grounder, asked: list[object], **more: object) -> list[Result]:
        if any(one.phrases == ("overflow",) for one in asked):  # type: ignore[attr-defined]
            raise RunError("Values are not finite.")
        return true(self, asked, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(Grounder, "ground_prepared", failing)
    words = [("ring",), ("overflow",), ("word " * 9000,), ("star",)]
    asked = [
        Asked(n, lambda path=path: path, said)  # type: ignore[misc]
        for n, (path, said) in enumerate(zip(scenes, words, strict=False))
    ]
    outcomes = [outcome for _, outcome in ground_each(grounder, asked)]
    assert [isinstance(one, FlmmError) for one in outcomes] == [False, True, True, False]
