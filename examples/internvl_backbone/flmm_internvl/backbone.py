"""transformers loads the model; the plugin says where its image tokens are."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers.models.got_ocr2.image_processing_got_ocr2 import get_optimal_tiled_canvas

from flmm_core import Backbone, ImageView
from flmm_internvl import views


class InternVLBackbone(Backbone):
    model_types = ("internvl",)
    view_names = ("coarse", "fine")

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        vision, cut = self.config.vision_config, self.processor.image_processor
        side = int(vision.image_size[0] // vision.patch_size[0] * self.config.downsample_ratio)
        tile_hw = cut.size["height"], cut.size["width"]
        wide, high = get_optimal_tiled_canvas(image_hw, tile_hw, cut.min_patches, cut.max_patches)
        tiles = high * wide
        count = side * side * (tiles + (tiles > 1))
        positions = self.image_token_positions(input_ids, count)
        last = torch.tensor(views.tile_rows(side, tiles if tiles > 1 else 0))  # (side, side)
        coarse = ImageView("coarse", positions[last])
        if tiles == 1:
            return (coarse,)
        fine = torch.tensor(views.tiled_rows(side, high, wide))  # (high * side, wide * side)
        return coarse, ImageView("fine", positions[fine])
