"""Building SAM: the same features as segment-anything's own, and clear words where it fails."""

from __future__ import annotations

import dataclasses
import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmm_core.errors import WeightsError
from flmm_core.pipeline.refiners import sam_model as sam
from flmm_core.pipeline.refiners.sam_attention import fuse
from flmm_core.pipeline.refiners.sam_model import (
    PARTS,
    SamParts,
    SamShape,
    build_sam,
    save_sam,
)
from tests.heads import SMALL_SAM, small_sam

OTHER_SAM = dataclasses.replace(SMALL_SAM, embed_dim=48)


def flat_state(parts: SamParts) -> dict[str, Tensor]:
    """The names of Meta's own files."""
    return {
        f"{part}.{key}": value
        for part in PARTS
        for key, value in getattr(parts, part).state_dict().items()
    }


def features(encoder: nn.Module, shape: SamShape) -> Tensor:
    side = shape.image_size
    pictures = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return encoder.eval()(pictures)  # type: ignore[no-any-return]


@pytest.fixture
def reduced(monkeypatch: pytest.MonkeyPatch) -> None:
    """Official sizes, but small; everything else is the real path."""
    sizes = {
        "vit_b": sam.OfficialSam(SMALL_SAM, "sam_vit_b_01ec64.pth"),
        "vit_l": sam.OfficialSam(OTHER_SAM, "sam_vit_l_0b3195.pth"),
    }
    monkeypatch.setattr(sam, "OFFICIAL", sizes)


@pytest.fixture
def meta_file(tmp_path: Path) -> Path:
    path = tmp_path / "sam_vit_b_01ec64.pth"
    torch.save(flat_state(small_sam()), path)
    return path


def test_an_official_file_gives_segment_anythings_features(reduced: None, meta_file: Path) -> None:
    theirs, ours = small_sam(), build_sam("vit_b", meta_file)
    wanted = features(theirs.image_encoder, SMALL_SAM)
    fuse(ours.image_encoder)
    apart = (features(ours.image_encoder, SMALL_SAM) - wanted).abs().max()
    assert apart <= 1e-4 * wanted.abs().max()
    for part in ("prompt_encoder", "mask_decoder"):
        state = getattr(ours, part).state_dict()
        for key, value in getattr(theirs, part).state_dict().items():
            assert torch.equal(state[key], value), key


@pytest.mark.parametrize(
    ("key", "prefix"),
    [("", "module."), ("model", ""), ("state_dict", "sam."), ("model", "module.")],
)
def test_a_fine_tune_is_read_as_training_scripts_save_it(
    reduced: None, meta_file: Path, key: str, prefix: str
) -> None:
    wanted = flat_state(build_sam("vit_b", meta_file))
    state = {f"{prefix}{name}": value for name, value in torch.load(meta_file).items()}
    torch.save({key: state, "epoch": 3} if key else state, meta_file)
    found = flat_state(build_sam("vit_b", meta_file))
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_weights_that_are_no_numbers_are_refused(reduced: None, meta_file: Path) -> None:
    state = torch.load(meta_file)
    state["mask_decoder.mask_tokens.weight"][0, 0] = torch.nan
    torch.save(state, meta_file)
    assert "mask_decoder.mask_tokens.weight holds values that are not finite" in failure(
        "vit_b", meta_file
    )


def test_an_official_sam_is_whole_float32_and_in_evaluation_mode(
    reduced: None, meta_file: Path
) -> None:
    torch.save({k: v.half() for k, v in torch.load(meta_file).items()}, meta_file)
    parts = build_sam("vit_b", meta_file)
    for module in (parts.image_encoder, parts.prompt_encoder, parts.mask_decoder):
        assert not module.training
        for value in module.state_dict().values():
            assert value.dtype is torch.float32
            assert value.device.type == "cpu"


