"""Building SAM: the official sizes with Meta's files, and small ones from a folder.

Prompt encoder and mask decoder are segment-anything's own. The image encoder of an official size
is timm's, which gives the same features faster; timm is imported only when one is built.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmm_core.errors import UsageError, WeightsError, did_you_mean

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder

logger = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
TINY_FOLDER = Path(__file__).parents[2] / "assets" / "tiny_sam"
DOWNLOAD_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"
PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class SamShape:
    """Sizes of a SAM; what a small one's `config.json` holds.

    Attributes:
        image_size: Side in pixels of the square that the encoder sees.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the encoder.
        depth: Blocks of the encoder.
        num_heads: Attention heads of the encoder.
        window_size: Side in patches of the attention windows; 0 attends everywhere.
        out_chans: E, the width of the image's embedding and of the prompts.
        decoder_depth: Blocks of the mask decoder's transformer.
        decoder_heads: Its attention heads.
        decoder_mlp: Width of its MLPs.
        iou_head_hidden: Width of the head that predicts a mask's quality.
        global_blocks: Blocks without windows.
        relative_positions: Whether the encoder adds relative positions to its attention.
    """

    image_size: int
    patch_size: int
    embed_dim: int
    depth: int
    num_heads: int
    window_size: int
    out_chans: int
    decoder_depth: int
    decoder_heads: int
    decoder_mlp: int
    iou_head_hidden: int
    global_blocks: tuple[int, ...] = ()
    relative_positions: bool = False

    @property
    def grid(self) -> int:
        """g, patches a side."""
        return self.image_size // self.patch_size


def _official(embed_dim: int, depth: int, num_heads: int) -> SamShape:
    """A size of Meta's; every quarter of the blocks ends with one without windows."""
    quarter = depth // 4
    return SamShape(
        image_size=1024, patch_size=16, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        window_size=14, out_chans=256, decoder_depth=2, decoder_heads=8, decoder_mlp=2048,
        iou_head_hidden=256, relative_positions=True,
        global_blocks=tuple(range(quarter - 1, depth, quarter)),
    )  # fmt: skip


@dataclass(frozen=True)
class OfficialSam:
    """One of Meta's sizes: its shape and its file."""

    shape: SamShape
    file: str


OFFICIAL: Mapping[str, OfficialSam] = {
    "vit_b": OfficialSam(_official(768, 12, 12), "sam_vit_b_01ec64.pth"),
    "vit_l": OfficialSam(_official(1024, 24, 16), "sam_vit_l_0b3195.pth"),
    "vit_h": OfficialSam(_official(1280, 32, 16), "sam_vit_h_4b8939.pth"),
}


@dataclass(frozen=True)
class SamParts:
    """A SAM in pieces, on the CPU in float32.

    Attributes:
        name: "tiny", "vit_b", ...
        shape: Its sizes.
        image_encoder: (B, 3, S, S) normalised images -> (B, E, g, g).
        prompt_encoder: segment-anything's.
        mask_decoder: segment-anything's.
        pixel_mean: Of R, G, B in 0..255; subtracted before the encoder.
        pixel_std: Divided by after that.
    """

    name: str
    shape: SamShape
    image_encoder: nn.Module
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder
    pixel_mean: tuple[float, float, float] = field(default=PIXEL_MEAN)
    pixel_std: tuple[float, float, float] = field(default=PIXEL_STD)

    @property
    def image_size(self) -> int:
        """S, the side in pixels of the square that the encoder sees."""
        return self.shape.image_size


class NoEncoder(nn.Module):
    """Stands where the image encoder was left out."""

    def forward(self, pictures: Tensor) -> Tensor:
        """Raises `RuntimeError`."""
        raise RuntimeError("SAM's image encoder was not loaded")


