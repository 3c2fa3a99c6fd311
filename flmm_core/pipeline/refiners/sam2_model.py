"""Build SAM 2 of transformers' classes, from its own format or from Meta's checkpoints."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from flmm_core.errors import WeightsError
from flmm_core.pipeline.backbone.weight_files import check_weight_files, weight_files
from flmm_core.pipeline.fit import check_weights
from flmm_core.pipeline.hub import HUB_ID, fetch, split_revision
from flmm_core.pipeline.refiners.sam2_checkpoint import read_meta

logger = logging.getLogger(__name__)

TINY_FOLDER = Path(__file__).parents[2] / "assets" / "tiny_sam2"
MODEL_TYPES = ("sam2", "sam2_video")
HUB_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json")
VIDEO = re.compile(
    r"memory_|mask_downsample|object_pointer_proj|temporal_positional_encoding_projection_layer"
    r"|no_memory_positional_encoding|no_object_pointer|occlusion_spatial_embedding_parameter"
)
"""Tensors of the video model, which a folder of SAM 2 holds, too."""


class OfficialSam2(NamedTuple):
    """One of Meta's sizes: what its config.json says of the encoder, and where its weights are."""

    width: int
    heads: int
    blocks: tuple[int, int, int, int]
    global_blocks: tuple[int, int, int]
    windows: tuple[int, int, int, int]
    background: int
    hub: str
    file: str

    @property
    def encoder(self) -> tuple[int, int]:
        """Width and number of blocks, which tell the sizes apart."""
        return self.width, sum(self.blocks)


OFFICIAL: Mapping[str, OfficialSam2] = {
    "hiera_t": OfficialSam2(
        96, 1, (1, 2, 7, 2), (5, 7, 9), (8, 4, 14, 7), 7,
        "facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt",
    ),
    "hiera_s": OfficialSam2(
        96, 1, (1, 2, 11, 2), (7, 10, 13), (8, 4, 14, 7), 7,
        "facebook/sam2.1-hiera-small", "sam2.1_hiera_small.pt",
    ),
    "hiera_b+": OfficialSam2(
        112, 2, (2, 3, 16, 3), (12, 16, 20), (8, 4, 14, 7), 14,
        "facebook/sam2.1-hiera-base-plus", "sam2.1_hiera_base_plus.pt",
    ),
    "hiera_l": OfficialSam2(
        144, 2, (2, 6, 36, 4), (23, 33, 43), (8, 4, 16, 8), 7,
        "facebook/sam2.1-hiera-large", "sam2.1_hiera_large.pt",
    ),
}  # fmt: skip


class Sam2ImageEncoder(nn.Module):
    """The frozen half of a `Sam2Model`.

    The two convolutions belong to its mask decoder, but read nothing but the image.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.vision_encoder = model.vision_encoder
        self.conv_s0, self.conv_s1 = model.mask_decoder.conv_s0, model.mask_decoder.conv_s1
        self.no_memory_embedding = model.no_memory_embedding

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, S, S) -> (B, E, g, g), (B, E/8, 4g, 4g), (B, E/4, 2g, 2g)."""
        fine, middle, embedding = self.vision_encoder(pixels).fpn_hidden_states
        embedding = embedding + self.no_memory_embedding.view(1, -1, 1, 1)
        return embedding, self.conv_s0(fine), self.conv_s1(middle)


@dataclass(frozen=True)
class Sam2Parts:
    """The parts of a SAM 2, on the CPU in float32; `name` is "tiny", "hiera_t", ...

    Attributes:
        config: transformers' `Sam2Config`.
        positions: The positions of the image's cells.
    """

    name: str
    config: Any
    image_encoder: Sam2ImageEncoder
    prompt_encoder: Any
    mask_decoder: Any
    positions: Any

    @property
    def image_size(self) -> int:
        """S, side in pixels of the encoder's square input."""
        return int(self.config.prompt_encoder_config.image_size)

    @property
    def grid(self) -> int:
        """g, cells per side of the embedding."""
        return self.image_size // int(self.config.prompt_encoder_config.patch_size)

    @property
    def width(self) -> int:
        """E, of image embeddings and prompts."""
        return int(self.config.mask_decoder_config.hidden_size)

    @classmethod
    def of(cls, name: str, model: Any) -> Sam2Parts:
        """Take a `Sam2Model` apart; it cannot be used any longer."""
        encoder, decoder = Sam2ImageEncoder(model), model.mask_decoder
        del decoder.conv_s0, decoder.conv_s1
        prompts, positions = model.prompt_encoder, model.shared_image_embedding
        return cls(name, model.config, encoder, prompts, decoder, positions)

    def modules(self) -> dict[str, nn.Module]:
        """All weights: modules by the names that they have in a `Sam2Model`."""
        encoder = self.image_encoder
        return {
            "vision_encoder": encoder.vision_encoder,
            "prompt_encoder": self.prompt_encoder,
            "mask_decoder": self.mask_decoder,
            "mask_decoder.conv_s0": encoder.conv_s0,
            "mask_decoder.conv_s1": encoder.conv_s1,
            "shared_image_embedding": self.positions,
        }


