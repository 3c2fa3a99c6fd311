"""Building SAM 2: from transformers' format and from Meta's, and clear words where it fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Sam2Model, Sam2VideoConfig

from flmm_core.errors import WeightsError
from flmm_core.pipeline.refiners import Sam2Options
from flmm_core.pipeline.refiners import sam2_model as sam2
from flmm_core.pipeline.refiners.sam2 import Sam2Encoder, Sam2Refiner
from flmm_core.pipeline.refiners.sam2_model import build_sam2, check_sam2, save_sam2
from tests.heads import small_sam2, small_sam2_config, small_sam2_model

META = Path(__file__).parents[2] / "fixtures" / "sam2"
SMALL = sam2.OFFICIAL["hiera_t"]._replace(width=4, blocks=(1, 1, 2, 1))


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """An official size, but small; everything else is the real path."""
    sizes = {**sam2.OFFICIAL, "hiera_t": SMALL}
    monkeypatch.setattr(sam2, "OFFICIAL", sizes)
    monkeypatch.setattr(sam2, "official_config", lambda name: small_sam2_config())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    small_sam2_model().save_pretrained(tmp_path / "sam2")
    return tmp_path / "sam2"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "sam2.1_hiera_tiny.pt"
    path.write_bytes((META / "checkpoint.pt").read_bytes())
    return path


def state_of(parts: sam2.Sam2Parts) -> dict[str, Tensor]:
    return {
        f"{prefix}.{key}": value
        for prefix, module in parts.modules().items()
        for key, value in module.state_dict().items()
    }


# --- Meta's file -------------------------------------------------------------------------------


def test_metas_file_gives_what_metas_code_computes(reduced: None) -> None:
    expected = load_file(META / "expected.safetensors")
    check_sam2("hiera_t", META / "checkpoint.pt")
    parts = build_sam2("hiera_t", META / "checkpoint.pt")
    encoder = Sam2Encoder(parts)
    with torch.no_grad():
        found = encoder.module(expected["pixels"])
        for ours, name in zip(found, ("embedding", "fine", "middle"), strict=True):
            torch.testing.assert_close(ours, expected[name], atol=1e-5, rtol=1e-5)
        for name in ("one", "three"):
            refiner = Sam2Refiner(parts, text=False, multimask=name == "three")
            embedding, *details = found
            given = embedding, expected["masks"], expected["boxes"], None, details
            assert (refiner._decode(*given) - expected[name]).abs().max() <= 1e-5


@pytest.mark.parametrize(("key", "prefix"), [("", "module."), ("state_dict", "sam2."), ("", "")])
def test_a_fine_tune_is_read_as_training_scripts_save_it(
    reduced: None, checkpoint: Path, key: str, prefix: str
) -> None:
    wanted = state_of(build_sam2("hiera_t", checkpoint))
    state = {f"{prefix}{k}": v.half() for k, v in torch.load(checkpoint)["model"].items()}
    torch.save({key: state} if key else state, checkpoint)
    found = state_of(build_sam2("hiera_t", checkpoint))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value.half().float()) for name, value in wanted.items())


@pytest.mark.parametrize("name", sam2.OFFICIAL)
def test_the_official_sizes_are_transformers_defaults_but_for_what_they_say(name: str) -> None:
    size, config = sam2.OFFICIAL[name], sam2.official_config(name)
    hiera = config.vision_config.backbone_config
    assert (hiera.hidden_size, sum(hiera.blocks_per_stage)) == size.encoder
    with torch.device("meta"):
        model = Sam2Model(config)
    # As Meta's page says: 38.9, 46, 80.8 and 224.4 million with the memory of the video model.
    millions = sum(value.numel() for value in model.parameters()) / 1e6
    assert millions == pytest.approx(
        {"hiera_t": 38.9, "hiera_s": 46, "hiera_b+": 80.8, "hiera_l": 224.4}[name] - 7, abs=1.5
    )
    assert max(hiera.global_attention_blocks) < sum(hiera.blocks_per_stage)


# --- transformers' folder ----------------------------------------------------------------------


def test_a_folder_gives_transformers_own_weights(folder: Path) -> None:
    check_sam2("tiny", folder)
    found, model = state_of(build_sam2("tiny", folder)), small_sam2_model()
    wanted = {k: v for k, v in model.state_dict().items() if k != "no_memory_embedding"}
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert all(value.dtype is torch.float32 for value in found.values())


def test_a_folder_of_the_video_model_is_read(folder: Path) -> None:
    """What Meta put on the hub is of that type, with weights that an image does not need."""
    config = json.loads((folder / "config.json").read_bytes())
    parts = ("vision_config", "prompt_encoder_config", "mask_decoder_config")
    video = Sam2VideoConfig(**{part: config[part] for part in parts})
    video.save_pretrained(folder)
    assert json.loads((folder / "config.json").read_bytes())["model_type"] == "sam2_video"
    weights = folder / "model.safetensors"
    more = {"memory_encoder.projection.weight": torch.zeros(3), "no_object_pointer": torch.ones(1)}
    save_file(load_file(weights) | more, weights, metadata={"format": "pt"})
    check_sam2("tiny", folder)
    assert "no_object_pointer" not in state_of(build_sam2("tiny", folder))


@pytest.mark.slow
def test_a_real_hiera_gives_transformers_own_masks(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Sam2Model(sam2.official_config("hiera_t")).eval()
    with torch.no_grad():
        for key, value in model.named_parameters():
            if "embed" in key or "token" in key:
                value.normal_(std=0.5)
    model.save_pretrained(tmp_path)
    options = Sam2Options(size="hiera_t", text=False)
    Sam2Refiner.check(options, tmp_path)
    encoder, refiner = Sam2Refiner.load(options, weights=tmp_path)
    model.mask_decoder.dynamic_multimask_via_stability = False
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    prepared = encoder.prepare(Image.fromarray(noise))
    boxes, masks = torch.tensor([[10.0, 20, 500, 700]]), torch.randn(1, 1, 256, 256) * 5
    (encoded,) = encoder.encode([prepared])
    embedding, *details = (each[None] for each in encoded.tensors)
    with torch.no_grad():
        found = refiner._decode(embedding, masks, boxes, None, details)
        expected = model(
            pixel_values=encoder.square(prepared)[None],
            input_boxes=boxes[None],
            input_masks=masks,
            multimask_output=False,
        ).pred_masks[:, 0]
    assert expected.std() > 0.01
    assert (found - expected).abs().max() <= 1e-5


def test_a_saved_sam2_is_read_by_both(tmp_path: Path) -> None:
    parts = small_sam2()
    expected = state_of(parts)
    save_sam2(tmp_path, parts, torch.float16)
    back = state_of(build_sam2("tiny", tmp_path))
    theirs, report = Sam2Model.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())
    for key, value in expected.items():
        assert torch.equal(back[key], value.half().float()), key
        assert torch.equal(theirs.state_dict()[key].float(), back[key]), key


def test_loading_draws_no_random_numbers() -> None:
    """The weights of a fresh head, which are drawn next, must stay those of a seed."""
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    encoder, refiner = Sam2Refiner.load(Sam2Options(text=False, multimask=True, half=True))
    assert torch.equal(torch.rand(1), expected)
    assert encoder.half
    assert (refiner.mask, refiner.box, refiner.uses_text) == (True, True, False)
    assert refiner.multimask


# --- what goes wrong ---------------------------------------------------------------------------

REPAIR = (
    "Pass --refiner-weights facebook/sam2.1-hiera-tiny (hub id or folder) or Meta's "
    "sam2.1_hiera_tiny.pt, or use --refiner sam2:tiny."
)


def failure(name: str, weights: Path | None) -> str:
    """The one message of check and load."""
    said = set()
    for ask in (check_sam2, build_sam2):
        with pytest.raises(WeightsError) as caught:
            ask(name, weights)
        assert caught.value.exit_code == 3
        said.add(str(caught.value))
    (message,) = said
    return message


def test_missing_weights_say_where_they_are(tmp_path: Path) -> None:
    assert failure("hiera_t", None) == f"SAM 2 'hiera_t' needs its weights.\nNone given.\n{REPAIR}"
    for path in (tmp_path / "nowhere", Path("some/sam2.1_hiera_tiny.pt")):
        assert failure("hiera_t", path) == (
            f"SAM 2 'hiera_t' cannot be read from '{path}'.\n"
            f"There is no such file or folder.\n{REPAIR}"
        )


def test_what_is_not_on_the_hub_is_said_so() -> None:
    message = failure("hiera_t", Path("nobody/no-sam2"))
    assert message.startswith("SAM 2 'hiera_t' cannot be read from 'nobody/no-sam2'.")
    assert "It is not in the local cache" in message


def test_a_file_does_not_say_its_sizes(checkpoint: Path) -> None:
    assert "which does not say the sizes of the model" in failure("tiny", checkpoint)


@pytest.mark.parametrize(
    "content",
    [b"", b"PK\3\4 cut off", {"model": torch.zeros(2)}, [1, 2], {}, {"step": 3}, "sam"],
)
def test_a_foreign_or_truncated_file_is_said_to_be_one(checkpoint: Path, content: Any) -> None:
    if isinstance(content, bytes):
        checkpoint.write_bytes(content)
        assert "truncated or holds no PyTorch weights" in failure("hiera_t", checkpoint)
        return
    state = {"image_encoder.pos_embed": torch.zeros(1, 64, 64, 768)}  # of the first SAM
    torch.save(state if content == "sam" else content, checkpoint)
    assert "does not hold one of Meta's SAM 2 models" in failure("hiera_t", checkpoint)


def test_another_size_is_named(reduced: None, checkpoint: Path, folder: Path) -> None:
    for source in (checkpoint, folder):
        assert failure("hiera_l", source) == (
            f"SAM 2 'hiera_l' cannot be read from '{source}'.\n"
            "The encoder has width 4 and 5 blocks: it is 'hiera_t'.\n"
            "Use --refiner sam2:hiera_t."
        )


def test_a_size_that_is_not_official_is_said_so(folder: Path) -> None:
    assert failure("hiera_t", folder).endswith(
        "as no official size has.\nUse --refiner sam2:tiny with a folder."
    )


def test_weights_of_other_names_or_shapes_do_not_fit(
    reduced: None, checkpoint: Path, folder: Path
) -> None:
    meta, weights = torch.load(checkpoint)["model"], folder / "model.safetensors"
    del meta["sam_mask_decoder.iou_token.weight"]
    meta["sam_prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 3)
    meta["more"] = torch.zeros(1)
    torch.save({"model": meta}, checkpoint)
    state = load_file(weights)
    del state["mask_decoder.iou_token.weight"]
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 3)
    save_file({**state, "more": torch.zeros(1)}, weights, metadata={"format": "pt"})
    for source in (checkpoint, folder):
        message = failure("hiera_t", source)
        assert message.startswith(f"The weights in '{source}' do not fit the SAM 2 'hiera_t'.\n3 d")
        assert "missing mask_decoder.iou_token.weight (1, 16)" in message
        assert "prompt_encoder.no_mask_embed.weight is (1, 3) instead of (1, 16)" in message
        assert "unexpected more (1,)" in message


def test_weights_that_are_no_numbers_are_refused(
    reduced: None, checkpoint: Path, folder: Path
) -> None:
    state, weights = torch.load(checkpoint), folder / "model.safetensors"
    state["model"]["sam_mask_decoder.mask_tokens.weight"][0, 0] = torch.nan
    torch.save(state, checkpoint)
    other = load_file(weights)
    other["mask_decoder.mask_tokens.weight"][0, 0] = torch.nan
    save_file(other, weights, metadata={"format": "pt"})
    for source in (checkpoint, folder):
        with pytest.raises(WeightsError, match=r"mask_tokens\.weight holds values that are not"):
            build_sam2("hiera_t", source)


def test_a_damaged_packaged_sam2_is_to_be_installed_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sam2, "TINY_FOLDER", folder)
    (folder / "config.json").write_text("{")
    assert failure("tiny", None).endswith("Reinstall flmm: its packaged tiny SAM 2 is damaged.")


def test_a_folder_that_is_no_sam2_is_said_to_be_none(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, said = weights.read_bytes(), json.loads(config.read_bytes())

    weights.write_bytes(whole[: len(whole) // 2])
    assert "model.safetensors is damaged" in failure("tiny", folder)
    weights.unlink()
    assert "It has no weights files." in failure("tiny", folder)
    weights.write_bytes(whole)

    for broken in ("{", "[]", "[" * 100_000, "3"):
        config.write_text(broken)
        assert "config.json is corrupt or not a SAM 2's" in failure("tiny", folder)
    config.write_text("{}")
    assert "model_type 'None'; expected: sam2 or sam2_video." in failure("tiny", folder)
    config.write_text(json.dumps({**said, "model_type": "sam"}))
    assert "model_type 'sam'; expected: sam2 or sam2_video." in failure("tiny", folder)
    vision = said["vision_config"]
    levels = {**vision, "backbone_feature_sizes": [[9, 9], [8, 8], [4, 4]]}
    config.write_text(json.dumps({**said, "vision_config": levels}))
    assert "backbone_feature_sizes are not [[16, 16], [8, 8], [4, 4]]" in failure("tiny", folder)
    huge = {**said["mask_decoder_config"], "mlp_dim": 10**7}
    config.write_text(json.dumps({**said, "mask_decoder_config": huge}))
    assert "instead of (10000000, 16)" in failure("tiny", folder)
    config.unlink()
    assert "The folder has no config.json." in failure("tiny", folder)
