"""Pixel tensors are taken in large blocks where single pixels would say no more."""

from __future__ import annotations

from typing import Any

import pytest

from flmm_core.pipeline.backbone.geometry import measured_views
from flmm_core.pipeline.backbone.geometry.measured_views import MeasuredGeometry
from recipes.families import FAMILIES


@pytest.mark.parametrize(("family", "side"), [("paddleocr_vl", 14), ("llava", 14)])
def test_a_patch_is_one_block(family: str, side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    cut: list[Any] = []
    real = measured_views.cut_blocks
    monkeypatch.setattr(
        measured_views,
        "cut_blocks",
        lambda *given, **more: cut.append(real(*given, **more)) or cut[-1],
    )
    config, processor = FAMILIES[family]()
    measured = MeasuredGeometry(config, processor).at((224, 280))
    assert [blocks.side for blocks in cut] == [side]
    assert measured.residual < 0.02
