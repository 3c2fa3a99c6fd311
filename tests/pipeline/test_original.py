"""Checkpoints of the original F-LMM become heads that compute what it computed, and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor

from flmm_core.errors import UsageError, WeightsError
from flmm_core.pipeline.build import Recipe, load_refiner
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import read_info, read_weights
from flmm_core.pipeline.original import export_original, import_original, read_checkpoint
from flmm_core.pipeline.refiners.sam import SamEncoder
from flmm_core.pipeline.types import Features, ImageView, Trace
from flmm_core.plugins import load_backbones
from flmm_core.segment import Segment
from tests.heads import REFERENCE, arrays, require_originals_refined
from tests.models import picture
from tests.original import (
    ENCODER,
    POSITIONS,
    Folders,
    Original,
    deepseek,
    e2e_checkpoint,
    nested,
    without_frozen,
    write_folders,
)

SPEC = load_backbones().get("deepseek_vl")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    return write_folders(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return e2e_checkpoint()


def recipe(model: Path, **more: Any) -> Recipe:
    settings: dict[str, Any] = {
        "options": {"resize": "original"},
        "caption_mode": "pieces",
        "base_channels": 16,
        "paper_rounding": True,
        "refiner_options": {"size": "tiny"},
    }
    return Recipe("deepseek_vl", str(model), **(settings | more))


def imported(
    content: Any, folders: Folders, folder: Path, *, force: bool = False, **more: Any
) -> Path:
    """The head's folder of a checkpoint with this content."""
    file = folder / "checkpoint.pth"
    torch.save(content, file)
    given = recipe(folders.settings, **more)
    checkpoint = read_checkpoint(file, SPEC)
    into = folder / "head"
    import_original(checkpoint, given, into, refiner_weights=folders.sam, force=force)
    return into


# --- what an imported head computes ---------------------------------------------------------


def test_the_end_to_end_fixture(folders: Folders, state: dict[str, Tensor], tmp_path: Path) -> None:
    folder = imported(state, folders, tmp_path)
    numbers, hw = arrays("e2e_landscape"), (333, 500)
    mask_ids, start = numbers["mask_ids"], int(numbers["caption_start"])
    rows = torch.cat([(mask_ids == p).nonzero().flatten() for p in range(3)])
    groups, rows = mask_ids[rows], rows - start
    attention = numbers["attentions"][:, :, rows]

    grounder = Grounder.from_pretrained(
        folder, model=str(folders.model), refiner_weights=folders.sam, device="cpu"
    )
    image = arrays("sam_wrapper_inputs")["image"].numpy()
    from PIL import Image

    shown = Image.fromarray(image)
    inputs = grounder.backbone.prepare(shown, [Segment("a", 0)])
    view = ImageView("image", torch.arange(576).view(24, 24), inputs.views[0].image_box)
    trace = Trace(
        torch.stack([attention[:, :, groups == p].mean(2) for p in range(3)], dim=2),
        numbers["hidden_states_all"][1:, rows],
        groups,
        (view,),
        hw,
    )
    encoder = grounder.observer.encoder
    assert isinstance(encoder, SamEncoder)
    from flmm_core.pipeline.attention_maps import attention_maps

    (encoded,) = encoder.encode([encoder.prepare(shown)])
    features = Features(attention_maps(trace), trace.hidden, groups, encoded, hw)
    with torch.no_grad():
        (found,) = grounder.head([features])
    assert (found.coarse_logits - numbers["out_pred_masks"]).abs().max() <= 1e-4
    require_originals_refined(found.logits)

    plain = Original(state, "mean").coarse(
        numbers["attentions"], [rows[groups == p] for p in range(3)], hw
    )
    assert (plain - numbers["out_pred_masks"]).abs().max() <= 1e-4  # so `Original` can be trusted