@pytest.mark.parametrize("name", ["vit_b", "vit_l", "vit_h"])
def test_the_official_sizes_are_segment_anythings(name: str) -> None:
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        theirs = sam_model_registry[name]()
        ours = sam.build_untrained_sam(sam.OFFICIAL[name].shape)
    for part in PARTS:
        assert shapes(getattr(ours, part)) == shapes(getattr(theirs, part))
    windows = [block.window_size for block in ours.image_encoder.blocks]
    assert windows == [block.window_size for block in theirs.image_encoder.blocks]


def shapes(module: nn.Module) -> dict[str, torch.Size]:
    return {key: value.shape for key, value in module.state_dict().items()}


@pytest.mark.slow
def test_the_real_vit_b_gives_segment_anythings_features(tmp_path: Path) -> None:
    from segment_anything import sam_model_registry

    torch.manual_seed(0)
    theirs = sam_model_registry["vit_b"]()
    with torch.no_grad():
        for key, value in theirs.image_encoder.named_parameters():
            if "rel_pos" in key or "pos_embed" in key:
                value.normal_(std=0.1)
    torch.save(theirs.state_dict(), tmp_path / "vit_b.pth")
    ours = build_sam("vit_b", tmp_path / "vit_b.pth")
    read = ours.image_encoder.state_dict()
    for key, value in theirs.image_encoder.state_dict().items():
        assert torch.equal(read.pop(key), value), key
    assert not read
    fuse(ours.image_encoder)
    for encoder in (ours.image_encoder, theirs.image_encoder):
        del encoder.blocks[3:]  # the others are as these: two with windows, one global
    wanted = features(theirs.image_encoder, ours.shape)
    apart = (features(ours.image_encoder, ours.shape) - wanted).abs().max()
    assert apart <= 1e-4 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_saved_sam_is_read_back(tmp_path: Path, dtype: torch.dtype) -> None:
    parts = small_sam()
    save_sam(tmp_path / "deep" / "er", parts, dtype)
    back = build_sam("tiny", tmp_path / "deep" / "er")
    assert back.shape == parts.shape
    ours, theirs = flat_state(back), flat_state(parts)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        assert value.dtype is torch.float32
        assert torch.equal(value, theirs[key].to(dtype).float()), key


def test_a_config_needs_only_what_the_tiny_sam_says(tmp_path: Path) -> None:
    save_sam(tmp_path, small_sam(dataclasses.replace(SMALL_SAM, relative_positions=False)))
    config = json.loads((tmp_path / "config.json").read_text())
    del config["relative_positions"], config["global_blocks"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "window_size": 0}))
    assert build_sam("tiny", tmp_path).shape.window_size == 0


