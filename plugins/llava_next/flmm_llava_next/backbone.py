"""LLaVA-1.5, LLaVA-Next and LLaVA-OneVision through transformers' own models and processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import LlavaImageProcessorPil

from flmm_core import Backbone, BackboneOptions, DataError, ImageView, WeightsError
from flmm_llava_next import LlavaOptions, views


class LlavaBackbone(Backbone):
    """One view of a square, or two: the whole image as one tile, and its tiles reassembled."""

    model_types = ("llava", "llava_next", "llava_onevision")
    processor_types = ("LlavaProcessor", "LlavaNextProcessor", "LlavaOnevisionProcessor")

    @property
    def view_names(self) -> tuple[str, ...]:  # type: ignore[override]
        """One view, or two where the model cuts images into tiles."""
        return ("coarse", "fine") if _cuts(self.config) else ("image",)

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        assert isinstance(options, LlavaOptions)  # the core validates them with SPEC.options
        vlm, processor = super().load_model(source, options, **kwargs)
        images = processor.image_processor
        if not _cuts(vlm.config) and options.square == "pad" and "shortest_edge" in images.size:
            settings = images.to_dict() | {"do_pad": True}
            processor.image_processor = LlavaImageProcessorPil.from_dict(settings)
        check_processor(source, vlm.config, processor)
        return vlm, processor

    @property
    def _tile(self) -> views.Tile:
        return _tile(self.config)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        side = self._tile.side
        square = torch.tensor(views.square_rows(side))  # (side, side)
        if not _cuts(self.config):
            positions = self.image_token_positions(input_ids, side * side)
            return (ImageView("image", positions[square], self._square_box(image_hw)),)
        canvas = views.best_canvas(image_hw, self.config.image_grid_pinpoints)
        h, w = views.fine_shape(image_hw, canvas, self._tile, most_tiles(self.config))
        if not h * w:
            raise DataError(
                "the image is too thin for LLaVA.",
                found=f"{image_hw[1]} x {image_hw[0]} pixels leave a fine view of {w} x {h}.",
                repair="Crop it.",
            )
        positions = self.image_token_positions(input_ids, views.token_count(side, (h, w)))
        fine = torch.tensor(views.fine_rows((h, w), first=side * side))  # (h, w)
        box = views.fine_box(image_hw, canvas, self._tile)
        return (
            ImageView("coarse", positions[square], views.squashed_box(self._tile)),
            ImageView("fine", positions[fine], box, separators=h),  # a newline ends each row
        )

    def _square_box(self, image_hw: tuple[int, int]) -> views.Box:
        settings = self.processor.image_processor
        if "shortest_edge" not in settings.size:
            return views.squashed_box(self._tile)
        if getattr(settings, "do_pad", False):
            return views.padded_box(image_hw, self._tile)
        return views.cropped_box(image_hw, settings.size["shortest_edge"], self._tile)


def check_processor(source: str, config: Any, processor: Any) -> None:
    """`WeightsError` unless the model reassembles what the processor cuts."""
    images, tile = processor.image_processor, _tile(config)
    crop = getattr(images, "crop_size", None)
    given = (crop or images.size).get("height", 0)
    model, other = f"tiles of {tile.pixels} pixels", f"tiles of {given}"
    fits = given == tile.pixels and tile.side > 0
    if _cuts(config):
        canvases, cut = (_sizes(each.image_grid_pinpoints) for each in (config, images))
        most = most_tiles(config), most_tiles(processor)
        model += f", canvases {canvases}" + (f" and at most {most[0]} tiles" if most[0] else "")
        other += f", canvases {cut}" + (f" and at most {most[1]} tiles" if most[1] else "")
        whole = not any(side % tile.pixels for canvas in canvases for side in canvas)
        fits = fits and whole and canvases == cut and most[0] == most[1]
    if not fits:
        raise WeightsError(
            f"The model and the processor in '{source}' cut images differently.",
            found=f"The model has {model}; the processor has {other}.",
            repair="Use the processor files of the model's original folder.",
        )


def most_tiles(settings: Any) -> int | None:
    """How many tiles' worth of fine cells there are at most ("anyres_max_9")."""
    ratio = getattr(settings, "vision_aspect_ratio", None)
    return None if ratio is None else int(ratio.removeprefix("anyres_max_"))


def _cuts(config: Any) -> bool:
    return hasattr(config, "image_grid_pinpoints")


def _tile(config: Any) -> views.Tile:
    return views.Tile(config.vision_config.image_size, config.vision_config.patch_size)


def _sizes(canvases: Any) -> list[list[int]]:
    return [list(canvas) for canvas in canvases]
