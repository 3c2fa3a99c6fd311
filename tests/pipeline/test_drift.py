"""A head notices that its model does otherwise: faults put into transformers' own code.

The installed version stands for both here; `python -m recipes.two_versions` compares two.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import LlavaNextModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.models.deepseek_vl.image_processing_pil_deepseek_vl import (
    DeepseekVLImageProcessorPil,
)
from transformers.processing_utils import ProcessorMixin

from flmm_core.cli import main
from flmm_core.errors import RunError, WeightsError
from flmm_core.pipeline.backbone import fingerprint as fingerprints
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.fingerprint import TOLERANCES, Fingerprint, deviations
from flmm_core.pipeline.backbone.recorder import NAME
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import read_info, write_info
from flmm_core.plugins import load_backbones, load_class
from tests.cached import Runs
from tests.flows import fresh_grounder
from tests.models import picture

FAMILIES = ("qwen", "deepseek_vl", "llava_next")
Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def _run_again() -> Iterator[None]:
    fingerprints.forget_fingerprints()
    yield
    fingerprints.forget_fingerprints()


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """By family, a head that was saved behind the shipped model as it is."""
    folder = tmp_path_factory.mktemp("heads")
    for family in FAMILIES:
        recipe = Recipe(family, base_channels=4, enlarge_to=16, refiner="none")
        grounder = fresh_grounder(recipe)
        grounder.info = replace(
            grounder.info,
            model=grounder.backbone.identity(),
            fingerprint=grounder.observer.fingerprint,
            vlm_sha256=grounder.backbone.weights_digest(),
        )
        grounder.save_pretrained(folder / family)
    return folder


def load(head: Path, **options: Any) -> Grounder:
    return Grounder.from_pretrained(head, device="cpu", strict=True, **options)


# --- the five faults ------------------------------------------------------------------------------


def ignore_causality(patch: Patch) -> None:
    """As a Llama under sdpa that was asked for its attention once ran."""
    usual = torch.nn.functional.scaled_dot_product_attention

    def every_token(query: Any, key: Any, value: Any, **options: Any) -> Any:
        return usual(query, key, value, **{**options, "is_causal": False, "attn_mask": None})

    patch.setattr(torch.nn.functional, "scaled_dot_product_attention", every_token)


def mask_nothing(patch: Patch) -> None:
    def full(*given: Any, **options: Any) -> Any:
        mask = sdpa_mask(*given, **{**options, "allow_is_causal_skip": False})
        return torch.ones_like(mask)

    patch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, NAME, full)


def shift_grid(patch: Patch, family: str, rows: int, columns: int) -> None:
    kind: Any = load_class(load_backbones().get(family))
    usual = kind.views

    def shifted(self: Any, *given: Any) -> Any:
        return tuple(
            replace(view, token_index=view.token_index.roll((rows, columns), (0, 1)))
            for view in usual(self, *given)
        )

    patch.setattr(kind, "views", shifted)


def pad_at_the_end(patch: Patch) -> None:
    """DeepSeek-VL's image in the corner of its square instead of the middle."""
    usual = DeepseekVLImageProcessorPil.pad_to_square

    def pad(self: Any, image: Any, *given: Any, **options: Any) -> Any:
        whole = usual(self, image, *given, **options)
        above = (whole.shape[-2] - image.shape[-2]) // 2
        return torch.from_numpy(whole).roll(-above, 1).numpy()

    patch.setattr(DeepseekVLImageProcessorPil, "pad_to_square", pad)


def rename_the_assistant(patch: Patch) -> None:
    usual = ProcessorMixin.apply_chat_template

    def other(self: Any, *given: Any, **options: Any) -> Any:
        return usual(self, *given, **options).replace("ASSISTANT:", "MODEL:")

    patch.setattr(ProcessorMixin, "apply_chat_template", other)


