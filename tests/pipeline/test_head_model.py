"""A head knows the model that it was trained behind: transformers' own folders, changed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText, AutoTokenizer

from flmm_core.cli import main
from flmm_core.config import load_config
from flmm_core.errors import WeightsError
from flmm_core.files import SEAL
from flmm_core.pipeline import head_folder
from flmm_core.pipeline.backbone.identity import differences
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.plugins import load_backbones
from flmm_core.training.train import train
from tests.flows import fresh_grounder
from tests.models import FAMILIES, build, parts, picture


def written(family: str, folder: Path, seed: int = 0) -> Path:
    """A model's folder with random weights."""
    config, processor = parts(family)
    torch.manual_seed(seed)
    AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA-Next of LLaMA and one of Mistral, of one shape, and a head for the first."""
    folder = tmp_path_factory.mktemp("made")
    written("llava_next", folder / "llama")
    written("llava_next_mistral", folder / "mistral")
    recipe = Recipe("llava_next", str(folder / "llama"), base_channels=4, enlarge_to=16)
    grounder = fresh_grounder(recipe)
    grounder.info = replace(grounder.info, model=grounder.backbone.identity())
    grounder.save_pretrained(folder / "head")
    return folder


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_dtype_makes_no_other_model(family: str, dtype: torch.dtype) -> None:
    backbone = build(family)
    known = backbone.identity()
    backbone.vlm.to(dtype)
    assert differences(known, backbone.identity()) == []
    assert differences(backbone.identity(), known) == []


def retrained(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    step = torch.Generator().manual_seed(0)
    for value in weights.values():
        value.mul_(1 + 0.05 * torch.randn(value.shape, generator=step))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edited(file: str, **values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / file
        content = json.loads(path.read_text())
        content.get("image_processor", content).update(values)
        path.write_text(json.dumps(content))

    return edit


def more_tokens(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(["ring"])
    tokenizer.save_pretrained(folder)


def split_differently(folder: Path) -> None:
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Lowercase"}
    path.write_text(json.dumps(content))


def shorter_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("ASSISTANT:", "MODEL:"))


CHANGES: list[tuple[Callable[[Path], None], str]] = [
    (retrained, "weights: "),
    (more_tokens, "tokenizer: not the same"),
    (split_differently, "tokenizer: not the same"),
    (shorter_template, "chat template: not the same"),
    (
        edited("processor_config.json", image_mean=[0.1, 0.2, 0.3]),
        "image processor, image_mean: head [0.48145466, 0.4578275, 0.40821073], model [0.1, 0.2,",
    ),
]


@pytest.mark.parametrize(("change", "expected"), CHANGES, ids=[c.__name__ for c, _ in CHANGES])
def test_every_change_is_named(
    made: Path, tmp_path: Path, change: Callable[[Path], None], expected: str
) -> None:
    model = Path(shutil.copytree(made / "llama", tmp_path / "copy"))
    Grounder.from_pretrained(made / "head", model=str(model))  # the same content elsewhere
    change(model)
    with pytest.raises(WeightsError) as error:
        Grounder.from_pretrained(made / "head", model=str(model))
    first, names, *found, repair = str(error.value).splitlines()
    assert first == (
        f"The head in '{made / 'head'}' was trained behind another model than '{model}'."
    )
    assert names == f"Its model was '{made / 'llama'}'. Differences:"
    assert len(found) == 1
    assert found[0].startswith(expected)
    assert "--force" in repair


def test_another_language_model_of_the_same_shape_is_refused(
    made: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    picture(48, 24).save(tmp_path / "image.png")
    command = ["ground", str(tmp_path / "image.png"), "it", "--head", str(made / "head")]
    command += ["--output", str(tmp_path / "out")]
    assert main([*command, "--device", "cpu"]) == 0
    other = [*command, "--model", str(made / "mistral"), "--device", "cpu"]
    capsys.readouterr()
    assert main(other) == WeightsError.exit_code
    told = capsys.readouterr().err
    assert f"Its model was '{made / 'llama'}'" in told
    assert "text.model_type: head llama, model mistral" in told
    assert main([*other, "--force"]) == 0
    assert "text.model_type: head llama, model mistral" in capsys.readouterr().err
    Grounder.from_pretrained(made / "head", model=str(made / "mistral"), force=True)


def test_evaluation_and_benchmark_refuse_it_too(
    made: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["--data", f"refcoco:{drawn}@train", "--limit", "1", "--device", "cpu"]
    evaluation = ["eval", str(made / "head"), *limits, "--model", str(made / "mistral")]
    model = Path(shutil.copytree(made / "llama", tmp_path / "model"))
    grounder = Grounder.from_pretrained(made / "head", model=str(model))
    head = grounder.save_pretrained(tmp_path / "head")
    retrained(model)  # the same path, another model
    benchmark = ["benchmark", "--head", str(head), *limits, "--output", str(tmp_path / "bench")]
    for command in (evaluation, benchmark):
        assert main(command) == WeightsError.exit_code
        assert "was trained behind another model" in capsys.readouterr().err
        assert main([*command, "--force"]) == 0


def test_a_head_of_an_earlier_version_is_noted_once(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(head_folder.logger, "warning", lambda text, *a: notes.append(text % a))
    old = Path(shutil.copytree(made / "head", tmp_path / "old"))
    content = json.loads((old / "config.json").read_text())
    for key in ("model", "weights_sha256", SEAL):
        del content[key]
    (old / "config.json").write_text(json.dumps({**content, "format": 2}))
    for _ in range(2):
        Grounder.from_pretrained(old, model=str(made / "mistral"))
    assert notes == [f"The head in '{old}' does not record its model; it cannot be compared."]


def test_a_run_is_resumed_behind_its_own_model(
    random_twin: Path, drawn: Path, tmp_path: Path
) -> None:
    model = Path(shutil.copytree(random_twin, tmp_path / "model"))
    settings: dict[str, Any] = {
        "backbone": "qwen", "model": str(model), "data": [f"refcoco:{drawn}@train"],
        "eval_data": [], "val_data": [], "output": tmp_path / "run", "steps": 1, "batch_size": 1,
        "refiner": "none", "head.base_channels": 4, "head.enlarge_to": 16, "pictures": 0,
    }  # fmt: skip

    def run(**more: Any) -> Path:
        return train(*load_config(None, settings | more, load_backbones().get))

    run()
    summary = tmp_path / "run" / "summary.json"
    summary.unlink()  # as if it had been stopped before its end
    retrained(model)
    with pytest.raises(WeightsError, match="was trained behind another model"):
        run(resume=True)
    run(resume=True, force=True)
    summary.unlink()
    shutil.copytree(random_twin, model, dirs_exist_ok=True)
    run(resume=True)
