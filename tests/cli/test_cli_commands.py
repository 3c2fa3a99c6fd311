"""The subcommands eval, ground, backbones, refiners and data: their output and files."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

import flmm_core
from flmm_core.cli import main
from flmm_core.pipeline.confidence import Confidence, NotThere, Platt
from flmm_core.pipeline.grounder import Prepared
from flmm_core.pipeline.mask_logits import MaskLogits
from flmm_core.pipeline.result import collect
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps, Grounding
from flmm_core.plugins import Failure, Plugin, Registry
from flmm_core.spec import BackboneSpec, ModelInfo

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLMM_DEBUG", raising=False)


# --- eval ------------------------------------------------------------------------------------


def scored(ciou: float | None, **slices: Any) -> dict[str, Any]:
    return {"ciou": ciou, "miou": 0.25, "masks": 3, **({"slices": slices} if slices else {})}


def test_eval_forwards_its_options(monkeypatch: Patch, capsys: Capture) -> None:
    seen: dict[str, Any] = {}
    hard = {"small": scored(0.1), "size": scored(None)}
    figures = {
        "run": "runs/a",
        "backbone": "qwen",
        "protocol": "standard",
        "abstain_below": None,
        "data": {
            "shapes@test": {
                "coarse": scored(0.51239),
                "refined": scored(0.9, plain=scored(0.9)),
                "calibration": {"ece": 0.0416, "masks": 3, "bins": []},
            },
            "shapes@hard": {"coarse": scored(0.3, **hard), "refined": scored(0.4, **hard)},
        },
    }

    def evaluate_run(run: str, data: tuple[str, ...], **rest: Any) -> dict[str, Any]:
        seen.update(rest, run=run, data=data)
        return figures

    fake = SimpleNamespace(evaluate_run=evaluate_run)
    monkeypatch.setitem(sys.modules, "flmm_core.evaluation.evaluate", fake)
    arguments = ["eval", "runs/a", "--data", "shapes@test", "--data", "shapes@hard"]
    assert main([*arguments, "--json", "--batch-size", "2", "--limit", "9", "--model", "x"]) == 0
    assert json.loads(capsys.readouterr().out) == figures
    del seen["progress"]
    assert seen.pop("world").size == 1
    assert seen == {
        "run": "runs/a",
        "data": ("shapes@test", "shapes@hard"),
        "protocol": None,
        "method": "head",
        "method_data": (),
        "abstain": False,
        "batch_size": 2,
        "limit": 9,
        "model": "x",
    }
    assert main(arguments) == 0
    assert [line.split() for line in capsys.readouterr().out.splitlines()] == [
        ["runs/a:", "qwen,", "protocol", "standard"],
        ["data", "masks", "coarse", "cIoU", "mIoU", "refined", "cIoU", "mIoU"],
        ["shapes@test", "3", "0.5124", "0.2500", "0.9000", "0.2500"],
        ["shapes@hard", "3", "0.3000", "0.2500", "0.4000", "0.2500"],
        ["small", "3", "0.1000", "0.2500", "0.1000", "0.2500"],
        ["size", "3", "-", "0.2500", "-", "0.2500"],
        ["shapes@test:", "calibration", "error", "0.0416"],
    ]
    assert main(["eval", "runs/a", "--method", "box+sam", "--method-data", "shapes@val"]) == 0
    assert capsys.readouterr().out.startswith("runs/a by box+sam: qwen, protocol standard\n")
    assert (seen["method"], seen["method_data"]) == ("box+sam", ("shapes@val",))
    figures["abstain_below"] = 0.25
    figures["data"]["shapes@test"]["generalised"] = {"n_acc": 0.5, "t_acc": 0.75, "auroc": 0.98765}
    assert main(["eval", "runs/a", "--abstain"]) == 0
    assert seen["abstain"] is True
    title = 'runs/a: qwen, protocol standard, "not there" below a probability of 0.2500'
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == title
    assert shown[-1] == (
        "shapes@test: gRefCOCO N-acc 0.5000, gRefCOCO T-acc 0.7500, AUROC 0.9877, "
        "calibration error 0.0416"
    )


# --- ground ----------------------------------------------------------------------------------


class FakeGrounder:
    """Predicts the left half of the image for every phrase except "nothing"."""

    confidence: ClassVar[Confidence | None] = None

    @classmethod
    def from_pretrained(cls, head: str, **_: object) -> FakeGrounder:
        assert head == "runs/a"
        return cls()

    def prepare(self, image: Image.Image, phrases: tuple[str, ...], *, together: bool) -> Prepared:
        return Prepared(image, phrases, ())

    def ground_prepared(self, asked: list[Prepared], *, batch_size: int) -> list[Any]:
        return [self.answer(one.image, one.phrases) for one in asked]

    def answer(self, image: Image.Image, phrases: tuple[str, ...]) -> Any:
        logits = torch.full((len(phrases), image.height, image.width), -4.0)
        logits[:, :, : image.width // 2] = 4.0
        logits[[phrase == "nothing" for phrase in phrases]] = -4.0
        maps = AttentionMaps(torch.ones(len(phrases), 1, 2, 2) / 4, WHOLE_IMAGE)
        grounding = Grounding(logits[:, ::20, ::30], MaskLogits(logits), maps)
        return collect(image, phrases, [grounding], self.confidence)


@pytest.fixture
def photo(monkeypatch: Patch) -> str:
    monkeypatch.setattr(flmm_core, "Grounder", FakeGrounder, raising=False)
    Image.new("L", (60, 40), 90).save("photo.png")
    return "photo.png"


def test_ground_writes_overlay_masks_and_result(photo: str, capsys: Capture) -> None:
    arguments = ["ground", photo, "a red ring", "nothing", "--head", "runs/a", "--output", "out"]
    assert main(arguments) == 0
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "mask-1.png",
        "mask-2.png",
        "overlay.png",
        "result.json",
    ]
    with Image.open("out/mask-1.png") as mask, Image.open("out/overlay.png") as overlay:
        assert (mask.size, mask.mode) == ((60, 40), "L")
        assert overlay.width > 60  # the legend
        assert overlay.height > 40
        assert mask.histogram()[0] == mask.histogram()[255] == 60 * 40 // 2
        assert mask.getpixel((0, 0)) == 255
    result = json.loads(Path("out/result.json").read_text())
    assert (result["picture"], result["head"]) == ("photo.png", "runs/a")
    first, second = result["found"]
    assert (first["mask"], first["phrase"]) == ("mask-1.png", "a red ring")
    assert first["bbox"] == [0, 0, 30, 40]
    assert first["score"] == pytest.approx(0.982, abs=1e-3)
    assert coco_mask.area(first["segmentation"]) == first["area"] == 1200
    assert (second["area"], second["score"]) == (0, 0.0)
    shown = capsys.readouterr().out.splitlines()
    assert shown[1].split() == ["out/mask-1.png", "a", "red", "ring", "0.98", "-", "1200"]
    assert "nothing found" in shown[2]


def test_ground_says_not_there_unless_masks_are_to_be_kept(
    photo: str, capsys: Capture, monkeypatch: Patch
) -> None:
    arguments = ["ground", photo, "a ring", "nothing", "--head", "runs/a"]
    steep = Platt(slope=10.0, offset=-1.0)
    monkeypatch.setattr(
        FakeGrounder, "confidence", Confidence(calibrator=steep, not_there=None, masks=60)
    )
    assert main(arguments) == 0  # no threshold was chosen
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert shown[2] == ["out/mask-2.png", "nothing", "nothing", "found", "0.27", "0"]
    chosen = NotThere(threshold=0.5, quantity="balanced", value=0.9, without=0.5, samples=60)
    monkeypatch.setattr(
        FakeGrounder, "confidence", Confidence(calibrator=steep, not_there=chosen, masks=60)
    )
    for more in ([], ["--min-probability", "0.3"]):
        assert main([*arguments, *more]) == 0
        assert "nothing  not there" in capsys.readouterr().out
        first, second = json.loads(Path("out/result.json").read_text())["found"]
        assert (first["there"], second["there"], second["area"]) == (True, False, 0)
        assert second["probability"] == pytest.approx(0.2689, abs=1e-3)
    for more in (["--keep-absent"], ["--min-probability", "0.2"]):
        assert main([*arguments, *more]) == 0
        found = json.loads(Path("out/result.json").read_text())["found"]
        assert [record["there"] for record in found] == [True, True]
        assert "not there" not in capsys.readouterr().out
    assert main([*arguments, "--keep-absent", "--min-probability", "0.2"]) == 2
    assert capsys.readouterr().err == (
        "flmm: --keep-absent and --min-probability contradict each other.\n"
        "--min-probability 0.2 withholds masks, --keep-absent does not.\n"
        "Give one of them.\n"
    )


def test_ground_leaves_no_mask_of_an_earlier_result(photo: str) -> None:
    Path("out").mkdir()
    Path("out/mask-mine.png").write_text("mine")
    main(["ground", photo, "a", "b", "c", "--head", "runs/a"])
    main(["ground", photo, "a", "--head", "runs/a"])
    assert sorted(path.name for path in Path("out").glob("mask-*")) == [
        "mask-1.png",
        "mask-mine.png",
    ]


def test_ground_writes_all_or_nothing(photo: str, monkeypatch: Patch) -> None:
    def full(self: object, **_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("flmm_core.pipeline.result.Result.overlay", full)
    assert main(["ground", photo, "a", "--head", "runs/a"]) == 1
    assert not Path("out").exists()


def test_ground_refuses_an_empty_phrase(photo: str, capsys: Capture) -> None:
    assert main(["ground", photo, "a ring", " ", "--head", "runs/a"]) == 2
    assert capsys.readouterr().err == "flmm: Phrase 2 is empty.\nGive it at least one word.\n"


def test_ground_tells_a_broken_image_and_a_missing_head_before_loading_a_model(
    monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.setattr(flmm_core, "Grounder", None, raising=False)
    Path("empty.png").write_bytes(b"")
    assert main(["ground", "empty.png", "a ring", "--head", "runs/a"]) == 3
    said = capsys.readouterr().err
    assert said.startswith("flmm: 2 problems were found, before anything was loaded.\n")
    assert "1. The image empty.png is empty.\n" in said
    assert "2. The head 'runs/a' cannot be fetched from the hub.\n" in said
    assert not Path("out").exists()


# --- backbones and data ----------------------------------------------------------------------


def test_backbones_are_listed_and_shown(capsys: Capture) -> None:
    assert main(["backbones"]) == 0
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()] == [
        "auto",
        "deepseek_vl",
        "llava_next",
        "qwen",
    ]
    assert main(["backbones", "list"]) == 0
    assert capsys.readouterr().out == listed
    assert main(["backbones", "show", "qwen"]) == 0
    shown = capsys.readouterr().out
    assert "Qwen/Qwen2.5-VL-3B-Instruct" in shown
    assert "min_pixels" in shown
    assert main(["backbones", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["not_loaded"] == []
    assert [fact["name"] for fact in facts["backbones"]] == [
        "auto",
        "deepseek_vl",
        "llava_next",
        "qwen",
    ]
    assert facts["backbones"][3]["models"]["tiny"]["source"] == "flmm_qwen:tiny"


def test_refiners_are_listed_and_shown(capsys: Capture) -> None:
    assert main(["refiners"]) == 0
    listed = capsys.readouterr().out
    assert listed.startswith("none  no refinement")
    assert main(["refiners", "list"]) == 0
    assert capsys.readouterr().out == listed
    assert main(["refiners", "show", "sam"]) == 0
    shown = capsys.readouterr().out
    assert "Options (--refiner-option KEY=VALUE):\n  size       tiny|vit_b|vit_l|vit_h  " in shown
    assert main(["refiners", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [fact["name"] for fact in facts["refiners"]] == ["none", "sam", "sam2"]
    assert facts["refiners"][1]["options"]["size"]["default"] == "tiny"


def test_plugins_that_failed_or_are_slow_are_listed_with_the_reason(
    monkeypatch: Patch, capsys: Capture
) -> None:
    spec = BackboneSpec("foo", "foo:Foo", "Foo's models", {"tiny": ModelInfo("a:b", "MIT")})
    slow, broken = Plugin("flmm-foo 0.1", 0.74), Plugin("flmm-bar 2", 0.01)
    failure = Failure(broken, "SystemExit: 3")
    registry = Registry("backbone", {"foo": spec}, {"foo": slow}, (failure,))
    monkeypatch.setattr("flmm_core.plugins.load_backbones", lambda: registry)
    assert main(["backbones"]) == 0
    assert capsys.readouterr().out == (
        "foo  Foo's models\n"
        "\nNot loaded:\n  flmm-bar 2  SystemExit: 3\n"
        "\nSlow to import:\n  flmm-foo 0.1  0.7 s\n"
    )
    assert main(["backbones", "list", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["not_loaded"] == [{"plugin": "flmm-bar 2", "reason": "SystemExit: 3"}]
    assert facts["backbones"][0]["import_seconds"] == 0.74


def test_drawn_data_can_be_read_and_is_never_drawn_over(capsys: Capture) -> None:
    from flmm_core.data.sources import open_source

    assert main(["data", "draw", "scenes", "--pictures", "3", "--seed", "5"]) == 0
    assert capsys.readouterr().out == "scenes\n"
    samples = open_source("refcoco:scenes@train")
    assert len({sample.image_path for sample in samples}) == 3
    assert main(["data", "draw", "scenes", "--pictures", "3"]) == 2
    assert capsys.readouterr().err.startswith("flmm: The folder 'scenes' is not empty.\n")
    assert main(["data", "draw", "lines", "--pictures", "2", "--format", "jsonl"]) == 0
    assert len({sample.image_path for sample in open_source("jsonl:lines@train")}) == 2


def test_data_is_drawn_checked_and_converted(capsys: Capture) -> None:
    from flmm_core.data.sources import open_source

    draw = ["data", "draw", "told", "--format", "png", "--pictures", "2", "--split", "val"]
    assert main(draw) == 0
    assert main(["data", "check", "png:told@val", "--pictures", "1", "--output", "seen"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "told"
    assert shown[1].startswith("png:told@val: no faults; 2 images, ")
    assert shown[2] == "seen"
    assert len(list(Path("seen").iterdir())) == 1
    assert main(["data", "convert", "png:told@val", "lines"]) == 0
    assert capsys.readouterr().out == "lines/val\n"
    before, after = open_source("png:told@val"), open_source("jsonl:lines@val")
    assert [sample.phrases for sample in before] == [sample.phrases for sample in after]
    assert main(["data", "convert", "png:told@val", "lines"]) == 2
    assert "The folder 'lines/val' is there already." in capsys.readouterr().err


def test_a_check_lists_every_fault_and_exits_3(capsys: Capture) -> None:
    assert main(["data", "draw", "lines", "--format", "jsonl", "--pictures", "3"]) == 0
    path = Path("lines/train/metadata.jsonl")
    first, second, third = path.read_text().splitlines()
    path.write_text("\n".join([first[:30], second.replace('"width"', '"w"'), third]))
    capsys.readouterr()
    assert main(["data", "check", "jsonl:lines@train"]) == 3
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == f"1. Line 1 of {path} is not whole JSON."
    assert shown[3] == f"2. Line 2 of {path} has no 'width'."
    assert shown[-1].startswith("jsonl:lines@train: 2 faults; 1 images, ")


def test_a_check_lists_skipped_items(capsys: Capture) -> None:
    assert main(["data", "draw", "own", "--format", "labelme", "--pictures", "14"]) == 0
    for path in sorted(Path("own/train").glob("*.json"))[:12]:
        path.write_text(json.dumps(json.loads(path.read_text()) | {"shapes": []}))
    capsys.readouterr()
    assert main(["data", "check", "labelme:own@train"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "left out: own/train/train_plain_000000.json: it has no shape"
    assert shown[10] == "left out: 2 more"
    assert shown[11].startswith("labelme:own@train: no faults; 2 images, ")


def test_an_interrupted_drawing_leaves_nothing(monkeypatch: Patch, capsys: Capture) -> None:
    import flmm_core.data.drawn.writing as drawing
    from flmm_core.data.formats import writable_formats

    whole = drawing.draw_images

    def stopped(*arguments: Any, **details: Any) -> Any:
        yield next(whole(*arguments, **details))
        raise KeyboardInterrupt

    monkeypatch.setattr(drawing, "draw_images", stopped)
    before = set(Path().iterdir())
    for form in writable_formats():
        assert main(["data", "draw", "scenes", "--format", form]) == 130
        assert set(Path().iterdir()) == before


def test_pictures_of_a_check_need_an_output(capsys: Capture) -> None:
    assert main(["data", "check", "shapes@test", "--pictures", "3"]) == 2
    assert capsys.readouterr().err == (
        "flmm: --pictures and --output belong together.\nGive both to draw images, or none.\n"
    )
