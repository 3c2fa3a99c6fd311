"""The U-Net against the original's numbers."""

from __future__ import annotations

import json

import pytest
import torch

from flmm_core.pipeline.types import WHOLE_IMAGE, AttentionMaps
from flmm_core.pipeline.unet import UNet
from tests.heads import REFERENCE, reference_mask_head, tensors


def normalised(attention: torch.Tensor) -> torch.Tensor:
    return attention / attention.sum(dim=(2, 3), keepdim=True)


def test_names_and_shapes_are_those_of_published_heads() -> None:
    production = json.loads((REFERENCE / "unet_keys.json").read_text())["production"]
    unet = UNet(in_channels=384, base_channels=64)
    assert {k: list(v.shape) for k, v in unet.state_dict().items()} == production["state_dict"]
    assert sum(value.numel() for value in unet.parameters()) == 7_403_969


@pytest.mark.parametrize("grid", ["g24x24", "g17x31"])
def test_enlarging_padding_and_logits_are_the_originals(grid: str) -> None:
    numbers = tensors("unet_small_io")
    head = reference_mask_head(paper_rounding=True)
    maps = AttentionMaps(normalised(numbers[f"{grid}.input"]), WHOLE_IMAGE)
    with torch.no_grad():
        (logits,) = head([maps])
    assert logits.shape == numbers[f"{grid}.output"][:, 0].shape
    assert (logits - numbers[f"{grid}.output"][:, 0]).abs().max() <= 1e-4


def test_gradients_are_the_originals() -> None:
    numbers = tensors("unet_small_io")
    # In float32, one ReLU that is rounded to the other side of 0 changes all gradients before it.
    head = reference_mask_head().double()
    attention = numbers["g24x24.input"].double().requires_grad_()
    logits = head._grid_logits(normalised(attention))
    (logits * numbers["grad.probe"][:, 0]).sum().backward()
    grads = {f"param.{name}": value.grad for name, value in head.unet.named_parameters()}
    grads["input"] = attention.grad
    wanted = {k.removeprefix("grad."): v for k, v in numbers.items() if k.startswith("grad.")}
    del wanted["probe"]
    assert len(wanted) == 7
    for name, value in wanted.items():
        assert (grads[name] - value).abs().max() <= 1e-4 * value.abs().max(), name


def test_it_starts_near_one_half() -> None:
    torch.manual_seed(0)
    logits = UNet(24, 16)(torch.rand(2, 24, 16, 16))
    assert logits.abs().max() < 1
