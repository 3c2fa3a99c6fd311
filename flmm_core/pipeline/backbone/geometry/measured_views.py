"""Where a VLM's image tokens lie on an image, measured from its config and processor alone."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import torch

from flmm_core.pipeline.backbone.geometry.grids import assemble
from flmm_core.pipeline.backbone.geometry.limits import BYTES, SECONDS, Limits
from flmm_core.pipeline.backbone.geometry.owners import find_owners
from flmm_core.pipeline.backbone.geometry.places import Places
from flmm_core.pipeline.backbone.geometry.proof import prove
from flmm_core.pipeline.backbone.geometry.ramps import Encoded, encode_ramps
from flmm_core.pipeline.backbone.geometry.refused import GeometryRefused as GeometryRefused
from flmm_core.pipeline.backbone.geometry.refused import refuse
from flmm_core.pipeline.backbone.geometry.twin import Twin
from flmm_core.pipeline.types import ImageView


@dataclass(frozen=True)
class Measured:
    """Where the tokens of images of one size lie.

    Attributes:
        views: Their `token_index` counts among the image tokens of one image: 0 to M-1.
        image_tokens: M, the tokens of an image in the sequence that have the image token's id.
        separators: How many of them belong to no cell: they depend on no pixel.
        residual: The largest distance of a token from its cell's center, in cells.
    """

    views: tuple[ImageView, ...]
    image_tokens: int
    separators: int
    residual: float

    @property
    def view_names(self) -> tuple[str, ...]:
        """ "image"; "coarse" and "fine"; or "view0" and so on if there are more."""
        return tuple(view.name for view in self.views)


class MeasuredGeometry:
    """The geometry of a model's image tokens, measured for each image size that is asked for.

    It can be pickled; the twin stays behind and is built again where it is needed.
    """

    def __init__(
        self, config: Any, processor: Any, *, seconds: float = SECONDS, memory: int = BYTES
    ) -> None:
        """Nothing is measured yet.

        Args:
            config: Of the model, with `image_token_id`.
            processor: Of the model.
            seconds: CPU seconds that one size may take.
            memory: Bytes that the process may grow by.
        """
        self.config, self.processor = config, processor
        self.seconds, self.memory = seconds, memory
        self._known: dict[tuple[int, int], Measured | GeometryRefused] = {}
        self._twin: Twin | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_twin": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.Lock())

    def at(self, image_hw: tuple[int, int]) -> Measured:
        """The geometry of images of this height and width in pixels.

        Raises:
            GeometryRefused: It cannot be measured without guessing; says why.
            DataError: The processor rejects images of this size.
        """
        with self._lock:
            if image_hw not in self._known:
                try:
                    self._known[image_hw] = self._measure(image_hw)
                except GeometryRefused as error:
                    self._known[image_hw] = self._named(error, image_hw)
            found = self._known[image_hw]
        if isinstance(found, GeometryRefused):
            raise found
        return found

    def _named(self, error: GeometryRefused, image_hw: tuple[int, int]) -> GeometryRefused:
        kind = getattr(self.config, "model_type", type(self.config).__name__)
        return GeometryRefused(
            f"Where the tokens of images of {image_hw[1]} x {image_hw[0]} pixels lie cannot be "
            f"measured for '{kind}'.",
            found=error.found,
            repair="Declare the geometry in a plugin's `views`.",
        )

    def _measure(self, image_hw: tuple[int, int]) -> Measured:
        with torch.no_grad():
            limits = Limits(self.seconds, self.memory)
            encoded = encode_ramps(self.processor, image_hw, limits)
            if self._twin is None:
                self._twin = Twin(self.config, len(self.processor.tokenizer))
            with limits:
                owners = find_owners(self._twin, encoded)
            return self._assembled(encoded, owners.by_key)

    def _assembled(self, encoded: Encoded, owners: dict[str, torch.Tensor]) -> Measured:
        is_image = encoded.ids == self.config.image_token_id
        tokens = int(is_image.sum())
        if not tokens:
            raise refuse("The sequence holds no image tokens.")
        rank = torch.where(is_image, is_image.long().cumsum(0) - 1, -3)  # (S,)
        places = Places.unknown(tokens)
        several = 0
        for key, owner in owners.items():
            ranked = torch.where(owner >= 0, rank[owner.clamp(min=0)], owner)
            if (ranked == -3).any():
                raise refuse("Tokens that are no image tokens depend on the image.")
            several += int((ranked == -2).sum())
            places.add(key, ranked, encoded.pixels[key])
        if several:
            raise refuse(f"{several} pixel elements reach several tokens.")
        grids = assemble(places, (~places.center.isnan().any(1)).nonzero().flatten())
        prove(grids, places)
        names = {1: ("image",), 2: ("coarse", "fine")}.get(
            len(grids), tuple(f"view{number}" for number in range(len(grids)))
        )
        cells = sum(grid.tokens.numel() for grid in grids)
        return Measured(
            tuple(
                ImageView(name, grid.tokens, grid.box)
                for name, grid in zip(names, grids, strict=True)
            ),
            image_tokens=tokens,
            separators=tokens - cells,
            residual=max(grid.residual for grid in grids),
        )
