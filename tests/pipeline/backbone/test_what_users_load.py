"""Models as people have them: quantized, adapted, wrapped, saved by another transformers."""

from __future__ import annotations

import importlib.resources
import importlib.util
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from flmm_core import load_backbones
from flmm_core.cli import main
from flmm_core.errors import FlmmError, MissingExtraError, WeightsError
from flmm_core.pipeline.backbone import weights
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.identity import differences
from flmm_core.plugins import load_class
from flmm_core.segment import Segment
from tests.models import picture

ADAPTER = "adapter_model.safetensors"


def tiny(package: str) -> Path:
    return Path(str(importlib.resources.files(package))) / "tiny"


@pytest.fixture
def twin(tmp_path: Path) -> Callable[..., Path]:
    """twin(package, file, **changes): a copy of a plugin's tiny model, one of its files changed."""

    def copy(package: str, file: str = "config.json", **changes: Any) -> Path:
        folder = Path(shutil.copytree(tiny(package), tmp_path / "model"))
        content = json.loads((folder / file).read_text()) | changes
        kept = {key: value for key, value in content.items() if value is not ...}
        (folder / file).write_text(json.dumps(kept))
        return folder

    return copy


def load(name: str, model: Path) -> Backbone:
    spec = load_backbones().get(name)
    return load_class(spec).load(spec, str(model))


def refusal(kind: type[FlmmError], name: str, model: Path) -> str:
    with pytest.raises(kind) as error:
        load(name, model)
    assert type(error.value) is kind
    assert error.value.exit_code == 3
    return str(error.value)


@pytest.mark.parametrize(
    ("changes", "package"),
    [
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, "gptqmodel"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "optimum"),
        (
            {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": {}}},
            "compressed-tensors",
        ),
        ({"quantization_config": {"quant_method": "torchao"}}, "torchao"),
        ({"_attn_implementation": "flash_attention_2"}, "flash-attn"),
    ],
)  # fmt: skip
def test_a_missing_package_is_named_with_what_installs_it(
    twin: Callable[..., Path], changes: dict[str, Any], package: str, tmp_path: Path, drawn: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    folder = twin("flmm_qwen", **changes)
    told = refusal(MissingExtraError, "qwen", folder)
    assert told.splitlines()[0] == (
        f"The model '{folder}' needs a package that is missing or too old."
    )
    assert f"pip install {package}" in told.splitlines()[-1]
    arguments = [
        "train",
        "--backbone",
        "qwen",
        "--model",
        str(folder),
        "--data",
        f"refcoco:{drawn}@train",
    ]
    assert main([*arguments, "--output", str(tmp_path / "run"), "--device", "cpu"]) == 3
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    "gone",
    [
        ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens"),
        ("num_additional_image_tokens",),
        ("patch_size",),
    ],
)
def test_what_an_older_processor_does_not_say_is_the_models(
    twin: Callable[..., Path], gone: tuple[str, ...]
) -> None:
    folder = twin("flmm_llava_next", "processor_config.json", **dict.fromkeys(gone, ...))
    whole, older = load("llava_next", tiny("flmm_llava_next")), load("llava_next", folder)
    caption = [Segment("a ring", 0)]
    ours, theirs = (each.prepare(picture(90, 60), caption).tensors for each in (older, whole))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_processor_that_nobody_completes_is_refused_at_load() -> None:
    backbone = load("llava_next", tiny("flmm_llava_next"))
    backbone.processor.patch_size = None
    with pytest.raises(WeightsError, match="It does not say patch_size"):
        type(backbone)(backbone.spec, backbone.vlm, backbone.processor, source="here")


