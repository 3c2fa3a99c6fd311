"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL through transformers' own models and processors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from flmm_core import Backbone, BackboneOptions, ImageView
from flmm_qwen import QwenOptions, views


class QwenBackbone(Backbone):
    """One view whose grid differs from image to image."""

    view_names = ("image",)
    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    processor_types = ("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor")

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        assert isinstance(options, QwenOptions)  # the core validates them with SPEC.options
        vlm, processor = super().load_model(source, options, **kwargs)
        image_processor = processor.image_processor
        image_processor.size = cls._size(image_processor.size, options)
        return vlm, processor

    @staticmethod
    def _size(size: Any, options: QwenOptions) -> dict[str, int]:
        """The limits of an image in pixels, which the processor names edges."""
        least = options.min_pixels or size["shortest_edge"]
        most = options.max_pixels or max(size["longest_edge"], least)
        return {"shortest_edge": min(least, most), "longest_edge": most}

    def shrunk(self, image: Image.Image) -> Image.Image:
        settings = self.processor.image_processor
        limits = settings.size["shortest_edge"], settings.size["longest_edge"]
        unit = settings.patch_size * settings.merge_size
        try:
            height, width = smart_resize(image.height, image.width, unit, *limits)
        except ValueError:  # the processor refuses the image and says why
            return image
        if settings.backend != "pil" or (height >= image.height or width >= image.width):
            return image
        return image.resize((width, height), settings.resample)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        merge = self.config.vision_config.spatial_merge_size
        h, w = views.grid_shape(tensors["image_grid_thw"][0].tolist(), merge)
        rows = torch.tensor(views.token_rows((h, w)))  # (h, w)
        positions = self.image_token_positions(input_ids, h * w)
        return (ImageView("image", positions[rows], views.IMAGE_BOX),)