def test_importing_them_is_free() -> None:
    code = (
        "import sys\n"
        "from flmm_core.pipeline.refiners import sam_model, sam2_model\n"
        "assert not {'segment_anything', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# --- what goes wrong ---------------------------------------------------------------------------


REPAIR = (
    "Download sam_vit_b_01ec64.pth from "
    "https://github.com/facebookresearch/segment-anything#model-checkpoints and pass it with "
    "--refiner-weights PATH, or use --refiner sam:tiny."
)


def failure(name: str, weights: Path | None) -> str:
    with pytest.raises(WeightsError) as caught:
        build_sam(name, weights)
    assert caught.value.exit_code == 3
    return str(caught.value)


def test_missing_weights_name_the_download_page(tmp_path: Path) -> None:
    assert failure("vit_b", None) == f"SAM 'vit_b' needs its weights.\nNone given.\n{REPAIR}"
    path = tmp_path / "nowhere.pth"
    assert failure("vit_b", path) == (
        f"SAM 'vit_b' cannot be read from '{path}'.\nNo such file.\n{REPAIR}"
    )


def test_a_truncated_file_is_said_to_be_one(reduced: None, meta_file: Path) -> None:
    meta_file.write_bytes(meta_file.read_bytes()[:5000])
    assert "The file is truncated or holds no PyTorch weights" in failure("vit_b", meta_file)
    meta_file.write_bytes(b"")
    assert "The file is truncated or holds no PyTorch weights" in failure("vit_b", meta_file)


@pytest.mark.parametrize("content", [{"model": torch.zeros(2)}, [1, 2], {"step": 3}, {1: 2}])
def test_a_foreign_file_is_said_to_be_one(reduced: None, meta_file: Path, content: object) -> None:
    torch.save(content, meta_file)
    assert "The file does not hold one of Meta's SAMs." in failure("vit_b", meta_file)


def test_a_pickle_that_runs_code_is_refused(reduced: None, meta_file: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (tmp_path / "ran",)  # type: ignore[return-value]

    torch.save({"image_encoder.pos_embed": Bomb()}, meta_file)
    assert "truncated or holds no PyTorch weights" in failure("vit_b", meta_file)
    assert not (tmp_path / "ran").exists()


def test_another_size_is_named(reduced: None, meta_file: Path) -> None:
    assert failure("vit_l", meta_file) == (
        f"SAM 'vit_l' cannot be read from '{meta_file}'.\n"
        "The file holds an encoder of width 32: it is 'vit_b'.\n"
        "Use --refiner sam:vit_b."
    )


def test_a_file_that_lacks_a_tensor_does_not_fit(reduced: None, meta_file: Path) -> None:
    state = flat_state(small_sam())
    del state["mask_decoder.iou_token.weight"]
    state["prompt_encoder.no_mask_embed.weight"] = torch.zeros(1, 3)
    state["image_encoder.extra"] = torch.zeros(1)
    state["more"] = torch.zeros(1)
    torch.save(state, meta_file)
    message = failure("vit_b", meta_file)
    assert message.startswith(f"The weights in '{meta_file}' do not fit the SAM 'vit_b'.\n4 diff")
    assert "unexpected image_encoder.extra" in message
    assert "prompt_encoder.no_mask_embed.weight is (1, 3) instead of (1, 16)" in message
    assert "missing mask_decoder.iou_token.weight" in message
    assert "and 1 more" in message


def test_a_folder_that_is_no_sam_is_said_to_be_none(tmp_path: Path) -> None:
    assert "FileNotFoundError" in failure("tiny", tmp_path)
    save_sam(tmp_path, small_sam())
    weights = tmp_path / "model.safetensors"
    whole, config = weights.read_bytes(), (tmp_path / "config.json").read_text()

    weights.write_bytes(whole[: len(whole) // 2])
    assert f"The SAM in '{tmp_path}' cannot be read." in failure("tiny", tmp_path)
    weights.write_bytes(b"")
    assert f"The SAM in '{tmp_path}' cannot be read." in failure("tiny", tmp_path)
    weights.write_bytes(whole)

    others = ("2", -1, 10**9, None, [2])
    broken_depths = [config.replace('"depth": 2', f'"depth": {json.dumps(x)}') for x in others]
    uneven = config.replace('"decoder_heads": 2', '"decoder_heads": 3')
    for broken in ("{", "[]", "{}", "[" * 100_000, uneven, *broken_depths):
        (tmp_path / "config.json").write_text(broken)
        assert f"The SAM in '{tmp_path}' cannot be read." in failure("tiny", tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"depth": 2', '"depth": 3'))
    assert "missing image_encoder.blocks.2" in failure("tiny", tmp_path)
    (tmp_path / "config.json").write_text(config.replace('"embed_dim": 32', '"embed_dim": 16384'))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert "instead of (1, 8, 8, 16384)" in failure("tiny", tmp_path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10  # KiB, not 20 GB
    (tmp_path / "config.json").write_text(config)

    state = load_file(weights)
    save_file({**state, "head.weight": torch.zeros(1)}, weights)
    assert "1 differences: unexpected head.weight (1,)." in failure("tiny", tmp_path)
