"""Contact sheets: image, attention, coarse mask, refined mask and truth."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from flmm_core.painting import draw_panels, fade, mask_color, paint_mask, scale_to
from flmm_core.pipeline.heat import paint_heat
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps

SIDE = 200
"""Longest side of a panel in pixels."""


def draw_sheet(
    image: Image.Image,
    phrases: Sequence[str],
    maps: AttentionMaps,
    coarse_logits: Tensor,
    logits: Tensor,
    truth: Tensor | None = None,
    channel_weights: Tensor | None = None,
    *,
    titled: bool = True,
) -> Image.Image:
    """One row per phrase, one column per stage; with IoUs if the truth is known.

    Args:
        coarse_logits: (P, h, w) covering exactly the image.
        logits: (P, H, W) at the size of the image.
        truth: (P, H, W) bool; None if unknown, which omits the column.
        channel_weights: (P, C), see `MaskHead.channel_weights`; None shows the mean channel.
    """
    mix = "mean" if channel_weights is None else "learned mix"
    titles = ["image", f"attention ({mix})", "coarse mask", "refined mask", "truth"]
    columns = len(titles) - (truth is None)
    panels = []
    large = scale_to(image, 2 * SIDE)  # drawn at twice the size, lines become smooth
    for row, phrase in enumerate(phrases):
        masks, captions = [coarse_logits[row] > 0, logits[row] > 0], ["", ""]
        if truth is not None:
            captions = [f"IoU {iou(mask, truth[row]):.2f}" for mask in masks] + [""]
            masks.append(truth[row])
        weights = None if channel_weights is None else channel_weights[row]
        attention = attention_image(maps, row, weights)
        panels += [(large, phrase), (paint_heat(large, attention.numpy()), "")]
        for mask, caption in zip(masks, captions, strict=True):
            painted = paint_mask(fade(large), mask.cpu().numpy(), mask_color(row))
            panels.append((painted, caption))
    return draw_panels(panels, columns, SIDE, titles[:columns] if titled else ())


def attention_image(maps: AttentionMaps, phrase: int, weights: Tensor | None = None) -> Tensor:
    """(h, w) in [0, 1] on the CPU, covering exactly the image: a (weighted) sum of channels."""
    channels = maps.maps[phrase].float().cpu()  # (C, h, w)
    weights = torch.ones(len(channels)) if weights is None else weights.float().cpu()
    mix = torch.einsum("c,chw->hw", weights, channels)
    h, w = mix.shape
    shown = resample(mix[None, None], maps.image_box, WHOLE_IMAGE, (h, w))[0, 0]
    shown = shown - shown.amin()
    return shown / shown.amax().clamp(min=1e-12)


def iou(mask: Tensor, truth: Tensor) -> float:
    """IoU of a bool mask of any size with the truth, (H, W) bool, at the truth's size."""
    size = (truth.shape[0], truth.shape[1])
    whole = resample(mask[None, None].float(), WHOLE_IMAGE, WHOLE_IMAGE, size)[0, 0] > 0.5
    union = (whole | truth).sum()
    return float((whole & truth).sum() / union.clamp(min=1))
