"""Where a VLM's image tokens lie on an image, measured from its config and processor alone."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import replace
from typing import Any

import torch

from flmm_core.pipeline.backbone.geometry.blocks import Blocks, cut_blocks
from flmm_core.pipeline.backbone.geometry.grids import assemble
from flmm_core.pipeline.backbone.geometry.limits import BYTES, SECONDS, Limits
from flmm_core.pipeline.backbone.geometry.measured import Measured as Measured
from flmm_core.pipeline.backbone.geometry.owners import NOBODY, SEVERAL, Ratios, find_ratios
from flmm_core.pipeline.backbone.geometry.places import Places, reads_tiles, tile_lines
from flmm_core.pipeline.backbone.geometry.proof import prove
from flmm_core.pipeline.backbone.geometry.ramps import Encoded, Ramps
from flmm_core.pipeline.backbone.geometry.refused import GeometryRefused as GeometryRefused
from flmm_core.pipeline.backbone.geometry.refused import refuse
from flmm_core.pipeline.backbone.geometry.store import GeometryStore, digest
from flmm_core.pipeline.backbone.geometry.twin import Twin
from flmm_core.pipeline.types import ImageView

FOREIGN = -3
"""A token of the sequence that is no image token."""

REMEMBERED = 1024
"""How many sizes an object keeps in memory; the disk has them all."""


class MeasuredGeometry:
    """The geometry of a model's image tokens, measured for each image size that is asked for.

    Sizes are remembered here and on the disk. It can be pickled for other processes, which read the
    disk, or build the twin again for a size that is not there.
    """

    def __init__(
        self, config: Any, processor: Any, *, seconds: float = SECONDS, memory: int = BYTES
    ) -> None:
        """Nothing is measured yet.

        Args:
            config: Of the model, with `image_token_id`; unchanged from here on, as the processor.
            processor: Of the model.
            seconds: CPU seconds that one size may take.
            memory: Bytes that the process may grow by.
        """
        self.config, self.processor = config, processor
        self.seconds, self.memory = seconds, memory
        self._store: GeometryStore | None = None
        self._ramps = Ramps(processor)
        self._forget()

    def _forget(self) -> None:
        self._known: OrderedDict[tuple[int, int], Measured | GeometryRefused] = OrderedDict()
        self._twin: Twin | None = None
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k not in ("_known", "_twin", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def at(self, image_hw: tuple[int, int]) -> Measured:
        """The geometry of images of this height and width in pixels.

        Raises:
            GeometryRefused: It cannot be measured without guessing; says why.
            DataError: The processor rejects images of this size.
        """
        with self._lock:
            found = self._known.get(image_hw) or self._look(image_hw)
            self._known[image_hw] = found
            self._known.move_to_end(image_hw)
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        if isinstance(found, GeometryRefused):
            raise found
        return found

    def _look(self, image_hw: tuple[int, int]) -> Measured | GeometryRefused:
        """From the disk, or measured."""
        if self._store is None:
            self._store = GeometryStore(digest(self.config, self.processor))
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._store.get(image_hw, lambda: self._measure(image_hw))
        except GeometryRefused as error:
            return self._named(error, image_hw)

    def _named(self, error: GeometryRefused, image_hw: tuple[int, int]) -> GeometryRefused:
        kind = getattr(self.config, "model_type", type(self.config).__name__)
        return GeometryRefused(
            f"Where the tokens of images of {image_hw[1]} x {image_hw[0]} pixels lie cannot be "
            f"measured for '{kind}'.",
            found=error.found,
            repair="Declare the geometry in a plugin's `views`.",
        )

    def _measure(self, image_hw: tuple[int, int]) -> Measured:
        limits = Limits(self.seconds, self.memory)
        encoded = self._ramps.encode(image_hw, limits)
        if self._twin is None:
            self._twin = Twin(self.config, len(self.processor.tokenizer))
        with limits:
            ratios = find_ratios(self._twin, encoded)
        return self._assembled(encoded, ratios)

    def _assembled(self, encoded: Encoded, ratios: Ratios) -> Measured:
        is_image = encoded.ids == self.config.image_token_id
        tokens = int(is_image.sum())
        if not tokens:
            raise refuse("The sequence holds no image tokens.")
        rank = torch.where(is_image, is_image.long().cumsum(0) - 1, FOREIGN)  # (S,)
        places = Places.unknown(tokens)
        for key in ratios.by_key:
            blocks = cut_blocks(key, ratios, encoded.pixels[key])
            blocks = self._owned(key, blocks, rank)
            lines = None
            if reads_tiles(blocks, tokens):
                lines = tile_lines(blocks, tokens)
                if lines is None:  # a tile can show less of the image than a block
                    blocks = cut_blocks(key, ratios, encoded.pixels[key], single=True)
                    blocks = self._owned(key, blocks, rank)
                    lines = tile_lines(blocks, tokens)
            places.add(blocks, lines)
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

    @staticmethod
    def _owned(key: str, blocks: Blocks, rank: torch.Tensor) -> Blocks:
        """The same with owners counted as (S,) `rank` does; all must be single image tokens."""
        owner = torch.where(blocks.owner >= 0, rank[blocks.owner.clamp(min=0)], blocks.owner)
        if several := int((owner == SEVERAL).sum()):
            read = int((owner != NOBODY).sum())
            share = "All" if several == read else f"{100 * several / read:.3g}% of the"
            raise refuse(
                f"{share} elements of '{key}' reach several tokens: a resampler, a convolution or "
                "an interpolation mixes patches."
            )
        if (owner == FOREIGN).any():
            raise refuse("Tokens that are no image tokens depend on the image.")
        return replace(blocks, owner=owner)
