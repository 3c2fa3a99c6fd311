"""The twin's short cuts change nothing, and nothing outside is changed by a measurement."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from flmm_core.pipeline.backbone.geometry import twin
from flmm_core.pipeline.backbone.geometry.measured_views import Measured, MeasuredGeometry
from flmm_core.pipeline.backbone.geometry.owners import SEVERAL, Ratios
from flmm_core.pipeline.backbone.geometry.tokenwise import skip_tokenwise
from recipes.families import FAMILIES
from recipes.twins import PARTS


def measured(family: str, image_hw: tuple[int, int]) -> Measured:
    config, processor = FAMILIES[family]()
    return MeasuredGeometry(config, processor).at(image_hw)


def test_skipped_blocks_change_no_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    quick = measured("qwen3_vl", (200, 300))
    monkeypatch.setattr(twin, "skip_tokenwise", lambda *given: None)
    monkeypatch.setattr(twin, "one_product", lambda *given: None)
    assert str(measured("qwen3_vl", (200, 300))) == str(quick)


class _Blocks(nn.Module):
    """Two blocks of a kind; `runs` counts how often they were run."""

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(kind() for _ in range(2))
        self.runs = 0
        for block in self.blocks:
            block.register_forward_hook(self._count)

    def _count(self, *given: Any) -> None:
        self.runs += 1


class _Neighbors(nn.Module):
    """Each row takes something of the one before it."""

    def forward(self, rows: Tensor) -> Tensor:
        return rows + 1e-3 * rows.roll(1, -2)


@pytest.mark.parametrize(
    ("kind", "skips"),
    [
        (lambda: nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 16)), True),
        (lambda: nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), False),
        (_Neighbors, False),
    ],
    ids=["by row", "attention", "neighbors"],
)
def test_only_blocks_that_mix_no_rows_are_skipped(kind: Any, skips: bool) -> None:
    model = _Blocks(kind).eval()
    skip_tokenwise(model, nn.Identity(), 16)
    rows = torch.randn(1, 10, 16)
    for _ in range(2):
        given = rows
        for block in model.blocks:
            given = block.forward(given)
    assert torch.equal(given, rows) == skips


def test_tiles_beside_each_other_are_one_grid() -> None:
    """Idefics3 names its tiles by row and column; the image fills the canvas."""
    config, processor = FAMILIES["idefics3"]()
    found = MeasuredGeometry(config, processor).at((300, 400))
    assert found.view_names == ("coarse", "fine")
    (coarse, fine), side = found.views, 13
    tiles = fine.token_index.view(3, side, 4, side).transpose(1, 2).reshape(12, side * side)
    # tiles in the order of their names, each row by row, the whole image last
    assert tiles.flatten().tolist() == list(range(12 * side * side))
    assert coarse.token_index.flatten().tolist() == list(range(12 * side**2, 13 * side**2))
    for view in found.views:
        assert view.image_box == pytest.approx((0, 0, 1, 1), abs=0.001)


@pytest.mark.parametrize(
    ("family", "names"), [("minicpm_v", ("coarse", "fine")), ("lfm2_vl", ("coarse", "fine"))]
)
def test_patches_of_several_scales_in_one_tensor(family: str, names: tuple[str, ...]) -> None:
    found = measured(family, (600, 900))
    assert found.view_names == names
    for view in found.views:
        assert view.image_box == pytest.approx((0, 0, 1, 1), abs=0.002)
    ids = torch.cat([view.token_index.flatten() for view in found.views]).sort().values
    assert ids.tolist() == list(range(found.image_tokens))


def test_a_measurement_leaves_random_numbers_and_modes_alone() -> None:
    before = torch.get_rng_state()
    with torch.inference_mode():
        found = MeasuredGeometry(*PARTS["deepseek_vl"](pixels=32)).at((30, 40))
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), before)
    assert not found.views[0].token_index.requires_grad
    found.views[0].token_index.clone()[0, 0] = 5


def test_gradients_that_nearly_cancel_name_no_second_owner() -> None:
    """One element in millions gives an inexact ratio, one of another token a wrong one."""
    codes = torch.tensor([1.1, 2.3, 3.2], dtype=torch.float64)
    strength = torch.tensor([[2.0, 1.0, 1e-9]], dtype=torch.float64)
    exact = torch.tensor([[2.3, 2.3, 2.3]], dtype=torch.float64)
    inexact = exact + torch.tensor([0, 0, 1e-3])
    ratios = Ratios(codes, {}, {})
    assert ratios.owners_of_strong(inexact, strength).tolist() == [1]
    assert ratios.owners(*inexact.aminmax(dim=1)).tolist() == [SEVERAL]
    other = exact + torch.tensor([0, 0.9, 0])
    assert ratios.owners_of_strong(other, strength).tolist() == [SEVERAL]
    weak_other = exact + torch.tensor([0, 0, 0.9])
    assert ratios.owners_of_strong(weak_other, 10 * strength.clamp(max=0.1)).tolist() == [SEVERAL]
