"""Which token each pixel element reaches, by gradients of the twin.

With E_j a random mix of row j of inputs_embeds, the gradients of sum_j E_j and of sum_j c_j E_j at
an element have the ratio c_owner if it reaches one token. The codes c are irregular, so that the
ratio of an element that reaches several tokens is none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.geometry.ramps import Encoded
from flmm_core.pipeline.backbone.geometry.refused import refuse
from flmm_core.pipeline.backbone.geometry.twin import Twin

NOBODY, SEVERAL = -1, -2

CLOSE = 1e-4
"""How exact a ratio must be, in steps from one code to the next."""


@dataclass(frozen=True)
class Owners:
    """Of every element of each pixel tensor, the place in the sequence of its token.

    int64, of the tensor's shape; NOBODY reads it, or SEVERAL tokens do.
    """

    by_key: dict[str, Tensor]
    several: int


def find_owners(twin: Twin, encoded: Encoded) -> Owners:
    """Two passes back through the twin; raises `GeometryRefused` as that does."""
    with torch.inference_mode(False), torch.enable_grad():
        leaves = {key: one.values.clone().requires_grad_() for key, one in encoded.pixels.items()}
        rows = twin.inputs_embeds({**encoded.others, **leaves})  # (S, D)
        if not rows.requires_grad:
            raise refuse("No token depends on the image.")
        random = torch.Generator().manual_seed(1)
        mixed = rows @ torch.randn(rows.shape[1], generator=random, dtype=rows.dtype)  # (S,)
        codes = (
            torch.arange(len(rows))
            + 1
            + 0.4 * torch.rand(len(rows), generator=random, dtype=rows.dtype)
        )  # (S,)
        values = list(leaves.values())
        plain = torch.autograd.grad(mixed.sum(), values, retain_graph=True, allow_unused=True)
        coded = torch.autograd.grad((mixed * codes).sum(), values, allow_unused=True)
    by_key = {}
    several = 0
    for key, one, other in zip(leaves, plain, coded, strict=True):
        if one is not None and other is not None:
            by_key[key] = _read(one, other, codes)
            several += int((by_key[key] == SEVERAL).sum())
    return Owners(by_key, several)


def _read(plain: Tensor, coded: Tensor, codes: Tensor) -> Tensor:
    """The owners, from the two gradients; both are used up."""
    strength = plain.abs().maximum(coded.abs() / codes[-1])
    unread = strength <= 1e-12 * strength.max()
    plain[unread] = 1.0
    ratio = coded.div_(plain)
    ratio.nan_to_num_(0.0, 0.0, 0.0).clamp_(0, len(codes) + 1)
    owner = (ratio - 1.2).round_().clamp_(0, len(codes) - 1).long()
    exact = (ratio - codes[owner]).abs_() < CLOSE
    owner[~exact] = SEVERAL
    owner[unread] = NOBODY
    return owner
