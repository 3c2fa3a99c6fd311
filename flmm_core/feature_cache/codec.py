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
    """How features are stored: the dtype of maps, and whether hidden states are included."""

    maps: MapType
    hidden: bool

    @property
    def is_exact(self) -> bool:
        """Whether features are restored bit for bit."""
        return self.maps == "float32"

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of a sample."""
        return ("maps",) + ("peak",) * (not self.is_exact) + ("hidden",) * self.hidden

    def hidden_type(self, vlm: torch.dtype) -> torch.dtype:
        """Dtype of stored hidden states of a VLM that computes in `vlm`."""
        return vlm if self.is_exact or vlm.itemsize == 2 else torch.bfloat16

    @property
    def embedding_type(self) -> torch.dtype:
        """Dtype of stored embeddings."""
        return torch.float32 if self.is_exact else torch.float16

    def map_bytes(self, cells: int) -> int:
        """Bytes of one map of `cells` cells, with its maximum."""
        return cells * STORED[self.maps].itemsize + (0 if self.is_exact else 4)


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
        # A layer may compute in a wider dtype than its model; exact must stay exact.
        if packing.is_exact and not torch.equal(stored.to(hidden.dtype), hidden):
            stored = hidden
        packed["hidden"] = stored.contiguous()
    return packed


def unpack(
    tensors: Mapping[str, Tensor], facts: SampleFacts, image: EncodedImage | None
) -> Features:
    """The inverse of `pack`."""
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
        image=image,
        image_hw=facts.image_hw,
    )
