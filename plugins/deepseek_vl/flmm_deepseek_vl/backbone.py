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
    """One view of fixed shape that reaches beyond the image where it shows padding."""

    view_names = ("image",)
    model_types = ("deepseek_vl",)

    @classmethod
    def _load(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm, processor = load_pretrained(
            source, DeepseekVLForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )
        return vlm, processor

    def _views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision = self.config.vision_config
        h, w = views.grid_shape(vision.image_size, vision.patch_size)
        rows = torch.tensor(views.token_rows((h, w)))  # (h, w)
        places = self.image_token_places(input_ids, h * w)
        box = views.image_box(
            image_hw,
            vision.image_size,
            vision.patch_size,
            self.processor.image_processor.min_size,
        )
        return (ImageView("image", places[rows], box),)
