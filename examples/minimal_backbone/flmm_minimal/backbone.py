"""The two methods that a backbone must give: how it is loaded, and where its tokens lie."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import AutoImageProcessor, AutoProcessor, LlavaForConditionalGeneration

from flmm_core import Backbone, BackboneOptions, ImageView, load_pretrained
from flmm_minimal import views


class MinimalBackbone(Backbone):
    view_names = ("image",)
    model_types = ("llava",)

    @classmethod
    def _load(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm, processor = load_pretrained(
            source, LlavaForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )
        return vlm, processor

    def _views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision, pictures = self.config.vision_config, self.processor.image_processor
        side = vision.image_size // vision.patch_size
        places = self.image_token_places(input_ids, side * side)
        box = views.image_box(
            image_hw, pictures.size["shortest_edge"], pictures.crop_size["height"]
        )
        return (ImageView("image", places.view(side, side), box),)
