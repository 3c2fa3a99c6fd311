"""DeepSeek-VL through transformers' own model and processor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import DeepseekVLHybridImageProcessorPil, DeepseekVLImageProcessorPil
from transformers.image_processing_backends import PilBackend

from flmm_core import Backbone, BackboneOptions, ImageView, WeightsError
from flmm_deepseek_vl import DeepseekVLOptions, views


class DeepseekVLBackbone(Backbone):
    """One view of fixed shape that extends beyond the image where it shows padding."""

    view_names = ("image",)
    model_types = ("deepseek_vl", "deepseek_vl_hybrid")
    processor_types = ("DeepseekVLProcessor", "DeepseekVLHybridProcessor")

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm, processor = super().load_model(source, options, **kwargs)
        images = processor.image_processor
        if hasattr(vlm.config, "high_res_vision_config") and not _is_hybrid(images):
            raise WeightsError(
                f"The processor of '{source}' is not that of its model.",
                found=f"The model has two vision encoders; {type(images).__name__} makes images "
                "for one.",
                repair="Use the processor files of the model's original folder.",
            )
        if _cuts(options):
            kind = CuttingHybridImageProcessor if _is_hybrid(images) else CuttingImageProcessor
            processor.image_processor = kind.from_dict(images.to_dict())
        return vlm, processor

    def shrunk(self, image: Image.Image) -> Image.Image:
        settings = self.processor.image_processor
        side, resample, least = *_square(settings), settings.min_size
        image_hw = image.height, image.width
        height, width = views.resized_hw(image_hw, side, least, cut=_cuts(self.options))
        if settings.backend != "pil" or max(image_hw) <= side or min(image_hw) <= least:
            return image
        return image.resize((width, height), resample)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision = self.config.vision_config
        h, w = views.grid_shape(vision.image_size, vision.patch_size)
        rows = torch.tensor(views.token_rows((h, w)))  # (h, w)
        positions = self.image_token_positions(input_ids, h * w)
        settings, seen = self.processor.image_processor, h * vision.patch_size / vision.image_size
        square, _ = _square(settings)
        cut = _cuts(self.options)
        box = views.image_box(image_hw, square, seen, settings.min_size, cut=cut)
        return (ImageView("image", positions[rows], box),)


class _Cuts:
    """Resizes to the size that DeepSeek's own code computes."""

    def resize(
        self, image: Any, size: Any, min_size: int, resample: Any = None, **kwargs: Any
    ) -> Any:
        """(3, H, W) -> (3, h, w); the longest side is `size.height`."""
        image_hw = (image.shape[-2], image.shape[-1])
        height, width = views.resized_hw(image_hw, size.height, min_size, cut=True)
        target = type(size)(height=height, width=width)
        return PilBackend.resize(self, image, target, resample or self.resample)  # type: ignore[attr-defined]


class CuttingImageProcessor(_Cuts, DeepseekVLImageProcessorPil):
    """transformers' processor, otherwise."""


class CuttingHybridImageProcessor(_Cuts, DeepseekVLHybridImageProcessorPil):
    """The same of the hybrid kind."""


def _square(settings: Any) -> tuple[int, Any]:
    """The side of the square that an image is padded to, and the filter it is resized with."""
    if _is_hybrid(settings):
        return settings.high_res_size["height"], settings.high_res_resample
    return settings.size["height"], settings.resample


def _is_hybrid(settings: Any) -> bool:
    return hasattr(settings, "high_res_size")


def _cuts(options: BackboneOptions) -> bool:
    return isinstance(options, DeepseekVLOptions) and options.resize == "original"