@pytest.mark.parametrize(("pool", "hw"), [("max", (333, 500)), ("mean", (500, 333))])
@torch.no_grad()
def test_from_pixels_to_masks(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path, pool: Any, hw: tuple[int, int]
) -> None:
    folder = imported(state, folders, tmp_path, pool=pool)
    grounder = Grounder.from_pretrained(
        folder, model=str(folders.model), refiner_weights=folders.sam, device="cpu"
    )
    image = picture(hw[1], hw[0])
    caption = [Segment("a red ring", 0), Segment(" and "), Segment("sky", 1), Segment(".")]
    sample = grounder.observer.prepare(image, caption)
    batch = grounder.observer.collate([sample])
    (found,) = grounder.head(grounder.observer.observe(batch))

    inputs = sample.backbone
    vlm = transformers.DeepseekVLForConditionalGeneration.from_pretrained(
        folders.model, attn_implementation="eager"
    )
    tensors = {k: v[None] for k, v in inputs.tokens.items()} | inputs.prefix.image
    theirs = vlm.model(**tensors, output_attentions=True, output_hidden_states=True)
    at_image = inputs.tokens["input_ids"] == vlm.config.image_token_id
    attention = torch.cat(theirs.attentions)[..., at_image]  # (L, N, S, 576)
    plain = Original(state, pool)
    coarse = plain.coarse(attention, inputs.phrase_rows, hw)
    assert (found.coarse_logits - coarse).abs().max() <= 1e-4
    assert sample.image is not None
    hidden = torch.cat(theirs.hidden_states[1:])  # (L, S, D)
    # from the same coarse logits: the random SAM makes 1e-3 of a difference of 1e-6
    given = found.coarse_logits
    refined = plain.refined(sample.image.float(), given, hidden, inputs.phrase_rows, hw)
    apart = (found.logits - refined).abs()
    assert apart.mean() <= 1e-4
    assert apart.max() <= 2e-3  # float32's own rounding, on a few pixels


# --- files as they are written --------------------------------------------------------------


