"""Models loaded as people have them: quantized, with an adapter, spread over devices."""

from __future__ import annotations

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForImageTextToText

from flmm_core.cli import main
from flmm_core.errors import FlmmError, MissingExtraError, UsageError, WeightsError
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.identity import differences, quantized_otherwise
from flmm_core.pipeline.backbone.weights import find_source
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import read_info
from flmm_core.plugins import load_backbones, load_class
from flmm_core.world import World
from tests.flows import fresh_grounder
from tests.models import picture, samples

FAMILIES = ("qwen", "deepseek_vl", "llava_next")


def load(family: str, model: str = "tiny", **how: Any) -> Backbone:
    spec = load_backbones().get(family)
    return load_class(spec).load(spec, model, **how)


def read(backbone: Backbone) -> Tensor:
    traces = backbone.trace(backbone.collate(samples(backbone)))
    return torch.cat([trace.hidden.flatten() for trace in traces])


def tiny(family: str) -> Path:
    return Path(find_source(load_backbones().get(family), "tiny"))


# --- quantization --------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(("quantize", "kind"), [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_only_the_layers_of_the_language_model_are_quantized(
    family: str, quantize: Any, kind: str
) -> None:
    plain, backbone = load(family), load(family, quantize=quantize)
    decoder = {id(module) for module in backbone.vlm.get_decoder().modules()}
    kinds: dict[bool, set[str]] = {True: set(), False: set()}
    for module in backbone.vlm.modules():
        if isinstance(module, nn.Linear):
            kinds[id(module) in decoder].add(type(module).__name__)
    assert kinds == {True: {kind}, False: {"Linear"}}
    before = backbone.weights_digest()
    ours, theirs = read(backbone), read(plain)
    assert 1e-3 < (ours - theirs).norm() / theirs.norm() < 0.3
    assert backbone.weights_digest() == before
    assert torch.equal(read(backbone), ours)  # taking a digest changes nothing
    assert differences(plain.identity(), backbone.identity()) == []
    told = f"quantization: head not quantized, model bitsandbytes {quantize}"
    assert quantized_otherwise(plain.identity(), backbone.identity()) == told
    assert quantized_otherwise(backbone.identity(), backbone.identity()) == ""


def test_a_quantized_model_is_not_quantized_again(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny("qwen"), tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "awq", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UsageError, match="Its weights are quantized already"):
        load("qwen", str(folder), quantize="8bit")


