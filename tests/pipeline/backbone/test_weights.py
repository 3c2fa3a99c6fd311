"""Finding, checking and loading a model: every way to ask for one that is not there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from flmm_core.errors import ConfigError, UsageError, WeightsError
from flmm_core.plugins import load_backbones, load_class
from flmm_core.spec import BackboneOptions, ModelInfo
from tests.models import OneView, build, spec


class Options(BackboneOptions):
    """Two settings."""

    min_pixels: int = 4
    max_pixels: int = 9


class TestLoad:
    @pytest.fixture(scope="class")
    @classmethod
    def folder(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        target = tmp_path_factory.mktemp("weights") / "model"
        backbone = build("deepseek_vl")
        backbone.vlm.half().save_pretrained(target)
        backbone.processor.save_pretrained(target)
        return target

    def error(self, kind: type[Exception], model: str, **more: Any) -> str:
        with pytest.raises(kind) as error:
            OneView.load(spec(options=Options), model, **more)
        return str(error.value)

    def test_a_folder_comes_back_frozen(self, folder: Path) -> None:
        backbone = OneView.load(spec(), str(folder))
        assert backbone.vlm.dtype == torch.float32  # "auto" on the CPU
        assert (backbone.model, backbone.source) == (str(folder), str(folder))
        assert not any(p.requires_grad for p in backbone.vlm.parameters())
        expected = build("deepseek_vl").vlm.half().float().state_dict()
        for key, value in backbone.vlm.state_dict().items():
            assert torch.equal(value, expected[key])
        assert OneView.load(spec(), str(folder), dtype="bfloat16").vlm.dtype == torch.bfloat16

    def test_an_alias_may_be_a_folder_of_a_package(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        package = folder.parent / "some_package"
        package.mkdir(exist_ok=True)
        (package / "__init__.py").touch()
        if not (package / "model").exists():
            (package / "model").symlink_to(folder)
        monkeypatch.syspath_prepend(folder.parent)
        packaged = spec(models={"tiny": ModelInfo("some_package:model", "none")})
        assert Path(OneView.load(packaged).source) == package / "model"

    def test_an_unknown_alias(self) -> None:
        assert self.error(UsageError, "tinny") == (
            "Unknown model 'tinny' of backbone 'toy'. Did you mean 'tiny'?\n"
            "Known: tiny.\n"
            "A hub id (owner/name) or the path of a folder also works."
        )

    def test_a_missing_folder(self, tmp_path: Path) -> None:
        missing = tmp_path / "nothing"
        found = self.error(WeightsError, str(missing))
        assert found.startswith(
            f"The weights of model '{missing}' of backbone 'toy' are missing.\n"
            f"There is no folder {missing}.\n"
        )
        assert WeightsError.exit_code == 3
        assert "has no config.json" in self.error(WeightsError, str(tmp_path))

    def test_a_folder_of_another_family(self, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "other_vl"}))
        assert self.error(WeightsError, str(tmp_path)) == (
            f"Backbone 'toy' does not support the model '{tmp_path}'.\n"
            "Its config.json says model_type 'other_vl'; expected: qwen2_5_vl, deepseek_vl.\n"
            "Use the backbone of that family (flmm backbones list), or another model."
        )
        (tmp_path / "config.json").write_text("{")
        assert "cannot be read" in self.error(WeightsError, str(tmp_path))

    def test_weights_that_are_cut_short(self, folder: Path, tmp_path: Path) -> None:
        for file in folder.iterdir():
            data = file.read_bytes()
            cut = 1000 if file.suffix == ".safetensors" else len(data)
            (tmp_path / file.name).write_bytes(data[:cut])
        assert "Backbone 'toy' cannot load the model" in self.error(WeightsError, str(tmp_path))

    def test_a_folder_without_weights(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        found = self.error(WeightsError, str(tmp_path))
        assert "Backbone 'toy' cannot load the model" in found
        assert "Check that the folder is complete" in found

    def test_a_hub_id_without_network(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        assert self.error(WeightsError, "owner/name-of-nothing") == (
            "The model 'owner/name-of-nothing' cannot be downloaded from the Hugging Face hub.\n"
            "It is not in the local cache, and HF_HUB_OFFLINE forbids to download it.\n"
            "Unset HF_HUB_OFFLINE. Or: Download it on a machine with network access (hf download), "
            "and give the folder."
        )

    def test_options_are_checked(self, folder: Path) -> None:
        found = self.error(ConfigError, str(folder), options={"min_pixel": 3, "max_pixels": "x"})
        assert found.startswith("The options of backbone 'toy' are invalid.\n")
        assert "Unknown option 'min_pixel'. Did you mean 'min_pixels'?" in found
        assert "Option 'max_pixels' = 'x'" in found
        assert found.endswith("Its options: min_pixels, max_pixels.")
        backbone = OneView.load(spec(options=Options), str(folder), options={"min_pixels": 5})
        assert backbone.options == Options(min_pixels=5)

    def test_names_of_dtypes_and_devices(self, folder: Path) -> None:
        found = self.error(ConfigError, str(folder), dtype="float23")
        assert found.startswith("Unknown dtype 'float23'. Did you mean 'float32'?")
        assert "The device 'gpu' cannot be used." in self.error(
            UsageError, str(folder), device="gpu"
        )

    def test_a_processor_without_chat_template(self) -> None:
        backbone = build("deepseek_vl")
        backbone.processor.chat_template = backbone.tokenizer.chat_template = None
        with pytest.raises(WeightsError, match="It has no chat template"):
            OneView(spec(), backbone.vlm, backbone.processor, source="here")

    def test_a_processor_of_other_ids(self) -> None:
        backbone = build("deepseek_vl")
        backbone.vlm.config.image_token_id = 7
        with pytest.raises(WeightsError, match="has id 3; the model's is 7"):
            OneView(spec(), backbone.vlm, backbone.processor, source="here")

    def test_remote_code_stays_off(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        seen: dict[str, Any] = {}

        def load(cls: Any, source: str, options: Any, **kwargs: Any) -> Any:
            seen.update(kwargs)
            raise ValueError("enough")

        monkeypatch.setattr(OneView, "load_model", classmethod(load))
        self.error(WeightsError, str(folder), device_map="cpu", revision="abc")
        assert seen == {
            "trust_remote_code": False,
            "device_map": "cpu",
            "revision": "abc",
            "dtype": "auto",
        }


def test_incomplete_weights_are_refused(random_twin: Path, tmp_path: Path) -> None:
    folder = tmp_path / "twin"
    folder.mkdir()
    for path in random_twin.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    weights = load_file(folder / "model.safetensors")
    lost = [name for name in weights if name.endswith("layers.1.self_attn.q_proj.weight")]
    assert len(lost) == 1
    del weights[lost[0]]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    spec = load_backbones().get("qwen")
    with pytest.raises(WeightsError) as error:
        load_class(spec).load(spec, str(folder))
    assert str(error.value).startswith(
        f"The weights in '{folder}' are incomplete.\n1 of the model's tensors are missing: "
    )
