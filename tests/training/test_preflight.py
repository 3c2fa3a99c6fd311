"""What is wrong with a command is found before a model is loaded, all of it together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_core.benchmark import BenchmarkRun, Plan
from flmm_core.cli import main
from flmm_core.config import load_config
from flmm_core.errors import DataError, FlmmError, Problems, RunError, UsageError, WeightsError
from flmm_core.evaluation.evaluate import evaluate_run
from flmm_core.feature_cache.build import build_cache
from flmm_core.pipeline.backbone.weight_files import check_weight_files, loaded_bytes
from flmm_core.pipeline.refiners.sam_model import OFFICIAL, build_untrained_sam, check_sam
from flmm_core.plugins import load_backbones
from flmm_core.progress import LineProgress, Progress
from flmm_core.training import preflight
from flmm_core.training.preflight import check_run
from flmm_core.training.train import train

Capture = pytest.CaptureFixture[str]
Patch = pytest.MonkeyPatch

WRONG = {"device": "cuda:7", "refiner": "sam:vit_b", "refiner_weights": "no.pth"}
"""Three things that only a look at the machine can tell."""


def wrong_settings(tmp_path: Path, **more: Any) -> dict[str, Any]:
    """Settings that are valid, and seven things that are not there."""
    return {
        "backbone": "qwen",
        "model": str(tmp_path / "model"),
        "data": ["shapes@train", "refcoco:/nowhere@train", "jsonl:/none.jsonl"],
        "val_data": ["shapes@val"],
        "eval_data": ["refcoc:/x@val"],
        "output": tmp_path / "file" / "run",
        **WRONG,
        **more,
    }


SAID = (
    "The output folder '{tmp}/file/run' cannot be written.",
    "The device 'cuda:7' cannot be used.",
    "The weights of model '{tmp}/model' of backbone 'qwen' are missing.",
    "SAM 'vit_b' cannot be read from 'no.pth'.",
    "/nowhere",
    "/none.jsonl",
    "Unknown data source 'refcoc' in 'refcoc:/x@val'.",
)


@pytest.fixture(autouse=True)
def _loads_nothing(monkeypatch: Patch, tmp_path: Path) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise AssertionError("loaded")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("transformers.PreTrainedModel.from_pretrained", load)
    (tmp_path / "file").write_text("")


def missing(text: str, tmp_path: Path) -> list[str]:
    return [line for line in SAID if line.format(tmp=tmp_path) not in text]


def test_training_tells_everything_at_once(tmp_path: Path) -> None:
    config, spec = load_config(None, wrong_settings(tmp_path), load_backbones().get)
    with pytest.raises(UsageError) as error:
        train(config, spec)
    text = str(error.value)
    assert text.startswith("7 problems were found, before anything was loaded.\n1. ")
    assert missing(text, tmp_path) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file"]


def test_building_a_cache_tells_everything_at_once(tmp_path: Path) -> None:
    settings = wrong_settings(tmp_path, eval_data=[])
    config, spec = load_config(None, settings, load_backbones().get)
    with pytest.raises(FlmmError) as error:
        build_cache(tmp_path / "cache", config, spec)
    # It writes elsewhere and evaluates nothing.
    assert missing(str(error.value), tmp_path) == [SAID[0], SAID[6]]


def test_a_benchmark_tells_everything_at_once(tmp_path: Path) -> None:
    wrong = wrong_settings(tmp_path)
    config = tmp_path / "heads.yaml"
    config.write_text(json.dumps({k: wrong[k] for k in ("model", "data", "val_data", "refiner")}))
    plan = Plan(
        backbones=("qwen", "qwenn"), heads=("/no/head",), data=("refcoc:/x@val",),
        config=config.read_text(),
    )  # fmt: skip
    run = BenchmarkRun(
        plan, tmp_path / "bench", config_file=config, device="cpu", refiner_weights=Path("no.pth")
    )
    with pytest.raises(UsageError) as error:
        run.run()
    text = str(error.value)
    assert missing(text, tmp_path) == list(SAID[:2])
    assert "There is no trained head in '/no/head'." in text
    assert "Unknown backbone 'qwenn'." in text
    assert not (tmp_path / "bench").exists()


def test_evaluating_tells_everything_at_once(tmp_path: Path) -> None:
    data = ["refcoco:/nowhere@val", "refcoc:/x@val"]
    with pytest.raises(UsageError) as error:
        evaluate_run("/no/head", data)
    text = str(error.value)
    assert text.startswith("3 problems were found")
    assert "There is no trained head in '/no/head'." in text
    assert "/nowhere" in text
    assert SAID[6] in text


@pytest.mark.parametrize(
    ("errors", "kind"),
    [
        ([RunError("a"), DataError("b"), UsageError("c"), WeightsError("d")], UsageError),
        ([RunError("a"), DataError("b"), WeightsError("c")], DataError),
        ([RunError("a"), RunError("b")], RunError),
    ],
)
def test_of_several_problems_usage_decides_the_exit_code(
    errors: list[FlmmError], kind: type[FlmmError]
) -> None:
    problems = Problems()
    for error in [*errors, errors[0]]:  # the same twice is told once
        problems.add(error)
    with pytest.raises(kind) as raised:
        problems.check()
    assert type(raised.value) is kind
    assert str(raised.value).splitlines()[0] == (
        f"{len(errors)} problems were found, before anything was loaded."
    )
    assert len(str(raised.value).splitlines()) == len(errors) + 1


# --- weights -----------------------------------------------------------------------------------


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda folder: cut(folder / "model-2.safetensors"), "model-2.safetensors is damaged: "),
        (lambda folder: (folder / "model-2.safetensors").unlink(), "1 of 2 files are missing: "),
        (lambda folder: (folder / "model.safetensors.index.json").write_text("{"), "index.json"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "It has no weights files."),
    ],
)
def test_shards_are_complete(damage: Callable[[Path], Any], said: str, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = tmp_path / "model"
    folder.mkdir()
    for number in (1, 2):
        save_file({f"w{number}": torch.ones(100)}, folder / f"model-{number}.safetensors")
    index = {"weight_map": {f"w{number}": f"model-{number}.safetensors" for number in (1, 2)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    check_weight_files(folder)
    damage(folder)
    with pytest.raises(WeightsError, match="are incomplete") as error:
        check_weight_files(folder)
    assert said in str(error.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_file_is_looked_at_by_its_end(zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "pytorch_model.bin"
    torch.save({"w": torch.ones(100)}, path, _use_new_zipfile_serialization=zipped)
    check_weight_files(tmp_path)
    if zipped:
        cut(path)
        with pytest.raises(WeightsError, match="it is cut off"):
            check_weight_files(tmp_path)


def test_meta_s_sam_is_looked_at_without_being_read(tmp_path: Path, monkeypatch: Patch) -> None:
    with torch.device("meta"):
        parts = build_untrained_sam(OFFICIAL["vit_b"].shape)
    state = {
        f"{part}.{key}": torch.zeros(1).expand(value.shape)  # a file of a few kilobytes
        for part in ("image_encoder", "prompt_encoder", "mask_decoder")
        for key, value in getattr(parts, part).state_dict().items()
    }
    torch.save(state, path := tmp_path / "sam.pth")
    check_sam("vit_b", path)
    with pytest.raises(WeightsError, match="it is 'vit_b'"):
        check_sam("vit_l", path)
    del state["mask_decoder.iou_token.weight"]
    torch.save(state, path)
    with pytest.raises(WeightsError, match="iou_token"):
        check_sam("vit_b", path)
    cut(path)
    with pytest.raises(WeightsError, match="truncated"):
        check_sam("vit_b", path)


# --- data --------------------------------------------------------------------------------------


def test_a_real_model_is_not_trained_on_drawn_shapes_by_accident(
    random_twin: Path, tmp_path: Path
) -> None:
    shutil.copytree(random_twin, tmp_path / "model")
    settings = {"backbone": "qwen", "model": str(tmp_path / "model"), "output": tmp_path / "run"}
    with pytest.raises(UsageError) as error:
        check_run(*load_config(None, settings, load_backbones().get), Progress())
    assert str(error.value).splitlines()[0] == (
        f"The model '{tmp_path / 'model'}' has no data to be trained on."
    )
    assert "--data refcoco" not in str(error.value)
    assert "--data NAME:PATH@SPLIT" in str(error.value)


def test_every_model_in_a_package_is_trained_on_drawn_shapes(tmp_path: Path) -> None:
    settings = {"backbone": "qwen", "model": "3-tiny", "output": tmp_path / "run"}
    config, spec = load_config(None, settings, load_backbones().get)
    assert len(check_run(config, spec, Progress()).samples) > 0


def test_what_own_data_lacks_is_said_once(drawn: Path, tmp_path: Path) -> None:
    source = f"refcoco:{drawn}@train"
    settings: dict[str, Any] = {"backbone": "qwen", "data": [source], "output": tmp_path / "run"}
    said: list[str] = []
    check_run(*load_config(None, settings, load_backbones().get), LineProgress(said.append))
    assert [line.split(":")[0] for line in said if line.startswith("No --")] == [
        "No --eval-data",
        "No --val-data",
    ]
    said.clear()
    settings |= {"eval_data": [], "val_data": []}
    check_run(*load_config(None, settings, load_backbones().get), LineProgress(said.append))
    assert not [line for line in said if line.startswith("No --")]


def test_a_model_that_is_larger_than_the_memory_is_not_loaded(
    random_twin: Path, drawn: Path, tmp_path: Path, monkeypatch: Patch
) -> None:
    stored = sum(path.stat().st_size for path in random_twin.glob("*.safetensors"))
    assert loaded_bytes(random_twin, "auto") == stored
    in_float = loaded_bytes(random_twin, torch.float32)
    assert in_float == pytest.approx(stored, rel=0.02)  # it is stored so; the rest is the header
    assert loaded_bytes(random_twin, torch.bfloat16) * 2 == in_float
    settings: dict[str, Any] = {
        "backbone": "qwen", "model": str(random_twin), "data": [f"refcoco:{drawn}@train"],
        "device": "cpu", "output": tmp_path / "run",
    }  # fmt: skip
    monkeypatch.setattr(preflight, "memory_of", lambda device: in_float - 1)
    with pytest.raises(RunError) as error:
        check_run(*load_config(None, settings), Progress())
    first, found, repair = str(error.value).splitlines()
    assert first.endswith("does not fit in the memory of the device 'cpu'.")
    assert found.endswith(" in all.")
    assert "--dtype bfloat16" in repair
    check_run(*load_config(None, settings | {"dtype": "bfloat16"}), Progress())


def test_a_full_disk_is_told_before_training(tmp_path: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(preflight, "free_bytes", lambda path: 1000)
    config, _ = load_config(None, {"backbone": "qwen", "output": tmp_path / "run"})
    with pytest.raises(RunError, match="is full"):
        preflight.check_output(config)


def test_the_command_exits_with_2_and_says_all(tmp_path: Path, capsys: Capture) -> None:
    arguments = ["--data", "refcoco:/nowhere@train", "--eval-data", "refcoc:/x@val"]
    assert main(["train", "--backbone", "qwen", *arguments, "--device", "cuda:7"]) == 2
    said = capsys.readouterr().err
    assert "flmm: 3 problems were found, before anything was loaded.\n" in said
