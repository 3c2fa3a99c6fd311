"""Makes a twin quick: skips the blocks that mix no tokens, which with attention off are most.

A block is tried the first time that it runs: some rows of its input are changed, and no other row
of its output may change. Then it is the identity, which owners do not depend on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

Signature = tuple[type[nn.Module], tuple[tuple[str, tuple[int, ...]], ...]]


def skip_tokenwise(model: nn.Module, decoder: nn.Module, width: int) -> None:
    """Make the blocks in the model's lists, outside the decoder, skip themselves where they may.

    Args:
        model: Changed in place.
        decoder: Its modules are never run.
        width: Of a row; what looks otherwise is run.
    """
    inside = set(decoder.modules())
    known: dict[Signature, bool] = {}
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and module not in inside and len(module) > 1:
            for block in module:
                block.forward = _Tried(block, known, width)


def one_product(model: nn.Module) -> None:
    """Convolutions over inputs of the kernel's size, one patch a row, as one matrix product."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.groups == 1:
            module.forward = _Product(module)  # type: ignore[assignment]


class _Product:
    """The forward of such a convolution, or of another."""

    def __init__(self, convolution: nn.Conv2d | nn.Conv3d) -> None:
        self.run, self.convolution = convolution.forward, convolution

    def __call__(self, values: Tensor) -> Tensor:
        weight, bias = self.convolution.weight, self.convolution.bias
        if values.shape[1:] != weight.shape[1:] or any(self.convolution.padding):
            return self.run(values)
        rows = nn.functional.linear(values.flatten(1), weight.flatten(1), bias)
        return rows.view(*rows.shape, *[1] * (values.ndim - 2))


class _Tried:
    """The forward of a block, until it is known whether it mixes tokens; then perhaps nothing."""

    def __init__(self, block: nn.Module, known: dict[Signature, bool], width: int) -> None:
        self.run = block.forward
        weights = ((name, tuple(value.shape)) for name, value in block.named_parameters())
        self.signature: Signature = type(block), tuple(weights)
        self.known, self.width = known, width

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        place: Any = 0 if args else "hidden_states"
        rows = args[0] if args else kwargs.get(place)
        if not (isinstance(rows, Tensor) and rows.ndim in (2, 3) and rows.shape[-1] == self.width):
            return self.run(*args, **kwargs)
        skips = self.known.get(self.signature)
        if skips is None and rows.shape[-2] != self.width:
            skips = self.known[self.signature] = self._is_tokenwise(rows, args, kwargs)
        return rows if skips else self.run(*args, **kwargs)

    @torch.no_grad()
    def _is_tokenwise(self, rows: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        before = self._run_on(rows, args, kwargs)
        if not isinstance(before, Tensor) or before.shape != rows.shape:
            return False
        random = torch.Generator().manual_seed(0)
        for _ in range(4):
            changed = torch.rand(rows.shape[:-1], generator=random) < 0.5
            noise = torch.rand(rows.shape, generator=random, dtype=rows.dtype)
            after = self._run_on(rows + changed[..., None] * noise, args, kwargs)
            moved = (after - before).abs().amax(-1) > 1e-9 * before.abs().max()
            if not torch.equal(moved, changed):
                return False
        return True

    def _run_on(self, rows: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if args:
            return self.run(rows, *args[1:], **kwargs)
        return self.run(**{**kwargs, "hidden_states": rows})