def test_every_written_form_is_read(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    trained = without_frozen(state)
    vlm = {f"deepseek_vl.language_model.model.layers.{i}.w": torch.ones(2) for i in range(5)}
    forms: dict[str, tuple[Any, int]] = {
        "half": ({name: x.half() for name, x in trained.items()}, 193),
        "bfloat16": ({name: x.bfloat16() for name, x in trained.items()}, 193),
        "no positions": ({n: x for n, x in trained.items() if n != POSITIONS}, 192),
        "everything": (nested({**vlm, **state}), 193),
        "half of everything": ({n: x.half() for n, x in {**vlm, **state}.items()}, 193),
        "parallel": ({f"module.{name}": x for name, x in trained.items()}, 193),
    }
    for form, (content, count) in forms.items():
        (tmp_path / form).mkdir()
        folder = imported(content, folders, tmp_path / form)
        assert len(read_checkpoint(tmp_path / form / "checkpoint.pth", SPEC).head) == count
        ours = read_weights(folder)
        assert len(ours) == 193
        assert not any("image_encoder" in name or "language_model" in name for name in ours)
        rounded = 2.0**-8 if form == "bfloat16" else 2.0**-10 if "half" in form else 0
        conv = ours["mask_head.unet.conv_seg.weight"], trained["mask_head.conv_seg.weight"]
        torch.testing.assert_close(*conv, rtol=rounded, atol=0)
        positions = ours[f"refiner.{POSITIONS.removeprefix('sam.model.')}"]
        torch.testing.assert_close(positions, trained[POSITIONS], rtol=rounded, atol=1e-7)


# --- files that are refused -----------------------------------------------------------------


def refusal(content: Any, folders: Folders, folder: Path, **more: Any) -> str:
    with pytest.raises(WeightsError) as caught:
        imported(content, folders, folder, **more)
    assert not (folder / "head").exists()
    return str(caught.value)


def test_all_that_does_not_fit_is_named(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    broken = {**state, "mask_head.extra.weight": torch.ones(3, 4), "stray": torch.ones(5)}
    del broken["text_proj.bias"]
    broken["mask_head.conv_seg.bias"] = torch.ones(2)
    message = refusal(broken, folders, tmp_path)
    lines = [line.strip() for line in message.splitlines()]
    assert lines[0] == f"The checkpoint '{tmp_path / 'checkpoint.pth'}' does not fit."
    assert lines[1:5] == [
        "missing text_proj.bias (32,)",
        "mask_head.conv_seg.bias is (2,) instead of (1,)",
        "unexpected mask_head.extra.weight (3, 4)",
        "unexpected stray (5,)",
    ]


def test_another_model_is_named_with_both_sizes(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    other = write_settings(tmp_path / "other", layers=4, heads=4, hidden=32)
    message = refusal(state, folders._replace(settings=other), tmp_path)
    assert f"layers: checkpoint 3, model '{other}' 4" in message
    assert f"attention channels: checkpoint 24, model '{other}' 16 = 4 layers x 4 heads" in message
    assert f"hidden size: checkpoint 64, model '{other}' 32" in message


def write_settings(folder: Path, **sizes: int) -> Path:
    for part in deepseek(**sizes):
        part.save_pretrained(folder)
    return folder


def test_another_sam_is_refused_unless_forced(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    name = f"{ENCODER}neck.0.weight"
    other = {**state, name: state[name] * 1.1}
    message = refusal(other, folders, tmp_path)
    assert "was trained with another SAM" in message
    assert "image_encoder.neck.0.weight" in message
    assert imported(other, folders, tmp_path, force=True).is_dir()


def test_values_that_are_no_numbers_are_refused(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    name = "mask_head.conv_seg.bias"
    for value, why in ((torch.tensor([torch.inf]), "not finite"), (torch.ones(1).int(), "int32")):
        assert f"{name} holds" in (found := refusal({**state, name: value}, folders, tmp_path))
        assert why in found


def test_a_file_of_something_else_says_what_it_is(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    sam = {k.removeprefix("sam.model."): v for k, v in state.items() if k.startswith("sam.")}
    assert "begin with: image_encoder, mask_decoder, prompt_encoder" in refusal(
        sam, folders, tmp_path
    )
    for content in ([1, 2], {"epoch": 3}, {"state_dict": {}}):
        assert "holds no tensors by name" in refusal(content, folders, tmp_path)


# --- and back -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def production() -> dict[str, Tensor]:
    """A checkpoint at its real size for DeepSeek-VL-1.3B and SAM ViT-L, with random values."""
    torch.manual_seed(0)
    shapes = json.loads((REFERENCE / "unet_keys.json").read_text())["production"]["state_dict"]
    decoder = MaskDecoder(transformer_dim=256, transformer=TwoWayTransformer(2, 256, 8, 2048))
    prompts = PromptEncoder(256, (64, 64), (1024, 1024), 16)
    return {
        "text_layer_weights": torch.randn(24),
        "text_proj.weight": torch.randn(256, 2048),
        "text_proj.bias": torch.randn(256),
        **{f"mask_head.{name}": torch.randn(shape) for name, shape in shapes.items()},
        **{f"sam.model.prompt_encoder.{k}": v for k, v in prompts.state_dict().items()},
        **{f"sam.model.mask_decoder.{k}": v for k, v in decoder.state_dict().items()},
    }


def test_export_after_import_is_the_identity(production: dict[str, Tensor], tmp_path: Path) -> None:
    """At the real size; neither the VLM's weights nor SAM's file are needed."""
    assert len(production) == 193
    model = write_settings(tmp_path / "model", layers=24, heads=16, hidden=2048)
    torch.save(production, tmp_path / "a.pth")
    large = recipe(model, base_channels=64, refiner_options={"size": "vit_l"})
    import_original(read_checkpoint(tmp_path / "a.pth", SPEC), large, tmp_path / "head")
    for file, half in (("b.pth", False), ("b.safetensors", False), ("half.pth", True)):
        assert export_original(tmp_path / "head", tmp_path / file, half=half) == 193
        load = load_file if file.endswith("safetensors") else torch.load
        back = load(tmp_path / file)
        kind = torch.float16 if half else torch.float32
        assert back.keys() == production.keys()
        assert all(torch.equal(back[name], x.to(kind)) for name, x in production.items())
        again = read_checkpoint(tmp_path / file, SPEC)
        assert again.head.keys() == production.keys()


def test_what_the_original_cannot_express_is_named(
    folders: Folders, state: dict[str, Tensor], tmp_path: Path
) -> None:
    given = {"caption_mode": "whole", "enlarge_to": 32, "paper_rounding": False}
    folder = imported(state, folders, tmp_path, **given)
    with pytest.raises(UsageError) as caught:
        export_original(folder, tmp_path / "b.pth")
    assert str(caught.value).splitlines()[1] == (
        "caption mode is whole, not pieces; paper rounding is off, not on; "
        "enlarge to is 32, not 64."
    )
    assert not (tmp_path / "b.pth").exists()


def test_a_head_without_sam(folders: Folders, state: dict[str, Tensor], tmp_path: Path) -> None:
    """The original also trains the U-Net alone."""
    alone = {name: x for name, x in state.items() if name.startswith("mask_head.")}
    folder = imported(
        alone, folders._replace(sam=None), tmp_path, refiner="none", refiner_options={}
    )
    assert len(read_weights(folder)) == 53
    _, refiner = load_refiner(read_info(folder).recipe)
    assert not refiner.state_dict()
