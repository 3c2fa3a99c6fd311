"""DeepSeek-VL through transformers' own model and processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, DeepseekVLForConditionalGeneration

from flmm_core import Backbone, BackboneOptions, ImageView, load_pretrained
from flmm_deepseek_vl import views


class DeepseekVLBackbone(Backbone):
    """One view of fixed shape that extends beyond the image where it shows padding."""

    view_names = ("image",)
    model_types = ("deepseek_vl",)

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        return load_pretrained(
            source, DeepseekVLForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision = self.config.vision_config
        h, w = views.grid_shape(vision.image_size, vision.patch_size)
        rows = torch.tensor(views.token_rows((h, w)))  # (h, w)
        positions = self.image_token_positions(input_ids, h * w)
        box = views.image_box(
            image_hw,
            vision.image_size,
            vision.patch_size,
            self.processor.image_processor.min_size,
        )
        return (ImageView("image", positions[rows], box),)
