"""Softened maps, and peaks between the centers of cells."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from flmm_core.explain.maps import TEMPERATURE, Maps, peak_of


def test_a_softened_map_is_the_softmax_of_scores_at_a_temperature() -> None:
    scores = 6 * torch.randn(3, 20, generator=torch.Generator().manual_seed(1))
    maps, softer = (
        (scores / heat).softmax(1).reshape(3, 4, 5).numpy() for heat in (1.0, TEMPERATURE)
    )
    found = Maps(maps[:2], maps[2:]).softened()
    np.testing.assert_allclose(found.words, softer[:2], atol=1e-6)
    np.testing.assert_allclose(found.prompt, softer[2:], atol=1e-6)
    assert found.words.max() < maps[:2].max()


def test_probabilities_stay_as_they_are() -> None:
    maps = Maps(np.full((1, 2, 2), 0.3, np.float32), np.zeros((0, 2, 2), np.float32), True)
    assert maps.softened() is maps


@pytest.mark.parametrize("center", [(0.5, 0.5), (0.37, 0.61), (0.44, 0.3), (0.58, 0.72)])
@pytest.mark.parametrize("width", [0.08, 0.13])
def test_a_peak_lies_where_the_blob_lies_and_not_at_a_cell(
    center: tuple[float, float], width: float
) -> None:
    """A blob that the cells of a coarse grid have averaged."""
    pixels = (np.arange(240) + 0.5) / 240
    away = (pixels[:, None] - center[0]) ** 2 + (pixels - center[1]) ** 2
    blob = np.exp(-away / (2 * width**2))
    cells = blob.reshape(12, 20, 10, 24).mean((1, 3)).astype(np.float32)
    np.testing.assert_allclose(peak_of(cells), center, atol=0.02)  # a fifth of a cell


def test_one_cell_alone_peaks_at_its_center() -> None:
    values = np.zeros((3, 7), np.float32)
    values[2, 5] = 1
    np.testing.assert_allclose(peak_of(values), (2.5 / 3, 5.5 / 7))
