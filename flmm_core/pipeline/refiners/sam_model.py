"""Build SAM of segment-anything's classes, from Meta's files or from a folder of a small one."""

from __future__ import annotations

import dataclasses
import json
import logging
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from flmm_core.errors import WeightsError, first_problem
from flmm_core.pipeline.fit import check_weights

if TYPE_CHECKING:
    from segment_anything.modeling import MaskDecoder, PromptEncoder

logger = logging.getLogger(__name__)

PARTS = ("image_encoder", "prompt_encoder", "mask_decoder")
TINY_FOLDER = Path(__file__).parents[2] / "assets" / "tiny_sam"
DOWNLOAD_PAGE = "https://github.com/facebookresearch/segment-anything#model-checkpoints"


Size = Annotated[int, Field(ge=1, le=16384)]
Count = Annotated[int, Field(ge=1, le=256)]


@dataclass(frozen=True)
class SamShape:
    """Sizes of a SAM; the contents of a small one's `config.json`.

    Attributes:
        image_size: S, side in pixels of the encoder's square input.
        patch_size: Side of a patch in pixels.
        embed_dim: Width of the image encoder; `depth` and `num_heads` are its, too.
        window_size: Side in patches of its attention windows; 0 means global attention.
        out_chans: E, width of image embeddings and prompts.
        iou_head_hidden: Width of the head that predicts mask quality.
        global_blocks: Blocks of the image encoder with global attention.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    image_size: Size
    patch_size: Size
    embed_dim: Size
    depth: Count
    num_heads: Count
    window_size: Annotated[int, Field(ge=0, le=16384)]
    out_chans: Size
    decoder_depth: Count
    decoder_heads: Count
    decoder_mlp: Size
    iou_head_hidden: Size
    global_blocks: tuple[int, ...] = ()
    relative_positions: bool = False

    @property
    def grid(self) -> int:
        """g, patches per side."""
        return self.image_size // self.patch_size


def _official(embed_dim: int, depth: int, num_heads: int) -> SamShape:
    """One of Meta's sizes; every quarter of the blocks ends with global attention."""
    quarter = depth // 4
    return SamShape(
        image_size=1024, patch_size=16, embed_dim=embed_dim, depth=depth, num_heads=num_heads,
        window_size=14, out_chans=256, decoder_depth=2, decoder_heads=8, decoder_mlp=2048,
        iou_head_hidden=256, relative_positions=True,
        global_blocks=tuple(range(quarter - 1, depth, quarter)),
    )  # fmt: skip


class OfficialSam(NamedTuple):
    """One of Meta's sizes: shape and file name."""

    shape: SamShape
    file: str


OFFICIAL: Mapping[str, OfficialSam] = {
    "vit_b": OfficialSam(_official(768, 12, 12), "sam_vit_b_01ec64.pth"),
    "vit_l": OfficialSam(_official(1024, 24, 16), "sam_vit_l_0b3195.pth"),
    "vit_h": OfficialSam(_official(1280, 32, 16), "sam_vit_h_4b8939.pth"),
}


@dataclass(frozen=True)
class SamParts:
    """The parts of a SAM, on the CPU in float32; `name` is "tiny", "vit_b", ...

    The image encoder takes (B, 3, S, S) normalized images and returns (B, E, g, g).
    """

    name: str
    shape: SamShape
    image_encoder: nn.Module
    prompt_encoder: PromptEncoder
    mask_decoder: MaskDecoder


def build_sam(name: str = "tiny", weights: Path | None = None) -> SamParts:
    """Build a pretrained SAM.

    Args:
        name: "tiny" or a key of `OFFICIAL`.
        weights: Meta's .pth file for an official size; for "tiny" a folder with `config.json`
            and `model.safetensors`, by default the packaged one.

    Raises:
        WeightsError: The weights are missing, truncated or not those of this SAM.
    """
    if name == "tiny":
        return _load_folder(weights or TINY_FOLDER)
    state = _read_official(name, weights)
    with torch.device("meta"):  # no initialization: the file overwrites all of it
        parts = build_untrained_sam(OFFICIAL[name].shape, name)
    return _fill(parts, state, str(weights))


def check_sam(name: str, weights: Path | None = None) -> None:
    """What `build_sam` would refuse, in a moment: reads names and shapes, no weights."""
    if name == "tiny":
        _checked_folder(weights or TINY_FOLDER)
        return
    state = _read_official(name, weights, mapped=True)
    _check(_without_values(OFFICIAL[name].shape, name), state, str(weights))


def build_untrained_sam(shape: SamShape, name: str = "tiny") -> SamParts:
    """A SAM with random weights."""
    from segment_anything.modeling import (
        ImageEncoderViT,
        MaskDecoder,
        PromptEncoder,
        TwoWayTransformer,
    )

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
    return SamParts(name, shape, image_encoder, prompt_encoder, mask_decoder)


@cache
def _without_values(shape: SamShape, name: str = "tiny") -> SamParts:
    """To compare sizes before anything is allocated."""
    with torch.device("meta"):
        return build_untrained_sam(shape, name)


def _load_folder(folder: Path) -> SamParts:
    """Read what `save_sam` wrote.

    It draws random weights for all parts before it overwrites them: a seed's random numbers, and
    so the fresh weights of a head, depend on that.
    """
    shape, state = _checked_folder(folder)
    return _fill(build_untrained_sam(shape), state, str(folder))


