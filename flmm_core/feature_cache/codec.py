"""Converts features to the tensors of a file and back, exactly or compressed.

float32 maps are exact. For float16 and uint8 each map is divided by its maximum, which is stored
too; uint8 stores the square root of that fraction in 255 steps, so small values keep more
precision than large ones. Hidden states are stored exactly, in the VLM's dtype; with smaller maps
they are bfloat16 at most, and image embeddings are float16.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Self

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from flmm_core.pipeline.types import AttentionMaps, Box, EncodedImage, Features

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
        maps: Dtype of the maps.
        hidden: Whether hidden states are included.
        ends: For how many last tokens of each phrase there are maps of their own.
    """

    maps: MapType
    hidden: bool
    ends: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether features are restored bit for bit."""
        return self.maps == "float32"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of a sample."""
        kinds = ("maps",) + ("ends",) * bool(self.ends)
        peaks = tuple(f"{kind}.peak" if kind == "ends" else "peak" for kind in kinds)
        return kinds + peaks * (not self.is_exact) + ("hidden",) * self.hidden

    def hidden_type(self, vlm: torch.dtype) -> torch.dtype:
        """Dtype of stored hidden states of a VLM that computes in `vlm`."""
        return vlm if self.is_exact or vlm.itemsize == 2 else torch.bfloat16

    @property
    def embedding_type(self) -> torch.dtype:
        """Dtype of stored embeddings."""
        return torch.float32 if self.is_exact else torch.float16

    def map_bytes(self, cells: int) -> int:
        """Bytes of a phrase's maps of one channel, of `cells` cells each, with their maxima."""
        each = cells * STORED[self.maps].itemsize + (0 if self.is_exact else 4)
        return each * (1 + self.ends)


class SampleFacts(BaseModel):
    """The metadata of a sample.

    Attributes:
        image: Key of its image.
        box: `AttentionMaps.image_box`.
        tokens: Number of tokens of each phrase.
        image_hw: As in `Features`.
    """

    model_config = ConfigDict(frozen=True)

    image: str
    box: Box
    tokens: tuple[int, ...]
    image_hw: tuple[int, int]

    @classmethod
    def of(cls, features: Features, image: str) -> Self:
        """The metadata of features, with the key of their image."""
        return cls(
            image=image,
            box=features.maps.image_box,
            tokens=tuple(features.row_phrase.bincount(minlength=features.phrases).tolist()),
            image_hw=features.image_hw,
        )


def pack(features: Features, packing: Packing, vlm: torch.dtype) -> dict[str, Tensor]:
    """The tensors of a sample on the CPU, without the image embedding; `vlm` is a dtype."""
    packed = _packed("maps", "peak", features.maps.maps, packing)
    if packing.ends:
        assert features.maps.ends is not None
        packed |= _packed("ends", "ends.peak", features.maps.ends[:, : packing.ends], packing)
    if packing.hidden:
        hidden = features.hidden.cpu()
        stored = hidden.to(packing.hidden_type(vlm))
        # A layer may compute in a wider dtype than its model; exact must stay exact.
        if packing.is_exact and not torch.equal(stored.to(hidden.dtype), hidden):
            stored = hidden
        packed["hidden"] = stored.contiguous()
    return packed


def unpack(
    tensors: Mapping[str, Tensor], facts: SampleFacts, image: EncodedImage | None
) -> Features:
    """The inverse of `pack`."""
    maps = _unpacked(tensors["maps"], tensors.get("peak"))
    ends = None
    if "ends" in tensors:
        ends = _unpacked(tensors["ends"], tensors.get("ends.peak"))
    lengths = torch.tensor(facts.tokens, dtype=torch.int64)
    row_phrase = torch.arange(len(lengths)).repeat_interleave(lengths)
    hidden = tensors.get("hidden")
    return Features(
        maps=AttentionMaps(maps, facts.box, ends),
        hidden=torch.zeros(0, len(row_phrase), 0) if hidden is None else hidden.float(),
        row_phrase=row_phrase,
        image=image,
        image_hw=facts.image_hw,
    )


def _packed(name: str, peak_name: str, maps: Tensor, packing: Packing) -> dict[str, Tensor]:
    """Maps (..., h, w) as they are stored, and their maxima (...) if they are not exact."""
    maps = maps.cpu()
    if packing.is_exact:
        return {name: maps.contiguous()}
    peak = maps.amax((-2, -1)).clamp(min=torch.finfo(torch.float32).tiny)
    share = maps / peak[..., None, None]
    if packing.maps == "uint8":
        share = share.sqrt().mul(STEPS).round()
    return {name: share.to(STORED[packing.maps]).contiguous(), peak_name: peak.contiguous()}


def _unpacked(maps: Tensor, peak: Tensor | None) -> Tensor:
    """The inverse of `_packed`."""
    if peak is None:
        return maps
    share = maps.float()
    if maps.dtype == torch.uint8:
        share = (share / STEPS).square()
    return share * peak[..., None, None]
