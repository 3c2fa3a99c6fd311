"""DeepSeek-VL through transformers' own model and processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    DeepseekVLForConditionalGeneration,
    DeepseekVLImageProcessorPil,
)
from transformers.image_processing_backends import PilBackend

from flmm_core import Backbone, BackboneOptions, ImageView, load_pretrained
from flmm_deepseek_vl import DeepseekVLOptions, views


class DeepseekVLBackbone(Backbone):
    """One view of fixed shape that extends beyond the image where it shows padding."""

    view_names = ("image",)
    model_types = ("deepseek_vl",)
    processor_types = ("DeepseekVLProcessor",)

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm, processor = load_pretrained(
            source, DeepseekVLForConditionalGeneration, AutoProcessor, AutoImageProcessor, **kwargs
        )
        if _cuts(options):
            settings = processor.image_processor.to_dict()
            processor.image_processor = CuttingImageProcessor.from_dict(settings)
        return vlm, processor

    def shrunk(self, image: Image.Image) -> Image.Image:
        settings = self.processor.image_processor
        side, least = settings.size["height"], settings.min_size
        image_hw = image.height, image.width
        height, width = views.resized_hw(image_hw, side, least, cut=_cuts(self.options))
        if settings.backend != "pil" or max(image_hw) <= side or min(image_hw) <= least:
            return image
        return image.resize((width, height), settings.resample)

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
            cut=_cuts(self.options),
        )
        return (ImageView("image", positions[rows], box),)


class CuttingImageProcessor(DeepseekVLImageProcessorPil):
    """transformers' processor, which resizes to the size that DeepSeek's own code computes."""

    def resize(
        self, image: Any, size: Any, min_size: int, resample: Any = None, **kwargs: Any
    ) -> Any:
        """(3, H, W) -> (3, h, w); the longest side is `size.height`."""
        image_hw = (image.shape[-2], image.shape[-1])
        height, width = views.resized_hw(image_hw, size.height, min_size, cut=True)
        target = type(size)(height=height, width=width)
        return PilBackend.resize(self, image, target, resample or self.resample)


def _cuts(options: BackboneOptions) -> bool:
    return isinstance(options, DeepseekVLOptions) and options.resize == "original"