def swap_views(patch: Patch) -> None:
    """LLaVA-Next's fine view before the coarse one, in the model's own packing."""
    usual = LlavaNextModel.pack_image_features

    def pack(self: Any, image_features: Any, *given: Any, **options: Any) -> Any:
        features, lengths = usual(self, image_features, *given, **options)
        side = image_features[0].shape[1]
        return [torch.cat([each[side:], each[:side]]) for each in features], lengths

    patch.setattr(LlavaNextModel, "pack_image_features", pack)


def resize_by(patch: Patch, resample: int) -> None:
    usual = Image.Image.resize

    def resize(self: Image.Image, size: Any, *given: Any, **options: Any) -> Image.Image:
        return usual(self, size, resample)

    patch.setattr(Image.Image, "resize", resize)


@pytest.mark.parametrize("family", FAMILIES)
class TestFaults:
    def test_as_it_is(self, family: str, heads: Path, patch: Patch) -> None:
        load(heads / family)

    @pytest.mark.parametrize("fault", [ignore_causality, mask_nothing])
    def test_no_causal_mask(
        self, family: str, fault: Callable[[Patch], None], heads: Path, patch: Patch
    ) -> None:
        fault(patch)
        with pytest.raises(RunError, match=r"attention: .*\n.*transformers \d+\.") as error:
            load(heads / family)
        assert "--no-check" in error.value.repair

    def test_a_shifted_grid(self, family: str, heads: Path, patch: Patch) -> None:
        shift_grid(patch, family, *{"qwen": (1, 0), "deepseek_vl": (0, 1)}.get(family, (0, -1)))
        with pytest.raises(RunError, match="view '"):
            load(heads / family)

    def test_a_changed_template(self, family: str, heads: Path, patch: Patch) -> None:
        rename_the_assistant(patch)
        with pytest.raises(WeightsError, match=r"tokens: .*ASSISTANT:.*; now .*MODEL:"):
            load(heads / family)

    def test_another_resize_filter(self, family: str, heads: Path, patch: Patch) -> None:
        resize_by(
            patch, Image.Resampling.BILINEAR if family == "qwen" else Image.Resampling.LANCZOS
        )
        with pytest.raises(WeightsError, match=r"(?s)versions are the same.*pixels: "):
            load(heads / family)

    def test_another_dtype_stays_far_below_the_tolerance(
        self, family: str, heads: Path, patch: Patch
    ) -> None:
        for name in TOLERANCES:
            patch.setitem(TOLERANCES, name, TOLERANCES[name] / 3)
        load(heads / family, dtype="bfloat16")


@pytest.fixture
def patch(monkeypatch: Patch) -> Patch:
    return monkeypatch


@pytest.mark.parametrize("change", ["chat_template.jinja", "processor_config.json"])
def test_in_the_files_of_the_model(change: str, heads: Path, tmp_path: Path) -> None:
    source = load_backbones().get("llava_next").models["tiny"].source
    package, inner = source.split(":")
    where = Path(sys.modules[package].__path__[0]) / inner
    model = Path(shutil.copytree(where, tmp_path / "model"))
    text = (model / change).read_text()
    changed = text.replace("ASSISTANT:", "MODEL:").replace('"resample": 3', '"resample": 2')
    assert changed != text
    (model / change).write_text(changed)
    with pytest.raises(WeightsError, match="another model"):
        load(heads / "llava_next", model=str(model))
    # asked to go on all the same, it does not say twice that the model is another
    load(heads / "llava_next", model=str(model), force=True)


def test_swapped_views(heads: Path, patch: Patch) -> None:
    swap_views(patch)
    with pytest.raises(RunError, match=r"view 'coarse'(?s:.)*view 'fine'"):
        load(heads / "llava_next")


def test_padding_elsewhere(heads: Path, patch: Patch) -> None:
    pad_at_the_end(patch)
    with pytest.raises(RunError, match="view 'image'"):
        load(heads / "deepseek_vl")