def build_sam2(name: str = "tiny", weights: Path | None = None) -> Sam2Parts:
    """Build a pretrained SAM 2.

    Args:
        name: "tiny" or a key of `OFFICIAL`.
        weights: A folder in transformers' format, or a hub id; for an official size also Meta's
            .pt file. For "tiny" by default the packaged folder.

    Raises:
        WeightsError: The weights are missing, truncated or not those of this SAM 2.
    """
    from transformers import Sam2Model

    source = find_sam2(name, weights)
    model, stored = _matched(name, source)
    if source.is_file():
        # Copied: the file may be replaced while the model is in use.
        copied = {key: value.to(torch.float32, copy=True) for key, value in stored.items()}
        model.load_state_dict(copied, assign=True)
    else:
        model = Sam2Model.from_pretrained(source, dtype=torch.float32, local_files_only=True)
    state = model.state_dict()
    check_weights(state, state, asked=_unfit(name, source), repair=_repair(name, source))
    logger.info("SAM 2 '%s' read from %s", name, source)
    return Sam2Parts.of(name, model.eval())


def check_sam2(name: str, weights: Path | None = None) -> None:
    """What `build_sam2` would refuse, in a moment: reads names and shapes, no weights."""
    _matched(name, find_sam2(name, weights))


def untrained_sam2(config: Any, name: str = "tiny") -> Sam2Parts:
    """A SAM 2 with random weights, from transformers' `Sam2Config`."""
    from transformers import Sam2Model

    return Sam2Parts.of(name, Sam2Model(config))


def official_config(name: str) -> Any:
    """transformers' `Sam2Config` of one of Meta's sizes."""
    from transformers import Sam2Config, Sam2HieraDetConfig, Sam2VisionConfig

    size = OFFICIAL[name]
    widths = [size.width << stage for stage in range(4)]
    hiera = Sam2HieraDetConfig(
        hidden_size=size.width,
        num_attention_heads=size.heads,
        blocks_per_stage=list(size.blocks),
        embed_dim_per_stage=widths,
        num_attention_heads_per_stage=[size.heads << stage for stage in range(4)],
        window_size_per_stage=list(size.windows),
        window_positional_embedding_background_size=[size.background] * 2,
        global_attention_blocks=list(size.global_blocks),
    )
    vision = Sam2VisionConfig(backbone_config=hiera, backbone_channel_list=widths[::-1])
    return Sam2Config(vision_config=vision)


def save_sam2(folder: Path, parts: Sam2Parts, dtype: torch.dtype = torch.float32) -> None:
    """Write a folder that `Sam2Model.from_pretrained` and `build_sam2` read."""
    from transformers import Sam2Model

    with torch.device("meta"):
        model = Sam2Model(parts.config)
    state = {
        f"{prefix}.{key}": value.detach().to("cpu", dtype)
        for prefix, module in parts.modules().items()
        for key, value in module.state_dict().items()
    }
    memory = parts.image_encoder.no_memory_embedding
    state["no_memory_embedding"] = memory.detach().to("cpu", dtype)
    model.load_state_dict(state, assign=True)
    model.save_pretrained(folder)


def find_sam2(name: str, weights: Path | None) -> Path:
    """The folder or file of some weights; a hub id is downloaded if necessary.

    Raises:
        WeightsError: There is none.
    """
    if weights is None:
        if name == "tiny":
            return TINY_FOLDER
        asked = f"SAM 2 '{name}' needs its weights."
        raise WeightsError(asked, found="None given.", repair=_repair(name))
    asked = _unread(name, weights)
    if not weights.exists():
        on_hub = HUB_ID.fullmatch(split_revision(str(weights))[0])
        if not on_hub or weights.suffix in (".pt", ".pth"):
            found = "There is no such file or folder."
            raise WeightsError(asked, found=found, repair=_repair(name))
        return fetch(str(weights), asked, HUB_FILES)
    if weights.is_file() and name == "tiny":
        raise WeightsError(
            asked,
            found="It is a file, which does not say the sizes of the model.",
            repair="Give --refiner sam2:hiera_t, hiera_s, hiera_b+ or hiera_l, or a folder in "
            "transformers' format.",
        )
    return weights


