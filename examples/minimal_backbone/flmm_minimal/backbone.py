"""The two methods that a backbone implements: how it is loaded, and where its tokens are."""

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
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        return load_pretrained(
            source, LlavaForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision, image_processor = self.config.vision_config, self.processor.image_processor
        side = vision.image_size // vision.patch_size
        positions = self.image_token_positions(input_ids, side * side)
        box = views.image_box(
            image_hw,
            image_processor.size["shortest_edge"],
            image_processor.crop_size["height"],
        )
        return (ImageView("image", positions.view(side, side), box),)
