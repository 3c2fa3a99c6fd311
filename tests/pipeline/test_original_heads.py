"""`flmm import-flmm` and `export-flmm`: checkpoints of the original F-LMM.

The tensors are those of the reference: its U-Net, SAM and text projection, behind a DeepSeek-VL
whose language model has the sizes of the reference's LLaMA.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from flmm_core import Grounder
from flmm_core.cli import main
from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.recorder import AttentionRecorder
from flmm_core.pipeline.refiners.sam_model import save_sam
from flmm_core.pipeline.types import Features
from recipes import twins
from tests.heads import arrays, reference_sam, tensors
from tests.pipeline.test_reference_end_to_end import GRID, recorded, wanted_rows

MATRIX = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
Checkpoint = dict[str, Tensor]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    config, processor = twins.deepseek_vl_parts(384)
    config.vision_config.patch_size = 16
    processor.num_image_tokens = 24 * 24
    for name, value in {
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 8,
    }.items():  # fmt: skip
        setattr(config.text_config, name, value)
    torch.manual_seed(0)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sam(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sam")
    save_sam(folder, reference_sam())
    return folder


@pytest.fixture(scope="module")
def published() -> Checkpoint:
    """All that the original's plain runner writes but for the VLM: trained, matrix, encoder."""
    numbers = arrays("e2e_landscape")
    found = {f"mask_head.{name}": value for name, value in tensors("unet_small_state").items()}
    found |= {f"sam.{name}": value for name, value in tensors("sam_tiny_state").items()}
    found["text_layer_weights"] = numbers["text_layer_weights"]
    for part in ("weight", "bias"):
        found[f"text_proj.{part}"] = numbers[f"text_proj_{part}"]
    return found


@pytest.fixture
def imported(
    model: Path, sam: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Any]:
    """Runs the command; returns the head behind its model, or what an error said."""

    def run(content: Any, *options: str, save: Callable[..., None] = torch.save) -> Any:
        file, head = tmp_path / "flmm.pth", tmp_path / "head"
        save(content, file)
        command = ["import-flmm", str(file), "--backbone", "deepseek_vl", "--model", str(model)]
        command += ["--refiner", "sam:tiny", "--refiner-weights", str(sam), "--output", str(head)]
        if code := main([*command, *options]):
            assert code == 3
            assert not head.exists()
            return capsys.readouterr().err
        return Grounder.from_pretrained(head, refiner_weights=sam)

    return run


def test_masks_are_the_originals(published: Checkpoint, imported: Callable[..., Any]) -> None:
    grounder = imported(published)
    recipe = grounder.info.recipe
    assert (recipe.paper_rounding, recipe.caption_mode, recipe.pool) == (True, "pieces", "mean")
    assert recipe.options["resize"] == "original"
    assert recipe.presence is False
    assert grounder.info.facts["protocol"] == "flmm-paper"
    numbers = arrays("e2e_landscape")
    image = Image.fromarray(arrays("sam_wrapper_inputs")["image"].numpy())
    encoder, trace = grounder.observer.encoder, recorded(numbers)
    (encoded,) = encoder.encode([encoder.prepare(image)])
    maps = attention_maps(trace)
    features = Features(maps, trace.hidden, trace.row_phrase, encoded, trace.image_hw)
    with torch.no_grad():
        (grounding,) = grounder.head([features])
    assert (grounding.coarse_logits - numbers["out_pred_masks"]).abs().max() <= 1e-4
    apart = (grounding.logits[:, ::4, ::4] - numbers["out_sam_pred_masks"]).abs()
    assert apart.max() <= 5e-4
    # the view of a DeepSeek-VL head is where the reference's was: 255 of 384 rows
    inputs = grounder.backbone.prepare(image, [])
    assert inputs.views[0].image_box == pytest.approx(trace.views[0].image_box)


@pytest.mark.parametrize("pool", ["mean", "max"])
def test_attention_is_pooled_as_the_head_was_trained(
    pool: str, published: Checkpoint, imported: Callable[..., Any]
) -> None:
    """The recorder of an imported head, on the reference's LLaMA."""
    numbers = arrays("e2e_landscape")
    config = transformers.LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=3,
        num_attention_heads=8, max_position_embeddings=1024, rms_norm_eps=1e-6,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
    )  # fmt: skip
    decoder = transformers.LlamaModel(config).eval().requires_grad_(False)
    decoder.load_state_dict(tensors("e2e_llama_tiny_state"))
    rows, phrases = wanted_rows(numbers)
    grounder = imported(published, "--pool", pool)
    recorder = AttentionRecorder(decoder).record(
        [rows], [GRID.flatten()], [phrases], pool=grounder.observer.pool
    )
    with recorder as recording:
        decoder(inputs_embeds=numbers["inputs_embeds"][None], use_cache=False)
    attention = numbers["attentions"][:, :, rows - numbers["caption_start"]].numpy()
    reduce = {"mean": np.mean, "max": np.max}[pool]
    for phrase in range(3):
        wanted = reduce(attention[:, :, phrases.numpy() == phrase], axis=2)
        found = recording.attention[0][:, :, phrase].numpy()
        assert np.abs(found - wanted).max() <= 1e-5