def _matched(name: str, source: Path) -> tuple[Any, dict[str, Tensor]]:
    """A `Sam2Model` without values, and what is stored for it, which has its names and shapes.

    Of a folder, the stored tensors have no values, either.
    """
    from transformers import Sam2Model

    def failed(found: str) -> WeightsError:
        return WeightsError(_unread(name, source), found=found, repair=_repair(name, source))

    if source.is_file():
        stored = read_meta(source, failed)
        trunk = "vision_encoder.backbone."
        blocks = {key.split(".")[3] for key in stored if key.startswith(f"{trunk}blocks.")}
        _check_size(name, (stored[f"{trunk}pos_embed"].shape[1], len(blocks)), failed)
        config = official_config(name)
    else:
        config = _read_config(source, failed)
        hiera = config.vision_config.backbone_config
        if name != "tiny":
            _check_size(name, (hiera.hidden_size, sum(hiera.blocks_per_stage)), failed)
        check_weight_files(source)
        stored = _stored(source, failed)
    try:
        with torch.device("meta"):  # sizes are compared before anything is allocated
            model = Sam2Model(config)
    except Exception as error:  # a config can hold anything
        raise failed(f"config.json does not describe a SAM 2 ({_reason(error)}).") from error
    check_weights(
        model.state_dict(), stored, asked=_unfit(name, source), repair=_repair(name, source)
    )
    return model, stored


def _read_config(folder: Path, failed: Callable[[str], WeightsError]) -> Any:
    from transformers import Sam2Config

    try:
        content = json.loads((folder / "config.json").read_bytes())
        kind = content.get("model_type")
        if kind not in MODEL_TYPES:
            raise failed(
                f"Its config.json says model_type '{kind}'; expected: {' or '.join(MODEL_TYPES)}."
            )
        # A video model's parts have the same names; transformers would warn of its type.
        config = Sam2Config.from_dict({**content, "model_type": "sam2"})
        levels = config.vision_config.num_feature_levels
        grid = config.prompt_encoder_config.image_size // config.prompt_encoder_config.patch_size
        sizes = [[k * grid] * 2 for k in (4, 2, 1)]
        if levels != 3 or list(map(list, config.vision_config.backbone_feature_sizes)) != sizes:
            raise ValueError(f"backbone_feature_sizes are not {sizes}")
    except WeightsError:
        raise
    except FileNotFoundError as error:
        raise failed("The folder has no config.json.") from error
    except Exception as error:  # a config can hold anything
        raise failed(f"config.json is corrupt or not a SAM 2's ({_reason(error)}).") from error
    return config


def _stored(folder: Path, failed: Callable[[str], WeightsError]) -> dict[str, Tensor]:
    """The names and shapes in a folder's safetensors, without those of the video model."""
    stored: dict[str, Tensor] = {}
    for path in weight_files(folder):
        if path.suffix != ".safetensors":
            raise failed(f"Its weights are in {path.name}, not in safetensors.")
        try:
            with safe_open(path, "pt") as file:
                for key in file.keys():  # noqa: SIM118
                    if not VIDEO.match(key):
                        stored[key] = torch.empty(file.get_slice(key).get_shape(), device="meta")
        except (OSError, SafetensorError) as error:
            raise failed(f"{path.name} is damaged ({_reason(error)}).") from error
    return stored


def _check_size(name: str, found: tuple[int, int], failed: Callable[[str], WeightsError]) -> None:
    """`WeightsError` unless an encoder's width and number of blocks are those of `name`."""
    if found == OFFICIAL[name].encoder:
        return
    width, blocks = found
    other = next((key for key, size in OFFICIAL.items() if size.encoder == found), None)
    what = f"The encoder has width {width} and {blocks} blocks"
    error = failed(f"{what}: it is '{other}'." if other else f"{what}, as no official size has.")
    repair = f"Use --refiner sam2:{other}." if other else "Use --refiner sam2:tiny with a folder."
    raise WeightsError(error.asked, found=error.found, repair=repair)


def _unread(name: str, source: Path) -> str:
    return f"SAM 2 '{name}' cannot be read from '{source}'."


def _unfit(name: str, source: Path) -> str:
    return f"The weights in '{source}' do not fit the SAM 2 '{name}'."


def _repair(name: str, source: Path | None = None) -> str:
    if source == TINY_FOLDER:
        return "Reinstall flmm: its packaged tiny SAM 2 is damaged."
    if name == "tiny":
        return (
            "Give a folder that Sam2Model.save_pretrained wrote, or no weights to use the "
            "packaged tiny SAM 2."
        )
    size = OFFICIAL[name]
    return (
        f"Pass --refiner-weights {size.hub} (hub id or folder) or Meta's {size.file}, or use "
        "--refiner sam2:tiny."
    )


def _reason(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