def with_adapter(folder: Path) -> dict[str, torch.Tensor]:
    """Write a LoRA adapter of all query projections; returns what it adds to each."""
    rank, alpha = 4, 64
    settings = {"peft_type": "LORA", "base_model_name_or_path": "", "r": rank}
    settings |= {"lora_alpha": alpha, "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    generator = torch.Generator().manual_seed(0)
    base = load_file(folder / "model.safetensors")
    state, added = {}, {}
    for name in [name for name in base if name.endswith("self_attn.q_proj.weight")]:
        own = name.replace("model.layers.", "model.language_model.layers.")
        down, up = (
            torch.randn(*sides, generator=generator) / 10
            for sides in ((rank, base[name].shape[1]), (base[name].shape[0], rank))
        )
        part = f"base_model.model.{own.removesuffix('.weight')}"
        state |= {f"{part}.lora_A.weight": down, f"{part}.lora_B.weight": up}
        added[name] = alpha / rank * up @ down
    assert state
    save_file(state, folder / ADAPTER)
    return added


def test_an_adapter_is_an_error_without_peft(
    twin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = twin("flmm_qwen")
    with_adapter(folder)
    find = importlib.util.find_spec
    monkeypatch.setattr(
        weights.importlib.util, "find_spec", lambda name: None if name == "peft" else find(name)
    )
    told = refusal(WeightsError, "qwen", folder)
    assert told.splitlines()[0] == f"The model '{folder}' has an adapter that cannot be applied."
    assert "pip install peft" in told


def test_an_adapter_is_applied_with_peft(twin: Callable[..., Path], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    folder = twin("flmm_qwen")
    merged = Path(shutil.copytree(folder, tmp_path / "merged"))
    added = with_adapter(folder)
    state = {name: value.float() for name, value in load_file(folder / "model.safetensors").items()}
    state |= {name: state[name] + value for name, value in added.items()}
    save_file(state, merged / "model.safetensors", metadata={"format": "pt"})
    base, ours, theirs = (load("qwen", model) for model in (tiny("flmm_qwen"), folder, merged))

    def hidden(backbone: Backbone) -> torch.Tensor:
        sample = backbone.prepare(Image.new("RGB", (60, 40), "red"), [Segment("cup", 0)])
        return backbone.trace(backbone.collate([sample]))[0].hidden

    torch.testing.assert_close(hidden(ours), hidden(theirs), atol=1e-4, rtol=1e-4)
    assert (hidden(ours) - hidden(base)).abs().max() > 0.01
    known, adapted = base.identity(), ours.identity()
    assert differences(known, adapted) == ["adapter: head no adapter, model an adapter"]
    assert differences(adapted, known) == ["adapter: head an adapter, model no adapter"]
    assert differences(adapted, load("qwen", folder).identity()) == []


def test_an_adapter_beside_weights_that_are_incomplete(twin: Callable[..., Path]) -> None:
    pytest.importorskip("peft")
    folder = twin("flmm_qwen")
    with_adapter(folder)
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if name.endswith("k_proj.weight"))
    del state[lost]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    told = refusal(WeightsError, "qwen", folder)
    assert told.splitlines()[0] == f"The weights in '{folder}' are incomplete."
    assert "1 of the model's tensors are missing" in told
    assert lost.rpartition("layers.")[2] in told


def test_an_adapter_without_its_base_model(twin: Callable[..., Path]) -> None:
    folder = twin("flmm_qwen")
    with_adapter(folder)
    (folder / "config.json").unlink()
    told = refusal(WeightsError, "qwen", folder)
    assert "holds an adapter (LoRA) without its base model" in told
    assert "merge_and_unload" in told


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_weights_of_a_wrapped_model_are_read(twin: Callable[..., Path], prefix: str) -> None:
    folder = twin("flmm_llava_next")
    file = folder / "model.safetensors"
    state = {f"{prefix}{name}": value for name, value in load_file(file).items()}
    save_file(state, file, metadata={"format": "pt"})
    ours, theirs = (
        load("llava_next", model).vlm.state_dict() for model in (folder, tiny("flmm_llava_next"))
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_names_that_are_not_the_models_are_told(
    twin: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    notes: list[str] = []
    monkeypatch.setattr(logging.Logger, "warning", lambda self, text, *a: notes.append(text % a))
    folder = twin("flmm_qwen")
    file, state = folder / "model.safetensors", load_file(tiny("flmm_qwen") / "model.safetensors")
    extra = {"extra.weight": torch.zeros(2)}
    save_file(state | extra, file, metadata={"format": "pt"})
    load("qwen", folder)
    assert f"1 tensors in '{folder}' are not the model's and are not used: extra.weight." in notes
    renamed = {f"net.{name}": value for name, value in state.items()}
    save_file(renamed, file, metadata={"format": "pt"})
    assert "others are not the model's: net." in refusal(WeightsError, "qwen", folder)


@pytest.mark.parametrize(
    ("changes", "backbone", "repository"),
    [
        ({"model_type": "multi_modality"}, "deepseek_vl", "deepseek-community/"),
        ({"model_type": "llava_llama"}, "llava_next", "llava-hf/llava-v1.6-vicuna"),
        ({"model_type": "llava_mistral"}, "llava_next", "llava-hf/llava-v1.6-mistral"),
        (
            {"model_type": "llava", "architectures": ["LlavaLlamaForCausalLM"]},
            "llava_next",
            "llava-hf/llava-v1.6-vicuna",
        ),
    ],
)
@pytest.mark.parametrize("asked", ["qwen", "deepseek_vl", "llava_next"])
def test_weights_in_their_authors_own_format_name_the_converted_ones(
    twin: Callable[..., Path], changes: dict[str, Any], backbone: str, repository: str, asked: str
) -> None:
    told = refusal(WeightsError, asked, twin("flmm_qwen", **changes))
    assert f"--backbone {backbone} --model {repository}" in told


def test_a_name_longer_than_a_file_system_takes_is_no_traceback() -> None:
    with pytest.raises(FlmmError) as error:
        load("qwen", Path("x" * 100_000))
    assert len(str(error.value)) < 3000
