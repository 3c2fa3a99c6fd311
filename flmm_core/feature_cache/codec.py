"""Features <-> the tensors of a file, as they are or smaller.

Maps as float32 lose nothing. As float16 or uint8 each map is divided by its largest value first,
which is kept beside it; uint8 holds the square root of that share in 255 steps, so that small
values keep more of their digits than large ones. Hidden rows lose nothing in the VLM's own number
type; beside smaller maps they are bfloat16 at most, and embeddings of images float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
from torch import Tensor

from flmm_core.pipeline.types import AttentionMaps, EncodedImage, Features

MapType = Literal["float32", "float16", "uint8"]
STORED: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "uint8": torch.uint8,
}
STEPS = 255.0


@dataclass(frozen=True)
class Packing:
    """How features are stored.

    Attributes:
        maps: Number type of attention maps.
        hidden: Whether hidden rows are kept: they are, where the refiner reads text.
    """

    maps: MapType
    hidden: bool

    @property
    def is_exact(self) -> bool:
        """Whether what is read is bit for bit what was written."""
        return self.maps == "float32"

    @property
    def names(self) -> tuple[str, ...]:
        """Of a sample's tensors."""
        return ("maps",) + ("peak",) * (not self.is_exact) + ("hidden",) * self.hidden

    def hidden_type(self, vlm: torch.dtype) -> torch.dtype:
        """Of stored hidden rows of a VLM that computes in `vlm`."""
        return vlm if self.is_exact or vlm.itemsize == 2 else torch.bfloat16

    @property
    def embedding_type(self) -> torch.dtype:
        """Of stored embeddings."""
        return torch.float32 if self.is_exact else torch.float16

    def map_bytes(self, cells: int) -> int:
        """Bytes of one map of so many cells, with its largest value."""
        return cells * STORED[self.maps].itemsize + (0 if self.is_exact else 4)


@dataclass(frozen=True)
class SampleFacts:
    """What of a sample is no tensor; stored as JSON.

    Attributes:
        image: Key of its image.
        box: `AttentionMaps.image_box`.
        tokens: T of each phrase.
        image_hw: As in `Features`.
    """

    picture: str
    box: tuple[float, float, float, float]
    tokens: tuple[int, ...]
    image_hw: tuple[int, int]

    @classmethod
    def of(cls, features: Features, picture: str) -> Self:
        """The facts of observed features."""
        tokens = features.row_phrase.bincount(minlength=features.phrases).tolist()
        return cls(picture, features.maps.image_box, tuple(tokens), features.image_hw)

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Self:
        """The reverse of `dataclasses.asdict` and JSON; a foreign record raises KeyError."""
        y0, x0, y1, x1 = record["box"]
        height, width = record["picture_hw"]
        return cls(record["picture"], (y0, x0, y1, x1), tuple(record["tokens"]), (height, width))


def pack(features: Features, packing: Packing, vlm: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a sample, on the CPU; without those of its image."""
    maps = features.maps.maps.cpu()
    packed = {"maps": maps.contiguous()}
    if not packing.is_exact:
        peak = maps.amax((2, 3)).clamp(min=torch.finfo(torch.float32).tiny)  # (P, C)
        share = maps / peak[:, :, None, None]
        if packing.maps == "uint8":
            share = share.sqrt().mul(STEPS).round()
        packed = {"maps": share.to(STORED[packing.maps]).contiguous(), "peak": peak.contiguous()}
    if packing.hidden:
        hidden = features.hidden.cpu()
        stored = hidden.to(packing.hidden_type(vlm))
        # A layer may compute in a wider type than its model; what is exact must stay so.
        if packing.is_exact and not torch.equal(stored.to(hidden.dtype), hidden):
            stored = hidden
        packed["hidden"] = stored.contiguous()
    return packed


def unpack(
    tensors: Mapping[str, Tensor], facts: SampleFacts, picture: EncodedImage | None
) -> Features:
    """What `pack` took, with the image that belongs to it."""
    maps = tensors["maps"]
    if "peak" in tensors:
        share = maps.float()
        if maps.dtype == torch.uint8:
            share = (share / STEPS).square()
        maps = share * tensors["peak"][:, :, None, None]
    lengths = torch.tensor(facts.tokens, dtype=torch.int64)
    row_phrase = torch.arange(len(lengths)).repeat_interleave(lengths)
    hidden = tensors.get("hidden")
    return Features(
        maps=AttentionMaps(maps, facts.box),
        hidden=torch.zeros(0, len(row_phrase), 0) if hidden is None else hidden.float(),
        row_phrase=row_phrase,
        picture=picture,
        image_hw=facts.image_hw,
    )