def _checked_folder(folder: Path) -> tuple[SamShape, dict[str, Tensor]]:
    """The contents of a small SAM's folder, which fit each other."""
    asked = f"The SAM in '{folder}' cannot be read."
    repair = "Give a folder written by save_sam, or no weights to use the packaged tiny SAM."
    if folder == TINY_FOLDER:
        repair = "Reinstall flmm: its packaged tiny SAM is damaged."
    try:
        shape = TypeAdapter(SamShape).validate_json((folder / "config.json").read_bytes())
        state = load_file(folder / "model.safetensors")
        _check(_without_values(shape), state, str(folder))
        return shape, state
    except OSError as error:
        found = f"{type(error).__name__}: {error}."
        raise WeightsError(asked, found=found, repair=repair) from error
    except (ValueError, ArithmeticError, AssertionError, RuntimeError, SafetensorError) as error:
        why = first_problem(error) if isinstance(error, ValidationError) else str(error)
        found = f"config.json or model.safetensors is corrupt or not a SAM's ({why})."
        raise WeightsError(asked, found=found, repair=repair) from error


def save_sam(folder: Path, parts: SamParts, dtype: torch.dtype = torch.float32) -> None:
    """Write `config.json` and `model.safetensors` (weights in `dtype`) for `build_sam`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = json.dumps(dataclasses.asdict(parts.shape), indent=2)
    (folder / "config.json").write_text(config + "\n", encoding="utf-8")
    state = {k: v.detach().to("cpu", dtype).contiguous() for k, v in sam_state(parts).items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def sam_state(parts: SamParts) -> dict[str, Tensor]:
    """All weights, named as in Meta's files."""
    return {
        f"{part}.{key}": value
        for part in PARTS
        for key, value in getattr(parts, part).state_dict().items()
    }


def _read_official(name: str, weights: Path | None, *, mapped: bool = False) -> dict[str, Tensor]:
    """Meta's flat state dict; WeightsError if the file is not one of this size.

    With `mapped`, its values stay on the disk until they are read.
    """
    file = OFFICIAL[name].file
    download = (
        f"Download {file} from {DOWNLOAD_PAGE} and pass it with --refiner-weights PATH, "
        "or use --refiner sam:tiny."
    )

    def failed(found: str, repair: str = download) -> WeightsError:
        asked = f"SAM '{name}' cannot be read from '{weights}'."
        return WeightsError(asked, found=found, repair=repair)

    if weights is None:
        raise WeightsError(f"SAM '{name}' needs its weights.", found="None given.", repair=download)
    if not weights.is_file():
        raise failed("No such file.")
    state = read_checkpoint(weights, "image_encoder.pos_embed", failed, mapped=mapped)
    if not (
        isinstance(state, Mapping)
        and all(isinstance(value, Tensor) for value in state.values())
        and all(any(key.startswith(part) for key in state) for part in PARTS)
        and "image_encoder.pos_embed" in state
    ):
        raise failed("The file does not hold one of Meta's SAMs.")
    width = state["image_encoder.pos_embed"].shape[-1]
    if width != OFFICIAL[name].shape.embed_dim:
        found = f"The file holds an encoder of width {width}"
        for other, official in OFFICIAL.items():
            if official.shape.embed_dim == width:
                raise failed(f"{found}: it is '{other}'.", f"Use --refiner sam:{other}.")
        raise failed(f"{found}.")
    return dict(state)


def read_checkpoint(
    path: Path, known: str, failed: Callable[[str], WeightsError], *, mapped: bool = False
) -> Any:
    """What Meta or a training script saved: weights by name, if it holds any.

    Args:
        path: A file of `torch.save`.
        known: The end of a name that tells what others have before theirs.
        failed: The error with what was found.
        mapped: Leave the values on the disk until they are read.
    """
    try:
        mapped = mapped and zipfile.is_zipfile(path)  # torch.save once wrote other files
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a corrupt pickle can raise anything
        kind = type(error).__name__
        raise failed(f"The file is truncated or holds no PyTorch weights ({kind}).") from error
    return _unwrapped(content, known)


def _unwrapped(content: Any, known: str) -> Any:
    """The weights in what a training script saved: under a key of their own, or behind a prefix.

    `{"model": ...}` and `{"state_dict": ...}` are how fine-tunes are saved; DataParallel writes
    "module." before each name, Lightning the name of its attribute.
    """
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping):
        return content
    first = next((str(name) for name in content if str(name).endswith(known)), known)
    prefix = first.removesuffix(known)
    return {str(name).removeprefix(prefix): value for name, value in content.items()}


def _fill(parts: SamParts, state: Mapping[str, Tensor], source: str) -> SamParts:
    """Give every part its weights in float32; all names and shapes must match."""
    _check(parts, state, source)
    for part in PARTS:
        own = {k: state[f"{part}.{k}"].float() for k in getattr(parts, part).state_dict()}
        getattr(parts, part).load_state_dict(own, assign=True)
        getattr(parts, part).eval()
    logger.debug("SAM '%s' read from %s", parts.name, source)
    return parts


def _check(parts: SamParts, state: Mapping[str, Tensor], source: str) -> None:
    check_weights(
        sam_state(parts),
        state,
        asked=f"The weights in '{source}' do not fit the SAM '{parts.name}'.",
        repair=f"Use the file of the same size from {DOWNLOAD_PAGE}."
        if parts.name in OFFICIAL
        else "Use config.json and model.safetensors of the same SAM.",
    )