def build_sam(name: str = "tiny", weights: Path | None = None, *, encoder: bool = True) -> SamParts:
    """Build a trained SAM.

    Args:
        name: "tiny", "vit_b", "vit_l" or "vit_h".
        weights: Meta's .pth file for the official sizes; for "tiny" a folder with `config.json`
            and `model.safetensors`, by default the one in this package.
        encoder: Whether with the image encoder; without it, only encoded images can be refined.

    Raises:
        UsageError: The name is unknown.
        WeightsError: The weights are missing, truncated or of something else.
    """
    if name == "tiny":
        return load_sam(weights or TINY_FOLDER, encoder=encoder)
    if name not in OFFICIAL:
        known = ("tiny", *OFFICIAL)
        raise UsageError(
            f"Unknown SAM '{name}'.",
            found=f"Known: {', '.join(known)}.",
            repair=did_you_mean(name, known),
        )
    official = OFFICIAL[name]
    state = _read_official(name, weights)
    # Nothing is initialised that the file overwrites at once.
    with torch.device("meta"):
        prompt_encoder, mask_decoder = _build_prompt_parts(official.shape)
        image_encoder = _build_timm_encoder(official.shape)
    parts = SamParts(name, official.shape, image_encoder, prompt_encoder, mask_decoder)
    return _fill(parts, state, str(weights), encoder)


def build_untrained_sam(shape: SamShape, name: str = "tiny") -> SamParts:
    """A SAM of segment-anything's own classes with random weights, for pretraining."""
    from segment_anything.modeling import ImageEncoderViT

    image_encoder = ImageEncoderViT(
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        out_chans=shape.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=shape.relative_positions,
        window_size=shape.window_size,
        global_attn_indexes=shape.global_blocks,
    )
    prompt_encoder, mask_decoder = _build_prompt_parts(shape)
    return SamParts(name, shape, image_encoder, prompt_encoder, mask_decoder)


def load_sam(folder: Path, name: str = "tiny", *, encoder: bool = True) -> SamParts:
    """Read what `save_sam` wrote; raises `WeightsError` where that fails.

    Random weights are drawn for all parts whether or not `encoder` is wanted, so that what is
    drawn after them is the same.
    """
    asked = f"The SAM in '{folder}' cannot be read."
    repair = "Give a folder that save_sam wrote, or leave the weights out to use the tiny SAM."
    if folder == TINY_FOLDER:
        repair = "Install flmm again: its own tiny SAM is damaged."
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        shape = SamShape(**config | {"global_blocks": tuple(config.get("global_blocks", ()))})
        state = load_file(folder / "model.safetensors")
        parts = build_untrained_sam(shape, name)
    except OSError as error:
        found = f"{type(error).__name__}: {error}."
        raise WeightsError(asked, found=found, repair=repair) from error
    except (ValueError, TypeError, AttributeError, ArithmeticError, SafetensorError) as error:
        found = f"config.json or model.safetensors is broken or of something else ({error})."
        raise WeightsError(asked, found=found, repair=repair) from error
    return _fill(parts, state, str(folder), encoder)