# --- adapters ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA of the tiny model, made and saved by peft; it changes every query projection."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(tiny("qwen"))
    settings = peft.LoraConfig(
        r=4, lora_alpha=32, target_modules=["q_proj"], init_lora_weights=False
    )
    folder = tmp_path_factory.mktemp("adapter")
    peft.get_peft_model(model, settings).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def merged(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with the adapter merged into its weights by peft."""
    folder = Path(shutil.copytree(tiny("qwen"), tmp_path_factory.mktemp("merged") / "model"))
    model = AutoModelForImageTextToText.from_pretrained(tiny("qwen"), dtype=torch.float32)
    peft.PeftModel.from_pretrained(model, adapter).merge_and_unload().save_pretrained(folder)
    return folder


def test_an_adapter_is_what_peft_makes_of_it(adapter: Path, merged: Path) -> None:
    ours, theirs, plain = (
        load("qwen", adapter=str(adapter)),
        load("qwen", str(merged)),
        load("qwen"),
    )
    torch.testing.assert_close(read(ours), read(theirs), atol=1e-4, rtol=1e-4)
    assert (read(ours) - read(plain)).abs().max() > 0.01
    assert not any(weight.requires_grad for weight in ours.vlm.parameters())
    told = ["adapter: head no adapter, model an adapter"]
    assert differences(plain.identity(), ours.identity()) == told
    both = load("qwen", adapter=str(adapter), quantize="8bit")
    assert differences(ours.identity(), both.identity()) == []
    assert (read(both) - read(ours)).norm() < 0.3 * (read(plain) - read(ours)).norm()


def refusal(family: str = "qwen", **how: Any) -> str:
    with pytest.raises(WeightsError) as error:
        load(family, **how)
    return str(error.value)


def test_an_adapter_that_does_not_fit_is_refused(adapter: Path, tmp_path: Path) -> None:
    from safetensors.torch import load, save_file

    name = "adapter_model.safetensors"
    folder = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    state = load((folder / name).read_bytes())  # not mapped: the file is written again below
    first, *rest = sorted(state)
    changes = {
        "are missing": {key: state[key] for key in rest},
        "are not the model's": {
            **state,
            first.replace("layers.0", "layers.77"): state[first].clone(),
        },
        "shapes": {**state, first: state[first][:, :-8].contiguous()},
    }
    for told, changed in changes.items():
        save_file(changed, folder / name)
        said = refusal(adapter=str(folder))
        assert said.startswith(f"The adapter '{folder}' does not fit the model ")
        assert told in said
    (folder / name).write_bytes((adapter / name).read_bytes()[:2000])
    assert "does not fit" in refusal(adapter=str(folder))
    (folder / name).unlink()
    assert "The folder has no adapter_model.safetensors" in refusal(adapter=str(folder))
    assert "There is no such folder" in refusal(adapter=str(tmp_path / "nothing"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / name).write_bytes((adapter / name).read_bytes())
    wrong = settings | {"target_modules": ["no_such_layer"]}
    (folder / "adapter_config.json").write_text(json.dumps(wrong))
    assert "no_such_layer" in refusal(adapter=str(folder))


def test_a_hub_adapter_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    said = refusal(adapter="owner/adapter@v2")
    assert said.startswith("The adapter 'owner/adapter@v2' cannot be used.\nIt is not in the local")


# --- placement and attention ---------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_is_that_of_the_vision_encoder_and_changes_no_values(family: str) -> None:
    plain, eager = load(family), load(family, attention="eager")
    assert eager.config.vision_config._attn_implementation == "eager"
    torch.testing.assert_close(read(eager), read(plain), atol=1e-4, rtol=1e-4)
    question = picture(48, 48), "What is it?"
    answers = [each.generate(*question, max_new_tokens=4) for each in (eager, plain)]
    assert answers[0] == answers[1]
    assert eager.text_config._attn_implementation == "eager"


def test_a_device_map_and_an_offloaded_model(tmp_path: Path) -> None:
    plain = load("qwen")
    size = sum(value.nbytes for value in plain.vlm.parameters())
    spread = load("qwen", dtype="float32", device_map="auto")
    offloaded = load(
        "qwen",
        dtype="float32",
        device_map="auto",
        max_memory={"cpu": size // 2},
        offload_folder=str(tmp_path),
    )
    assert any(value.is_meta for value in offloaded.vlm.parameters())
    for backbone in (spread, offloaded, load("qwen", device_map="none")):
        assert backbone.device.type == "cpu"
        assert backbone.weights_digest() == plain.weights_digest()
    observer, head = build_flow(Recipe("qwen", base_channels=4), device_map="auto", dtype="float32")
    assert observer.device == head.device == torch.device("cpu")


def test_a_device_map_is_for_one_process() -> None:
    assert World().device("cpu", "auto") == "cpu"
    with pytest.raises(UsageError, match="--device-map auto is for one process, and there are 2"):
        World(rank=0, size=2).device("cpu", "auto")


def test_a_folder_has_no_revisions() -> None:
    with pytest.raises(UsageError, match="has no revision 'v2'"):
        build_flow(Recipe("qwen", revision="v2"))


# --- a head and what it was trained behind -------------------------------------------------------


@pytest.fixture(scope="module")
def head(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe("qwen", adapter=str(adapter), quantize="8bit", base_channels=4, refiner="none")
    grounder = fresh_grounder(recipe)
    grounder.info = replace(grounder.info, model=grounder.backbone.identity())
    return grounder.save_pretrained(tmp_path_factory.mktemp("head") / "head")


def test_a_head_brings_its_adapter_and_quantization(
    head: Path, adapter: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grounder = Grounder.from_pretrained(head)
    assert (grounder.info.recipe.adapter, grounder.info.recipe.quantize) == (str(adapter), "8bit")
    assert set(grounder.backbone.vlm.peft_config) == {"default"}
    # transformers may say of its own that a later version wrote the model's config
    assert not [record.message for record in caplog.records if record.name.startswith("flmm")]
    info = read_info(head)
    assert info.model is not None
    assert info.model.quantization == "bitsandbytes 8bit"
    whole = Grounder.from_pretrained(head, quantize="none")
    assert "quantization: head bitsandbytes 8bit, model not quantized." in caplog.text
    assert whole.info.recipe.quantize == "none"
    with pytest.raises(WeightsError, match="adapter: head an adapter, model no adapter"):
        Grounder.from_pretrained(head, adapter="none")


def test_a_revision_is_that_of_one_model() -> None:
    recipe = Recipe("qwen", "owner/model", revision="v2")
    assert recipe.behind().revision == "v2"
    assert recipe.behind(model="owner/model").revision == "v2"
    assert recipe.behind(model="/copies/model").revision == "main"
    assert recipe.behind(model="owner/other", revision="v3").revision == "v3"


@pytest.mark.parametrize(
    ("how", "package", "install"),
    [
        ({"quantize": "4bit"}, "bitsandbytes", 'pip install "flmm[quantize]"'),
        ({"adapter": "a/folder"}, "peft", 'pip install "flmm[adapters]"'),
        ({"attention": "flash_attention_2"}, "flash_attn", "pip install flash-attn"),
    ],
)
def test_a_missing_package_is_named_before_anything_is_loaded(
    how: dict[str, str], package: str, install: str, tmp_path: Path, head: Path, drawn: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == package else find(n))
    options = [f"--{name}={value}" for name, value in how.items()]
    run, data = ["--output", str(tmp_path / "run")], ["--data", f"refcoco:{drawn}@train"]
    image = tmp_path / "image.png"
    picture(48, 48).save(image)
    for command in (
        ["train", "--backbone", "qwen", *run, *data],
        ["cache", "build", str(tmp_path / "cache"), "--backbone", "qwen", *data],
        ["eval", str(head), *data],
        ["ground", str(image), "a ring", "--head", str(head), *run],
    ):
        assert main([*command, *options]) == MissingExtraError.exit_code, command
        said = capsys.readouterr().err
        assert f"The package {package} is not installed." in said
        assert install in said
        assert "Traceback" not in said


@pytest.mark.skipif(importlib.util.find_spec("flash_attn") is not None, reason="it is installed")
def test_flash_attention_is_refused_by_a_plain_load_too() -> None:
    with pytest.raises(FlmmError, match="pip install"):
        load("qwen", attention="flash_attention_2")


def test_a_run_goes_through_quantized_weights_and_an_adapter(
    adapter: Path, drawn: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    options = ["--quantize=4bit", f"--adapter={adapter}", "--attention=eager", "--device-map=auto"]
    few = ["--steps=1", "--batch-size=2", "--refiner=none", "--pictures=0", f"--output={run}"]
    data = [f"--data=refcoco:{drawn}@train", f"--eval-data=refcoco:{drawn}@train"]
    assert main(["train", "--backbone=qwen", *options, *few, *data]) == 0
    summary = json.loads((run / "summary.json").read_text())
    assert summary["vlm_sha256"]["before"] == summary["vlm_sha256"]["after"]
    recipe = read_info(run / "last").recipe
    assert (recipe.adapter, recipe.quantize) == (str(adapter), "4bit")
    assert main(["train", "--resume", "--output", str(run), "--quantize", "8bit"]) == 2
    assert main(["train", "--resume", "--output", str(run), "--device-map", "none"]) == 0
