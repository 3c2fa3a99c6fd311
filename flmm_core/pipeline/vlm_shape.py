"""The sizes of a VLM that a head depends on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from pydantic import ConfigDict, Field


@dataclass(frozen=True)
class VlmShape:
    """L, N, D and the names of the V views: what the shape of a head's weights depends on."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    layers: Annotated[int, Field(ge=1, le=10_000)]
    heads: Annotated[int, Field(ge=1, le=10_000)]
    hidden_size: Annotated[int, Field(ge=1, le=10_000_000)]
    views: Annotated[tuple[str, ...], Field(min_length=1, max_length=100)]

    @property
    def attention_channels(self) -> int:
        """C."""
        return len(self.views) * self.layers * self.heads