def save_sam(folder: Path, parts: SamParts, dtype: torch.dtype = torch.float32) -> None:
    """Write `config.json` and `model.safetensors` (weights in `dtype`) for `load_sam`.

    Only for a SAM of segment-anything's own classes (`build_untrained_sam`, `load_sam`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(dataclasses.asdict(parts.shape), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    state = {
        f"{part}.{key}": value.detach().to("cpu", dtype).contiguous()
        for part in PARTS
        for key, value in getattr(parts, part).state_dict().items()
    }
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def _build_prompt_parts(shape: SamShape) -> tuple[PromptEncoder, MaskDecoder]:
    from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer

    prompt_encoder = PromptEncoder(
        embed_dim=shape.out_chans,
        image_embedding_size=(shape.grid, shape.grid),
        input_image_size=(shape.image_size, shape.image_size),
        mask_in_chans=16,
    )
    transformer = TwoWayTransformer(
        depth=shape.decoder_depth,
        embedding_dim=shape.out_chans,
        num_heads=shape.decoder_heads,
        mlp_dim=shape.decoder_mlp,
    )
    mask_decoder = MaskDecoder(
        transformer_dim=shape.out_chans,
        transformer=transformer,
        iou_head_hidden_dim=shape.iou_head_hidden,
    )
    return prompt_encoder, mask_decoder


def _build_timm_encoder(shape: SamShape) -> nn.Module:
    import timm

    encoder: nn.Module = timm.create_model(
        "samvit_base_patch16",
        img_size=shape.image_size,
        patch_size=shape.patch_size,
        embed_dim=shape.embed_dim,
        depth=shape.depth,
        num_heads=shape.num_heads,
        window_size=shape.window_size,
        global_attn_indexes=shape.global_blocks,
        use_rel_pos=shape.relative_positions,
        neck_chans=shape.out_chans,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),  # as segment-anything; timm's default is 1e-5
        # without classes and pooling forward() gives the features (B, E, g, g)
        num_classes=0,
        global_pool="",
    )
    return encoder


def _read_official(name: str, weights: Path | None) -> dict[str, Tensor]:
    """Meta's flat state dict, whatever went wrong said as a `WeightsError`."""
    file = OFFICIAL[name].file
    repair = (
        f"Download {file} from {DOWNLOAD_PAGE} and give it with --refiner-weights PATH, "
        "or use --refiner sam:tiny."
    )
    if weights is None:
        raise WeightsError(f"SAM '{name}' needs its weights.", found="None given.", repair=repair)
    if not weights.is_file():
        raise WeightsError(
            f"SAM '{name}' cannot be read from '{weights}'.", found="No such file.", repair=repair
        )
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can raise anything
        raise WeightsError(
            f"SAM '{name}' cannot be read from '{weights}'.",
            found=f"The file is truncated or no PyTorch weights ({type(error).__name__}).",
            repair=repair,
        ) from error
    if not _is_sam_state(state):
        raise WeightsError(
            f"SAM '{name}' cannot be read from '{weights}'.",
            found="The file holds something else than a SAM of Meta's.",
            repair=repair,
        )
    width = state["image_encoder.pos_embed"].shape[-1]
    if width != OFFICIAL[name].shape.embed_dim:
        others = [key for key, other in OFFICIAL.items() if other.shape.embed_dim == width]
        raise WeightsError(
            f"SAM '{name}' cannot be read from '{weights}'.",
            found=f"The file holds an encoder of width {width}"
            + (f": it is '{others[0]}'." if others else "."),
            repair=f"Use --refiner sam:{others[0]}." if others else repair,
        )
    return dict(state)


def _is_sam_state(state: Any) -> bool:
    return (
        isinstance(state, Mapping)
        and all(isinstance(value, Tensor) for value in state.values())
        and all(any(key.startswith(part) for key in state) for part in PARTS)
        and "image_encoder.pos_embed" in state
    )


def _fill(
    parts: SamParts, state: Mapping[str, Tensor], source: str, with_encoder: bool
) -> SamParts:
    """Give every part its weights in float32, insisting on all names and shapes."""
    given = {part: _under(f"{part}.", state) for part in PARTS}
    if parts.name in OFFICIAL:
        encoder = given["image_encoder"]
        given["image_encoder"] = {k.replace(".mlp.lin", ".mlp.fc"): v for k, v in encoder.items()}
    problems: list[str] = []
    for part, tensors in given.items():
        wanted = getattr(parts, part).state_dict()
        problems += _differences(part, wanted, tensors)
    problems += [
        f"unexpected {key}" for key in state if not key.startswith(tuple(f"{p}." for p in PARTS))
    ]
    if problems:
        raise WeightsError(
            f"The weights in '{source}' do not fit the SAM '{parts.name}'.",
            found=f"{len(problems)} differences: {_some(problems)}.",
            repair=f"Use the file of the same size from {DOWNLOAD_PAGE}."
            if parts.name in OFFICIAL
            else "Use config.json and model.safetensors of the same SAM.",
        )
    if not with_encoder:
        parts = dataclasses.replace(parts, image_encoder=NoEncoder())
        del given["image_encoder"]
    for part, tensors in given.items():
        module = getattr(parts, part)
        module.load_state_dict({k: v.float() for k, v in tensors.items()}, assign=True)
        module.eval()
    logger.info("SAM '%s' read from %s", parts.name, source)
    return parts


def _under(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


def _differences(
    part: str, wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]
) -> Iterable[str]:
    for key in wanted:
        if key not in given:
            yield f"missing {part}.{key}"
        elif given[key].shape != wanted[key].shape:
            shapes = f"{tuple(given[key].shape)} instead of {tuple(wanted[key].shape)}"
            yield f"{part}.{key} is {shapes}"
    yield from (f"unexpected {part}.{key}" for key in given if key not in wanted)


def _some(problems: list[str], most: int = 3) -> str:
    rest = len(problems) - most
    return "; ".join(problems[:most]) + (f"; and {rest} more" if rest > 0 else "")