def test_positions_as_transformers_5_5_gave_them(heads: Path, patch: Patch) -> None:
    """Qwen2.5-VL's temporal positions began elsewhere: 10 % of the attention of its tiny model."""
    from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel

    usual = Qwen2_5_VLModel.get_vision_position_ids

    def positions(self: Any, start_position: int, *given: Any, **options: Any) -> Any:
        found = usual(self, start_position, *given, **options)
        found[0] = start_position * 4
        return found

    patch.setattr(Qwen2_5_VLModel, "get_vision_position_ids", positions)
    with pytest.raises(WeightsError, match="attention: share elsewhere"):
        load(heads / "qwen")


def test_a_processor_of_another_class(heads: Path, patch: Patch) -> None:
    kind: Any = load_class(load_backbones().get("qwen"))
    patch.setattr(kind, "processor_types", ("Qwen2VLProcessor",))
    with pytest.raises(RunError, match="it is a Qwen2_5_VLProcessor, not a Qwen2VLProcessor"):
        load(heads / "qwen")


# --- warnings, --strict and --no-check -----------------------------------------------------------


def test_a_warning_by_default_and_both_versions(
    heads: Path, tmp_path: Path, patch: Patch, capsys: pytest.CaptureFixture[str]
) -> None:
    rename_the_assistant(patch)
    patch.setattr(
        fingerprints, "installed", lambda: {"transformers": "9.9.9", "tokenizers": "0.99"}
    )
    picture(48, 32).save(tmp_path / "image.png")
    command = ["ground", str(tmp_path / "image.png"), "it", "--head", str(heads / "qwen")]
    command += ["--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(command) == 0
    told = capsys.readouterr().err
    assert f"WARNING: The model does otherwise than when the head in '{heads / 'qwen'}'" in told
    known = json.loads((heads / "qwen" / "config.json").read_text())["fingerprint"]["versions"]
    assert f"Then: transformers {known['transformers']}, " in told
    assert "Now: transformers 9.9.9, tokenizers 0.99" in told
    assert main([*command, "--strict"]) == WeightsError.exit_code
    assert "go on without --strict" in capsys.readouterr().err
    assert main([*command, "--no-check"]) == 0
    assert "WARNING" not in capsys.readouterr().err
    assert main([*command, "--no-check", "--strict"]) == WeightsError.exit_code


def test_without_a_check_the_model_does_not_run(heads: Path, patch: Patch) -> None:
    ignore_causality(patch)
    assert Grounder.from_pretrained(heads / "qwen", check=False).observer.fingerprint is None


def test_a_head_of_an_earlier_format_has_none(heads: Path, tmp_path: Path) -> None:
    from flmm_core.files import SEAL, sealed

    old = Path(shutil.copytree(heads / "qwen", tmp_path / "old"))
    content = json.loads((old / "config.json").read_text())
    rest = {k: v for k, v in content.items() if k not in ("fingerprint", "vlm_sha256", SEAL)}
    (old / "config.json").write_text(json.dumps(sealed({**rest, "format": 3})))
    grounder = Grounder.from_pretrained(old, device="cpu")
    assert grounder.info.fingerprint is None
    with pytest.raises(WeightsError, match="The head has no fingerprint"):
        load(old)
    grounder.save_pretrained(tmp_path / "new")
    assert json.loads((tmp_path / "new" / "config.json").read_text())["format"] == 4


def test_prompt_and_system_message_do_not_matter(heads: Path) -> None:
    load(heads / "qwen", prompt="Where is it?", system="Be short.")


def test_a_fingerprint_outlives_json(heads: Path) -> None:
    grounder = load(heads / "llava_next")
    now = grounder.observer.fingerprint
    assert grounder.info.fingerprint == now
    assert isinstance(now, Fingerprint)
    assert deviations(now, replace(now, attention=now.attention[::-1])) != []
    assert deviations(now, replace(now, hidden=now.hidden[::-1])) != []
    assert deviations(now, replace(now, hidden=())) != []
    nan = "007e" * (len(now.hidden[0]) // 4)
    assert deviations(now, replace(now, hidden=(nan, *now.hidden[1:]))) != []


def test_a_run_keeps_its_fingerprint_and_is_resumed_by_it(
    random_twin: Path, drawn: Path, tmp_path: Path, patch: Patch
) -> None:
    runs = Runs(random_twin, drawn, tmp_path)
    run = runs.train("run", steps=2)
    info = read_info(run / "last")
    assert info.fingerprint == Grounder.from_pretrained(run).observer.fingerprint
    assert info.vlm_sha256 == json.loads((run / "summary.json").read_text())["vlm_sha256"]["after"]
    (run / "summary.json").unlink()  # as if it had been stopped before its end
    fingerprints.forget_fingerprints()
    rename_the_assistant(patch)
    with pytest.raises(WeightsError, match="does otherwise than when the head"):
        runs.train("run", steps=2, resume=True, strict=True)
    runs.train("run", steps=2, resume=True)


# --- flmm verify ----------------------------------------------------------------------------------


def verified(head: Path, capsys: pytest.CaptureFixture[str], *more: str) -> tuple[int, Any]:
    code = main(["verify", str(head), "--device", "cpu", "--json", *more])
    return code, json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("family", FAMILIES)
def test_verify(family: str, heads: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, found = verified(heads / family, capsys)
    assert (code, found["ok"]) == (0, True)
    assert {name: each["ok"] for name, each in found["findings"].items()} == dict.fromkeys(
        ("weights", "model", "behavior", "fingerprint", "answers"), True
    )
    assert "greedy answers are the same" in found["findings"]["answers"]["found"]


def test_verify_finds_what_differs(
    heads: Path, patch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = Backbone.reply
    patch.setattr(
        Backbone, "reply", lambda self, image, prompt, **more: usual(self, image, "?", **more)
    )
    retrained = load(heads / "qwen").backbone
    with torch.no_grad():
        retrained.vlm.get_decoder().layers[0].mlp.up_proj.weight[0, 0] += 1
    retrained.vlm.save_pretrained(tmp_path / "model")
    retrained.processor.save_pretrained(tmp_path / "model")
    command = ["verify", str(heads / "qwen"), "--model", str(tmp_path / "model")]
    assert main([*command, "--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()[1:]
    said = dict(line.split(maxsplit=2)[:2] for line in lines)
    assert (said["weights"], said["behavior"], said["answers"]) == ("differs", "ok", "differs")


def test_verify_records_what_a_head_lacks(
    heads: Path, patch: Patch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An imported head knows its model's settings only; then a fault of the model is noticed."""
    head = tmp_path / "head"
    shutil.copytree(heads / "qwen", head)
    whole = read_info(head)
    assert whole.model is not None
    bare = replace(whole.model, weights={})
    write_info(head, replace(whole, model=bare, fingerprint=None, vlm_sha256=None))
    assert verified(head, capsys, "--record")[0] == 0
    assert read_info(head) == whole
    code, found = verified(head, capsys)
    assert code == 0
    assert all(each["ok"] for each in found["findings"].values())

    write_info(head, replace(whole, fingerprint=None))
    usual = Backbone.reply
    patch.setattr(
        Backbone, "reply", lambda self, image, prompt, **more: usual(self, image, "?", **more)
    )
    assert verified(head, capsys, "--record")[0] == 1
    assert read_info(head).fingerprint is None  # of a model that differs nothing is recorded
    assert main(["verify", "owner/head", "--record"]) == 3  # not fetched: offline


def test_verify_of_no_head(tmp_path: Path) -> None:
    assert main(["verify", str(tmp_path)]) == WeightsError.exit_code


@pytest.mark.slow
@pytest.mark.multiprocess
@pytest.mark.skipif("FLMM_OTHER_TRANSFORMERS" not in os.environ, reason="names no other version")
def test_two_versions() -> None:
    other = os.environ["FLMM_OTHER_TRANSFORMERS"]
    subprocess.run([sys.executable, "-m", "recipes.two_versions", other], check=True)