def test_a_portrait_is_grounded_at_its_size(
    published: Checkpoint, imported: Callable[..., Any]
) -> None:
    """333 x 500 pixels are seen as 255 x 384; upright they are 255 columns of 384."""
    grounder = imported(published)
    image = Image.effect_noise((333, 500), 80).convert("RGB")
    result = grounder.ground(image, ["a cup", "the left dog"], keep_absent=True)
    assert result.masks.shape == (2, 500, 333)
    box = grounder.backbone.prepare(image, []).views[0].image_box
    assert box == pytest.approx((0, -64 / 255, 1, (255 + 65) / 255))


def halved(content: Checkpoint) -> Checkpoint:
    return {name: value.half() for name, value in content.items()}


def trained_only(content: Checkpoint) -> Checkpoint:
    return {
        name: value
        for name, value in content.items()
        if "image_encoder" not in name and name != MATRIX
    }


@pytest.mark.parametrize(
    "written",
    [
        lambda all_of_it: trained_only(all_of_it),
        lambda all_of_it: {"meta": {"epoch": 8}, "state_dict": trained_only(all_of_it)},
        lambda all_of_it: halved(trained_only(all_of_it) | {MATRIX: all_of_it[MATRIX]}),
        lambda all_of_it: all_of_it | {"deepseek_vl.language_model.norm.weight": torch.ones(64)},
        lambda all_of_it: {f"module.{name}": value for name, value in all_of_it.items()},
    ],
    ids=["trained only", "nested", "half, with matrix", "with encoder and VLM", "DataParallel"],
)
def test_every_way_of_writing_is_read_and_written_back(
    written: Callable[..., Any],
    published: Checkpoint,
    imported: Callable[..., Any],
    tmp_path: Path,
) -> None:
    content = written(published)
    imported(content)
    out = tmp_path / "back.pth"
    assert main(["export-flmm", str(tmp_path / "head"), str(out)]) == 0
    back = torch.load(out, weights_only=True)
    wanted = trained_only(published) | {MATRIX: published[MATRIX]}
    assert back.keys() == wanted.keys()
    half = any(x.dtype == torch.float16 for x in content.values() if isinstance(x, Tensor))
    for name, value in wanted.items():
        assert back[name].dtype == torch.float32
        assert torch.equal(back[name], value.half().float() if half else value), name


def test_safetensors_are_read_and_halves_are_written(
    model: Path, sam: Path, published: Checkpoint, tmp_path: Path
) -> None:
    file, out = tmp_path / "flmm.safetensors", tmp_path / "half.pth"
    save_file({name: x.contiguous() for name, x in trained_only(published).items()}, file)
    command = ["import-flmm", str(file), "--backbone", "deepseek_vl", "--model", str(model)]
    assert main([*command, "--refiner-weights", str(sam), "--refiner", "sam:tiny"]) == 0
    assert main(["export-flmm", str(tmp_path / "flmm"), str(out), "--half"]) == 0
    back = torch.load(out, weights_only=True)
    for name, value in trained_only(published).items():
        assert torch.equal(back[name], value.half()), name


def test_what_is_missing_too_much_or_misshapen_is_named(
    published: Checkpoint, imported: Callable[..., Any]
) -> None:
    broken = trained_only(published)
    del broken["text_proj.bias"]
    broken["mask_head.extra.weight"] = torch.zeros(1)
    broken["sam.model.mask_decoder.mask_tokens.weight"] = torch.zeros(4, 31)
    said = imported(broken)
    assert "missing text_proj.bias" in said
    assert "unexpected mask_head.extra.weight" in said
    assert "sam.model.mask_decoder.mask_tokens.weight is (4, 31) instead of (4, 32)" in said
    assert "3 layers, 24 attention channels and width 64" in said


def test_another_sam_is_refused(published: Checkpoint, imported: Callable[..., Any]) -> None:
    assert "is not the one in" in imported(published | {MATRIX: published[MATRIX] + 1})
    name = "sam.model.image_encoder.pos_embed"
    assert f"'{name}' differs" in imported(published | {name: published[name] * 2})


class Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (exec, ("raise SystemExit('code was run')",))


@pytest.mark.parametrize("damage", ["cut", "code", "list", "number", "nothing"])
def test_a_file_without_a_head_is_refused(
    damage: str, published: Checkpoint, imported: Callable[..., Any]
) -> None:
    def cut(content: Any, file: Path) -> None:
        torch.save(content, file)
        file.write_bytes(file.read_bytes()[:-1000])

    def code(content: Any, file: Path) -> None:
        file.write_bytes(pickle.dumps(Evil()))

    contents: dict[str, Any] = {"list": [1, 2], "number": {"epoch": 3}, "nothing": {}}
    save = {"cut": cut, "code": code}.get(damage, torch.save)
    said = imported(contents.get(damage, published), save=save)
    assert "cannot be read" in said
    assert "Traceback" not in said


def test_a_head_that_the_original_cannot_have_is_not_exported(
    published: Checkpoint,
    imported: Callable[..., Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    grounder = imported(published)
    recipe = replace(grounder.info.recipe, caption_mode="whole", paper_rounding=False)
    grounder.info = replace(grounder.info, recipe=recipe)
    grounder.save_pretrained(tmp_path / "ours")
    assert main(["export-flmm", str(tmp_path / "ours"), str(tmp_path / "x.pth")]) == 2
    said = capsys.readouterr().err
    assert "caption mode: whole; in the original pieces" in said
    assert "paper rounding: off; in the original on" in said
    assert not (tmp_path / "x.pth").exists()
