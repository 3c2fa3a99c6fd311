from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps
from flmm_core.training.contact_sheet import (
    COLUMNS,
    MARGIN,
    PREDICTED,
    SIDE,
    attention_image,
    draw_sheet,
)


def maps_with_a_spot(
    row: int, column: int, box: tuple[float, ...] = WHOLE_PICTURE
) -> AttentionMaps:
    """One phrase, five channels: four even ones and one with all its mass in one cell."""
    maps = torch.full((1, 5, 8, 8), 1 / 64)
    maps[0, 2] = 0
    maps[0, 2, row, column] = 1
    return AttentionMaps(maps, box)  # type: ignore[arg-type]


def test_the_attention_image_shows_the_most_focused_channel() -> None:
    shown = attention_image(maps_with_a_spot(1, 6), 0, channels=1)
    assert divmod(int(shown.argmax()), 8) == (1, 6)
    assert (float(shown.min()), float(shown.max())) == (0, 1)


def test_the_attention_image_leaves_padding_out() -> None:
    # The grid's upper half shows padding: its cell (6, 2) lies in the middle of the image.
    shown = attention_image(maps_with_a_spot(6, 2, (-1.0, 0.0, 1.0, 1.0)), 0, channels=1)
    row, _ = divmod(int(shown.argmax()), 8)
    assert row in (3, 4, 5)


def test_a_sheet_has_a_row_a_phrase_and_a_column_a_stage() -> None:
    image = Image.new("RGB", (60, 40), (10, 10, 10))
    maps = AttentionMaps(torch.rand(2, 5, 8, 8), WHOLE_PICTURE)
    coarse, logits = torch.full((2, 8, 8), -5.0), torch.full((2, 40, 60), -5.0)
    logits[1, :, 30:] = 5
    truth = logits > 0
    with_truth = draw_sheet(image, ["a", "bé 漢"], maps, coarse, logits, truth)
    without = draw_sheet(image, ["a", "b"], maps, coarse, logits)
    assert with_truth.width - without.width == SIDE + MARGIN
    assert with_truth.width == MARGIN + len(COLUMNS) * (SIDE + MARGIN)
    # The refined mask's right half is tinted in the second row only.
    pixels = np.asarray(with_truth).astype(int)
    left = MARGIN + 3 * (SIDE + MARGIN)
    second = pixels[-100, left + 10], pixels[-100, left + SIDE - 10]
    towards = [np.abs(p - np.array(PREDICTED)).sum() for p in second]
    assert towards[1] < towards[0] - 50
