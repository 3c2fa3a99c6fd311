"""LLaVA-Next (LLaVA-1.6) through transformers' own model and processor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, LlavaNextForConditionalGeneration

from flmm_core import Backbone, BackboneOptions, DataError, ImageView, WeightsError, load_pretrained
from flmm_llava_next import views


class LlavaNextBackbone(Backbone):
    """Two views: the whole image as one tile, and its tiles reassembled."""

    view_names = ("coarse", "fine")
    model_types = ("llava_next",)
    processor_types = ("LlavaNextProcessor",)

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm, processor = load_pretrained(
            source, LlavaNextForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )
        cls._check_canvases(source, vlm.config, processor.image_processor)
        return vlm, processor

    @staticmethod
    def _check_canvases(source: str, config: Any, image_processor: Any) -> None:
        """The processor cuts the tiles and the model reassembles them: they must agree."""
        tile, patch = config.vision_config.image_size, config.vision_config.patch_size
        canvases = [list(canvas) for canvas in config.image_grid_pinpoints]
        if (
            canvases != [list(canvas) for canvas in image_processor.image_grid_pinpoints]
            or any(side % tile for canvas in canvases for side in canvas)
            or tile % patch
            or image_processor.crop_size["height"] != tile
        ):
            raise WeightsError(
                f"The model and the processor in '{source}' cut images differently.",
                found=f"The model has patches of {patch} pixels, tiles of {tile} and canvases "
                f"{canvases}; the processor has tiles of {image_processor.crop_size['height']} and "
                f"canvases {image_processor.image_grid_pinpoints}.",
                repair="Use the processor files of the model's original folder.",
            )

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision = self.config.vision_config
        side = vision.image_size // vision.patch_size
        canvas = views.best_canvas(image_hw, self.config.image_grid_pinpoints)
        h, w = views.fine_shape(image_hw, canvas, vision.patch_size)
        if not h * w:
            raise DataError(
                "the image is too thin for LLaVA-Next.",
                found=f"{image_hw[1]} x {image_hw[0]} pixels leave a fine view of {w} x {h}.",
                repair="Crop it.",
            )
        positions = self.image_token_positions(input_ids, views.token_count(side, (h, w)))
        coarse = torch.tensor(views.coarse_rows(side))  # (side, side)
        fine = torch.tensor(views.fine_rows((h, w), first=side * side))  # (h, w)
        box = views.fine_box(image_hw, canvas, vision.patch_size)
        return (
            ImageView("coarse", positions[coarse], views.COARSE_BOX),
            ImageView("fine", positions[fine], box),
        )

    def separator_tokens(self, given: Sequence[ImageView]) -> int:
        return given[1].token_index.shape[0]  # a newline token ends each row of the fine view
