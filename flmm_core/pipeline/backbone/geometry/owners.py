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
WEAK, EXACT = 1e-4, 1e-10
"""Which gradients nearly cancel, and how exact all are, as fractions of the largest of a block."""


@dataclass(frozen=True)
class Ratios:
    """Codes of tokens, as pixel elements give them.

    Attributes:
        codes: (S,) float64; the code of place j in the sequence lies between j + 1 and j + 1.4.
        by_key: Of each pixel tensor, of its shape; NaN where no token reads an element.
        strength: By key, the absolute gradient that a ratio was divided by; those that nearly
            cancel give inexact ratios.
    """

    codes: Tensor
    by_key: dict[str, Tensor]
    strength: dict[str, Tensor]

    def owners(self, low: Tensor, high: Tensor) -> Tensor:
        """int64 places in the sequence of those whose code is both of two ratios, or SEVERAL."""
        owner = (high.nan_to_num(0, 0, 0) - 1.2).round().clamp(0, len(self.codes) - 1).long()
        code = self.codes[owner]
        exact = ((low - code).abs() < CLOSE) & ((high - code).abs() < CLOSE)
        owner[~exact] = SEVERAL
        return owner

    def owners_of_strong(self, blocks: Tensor, strength: Tensor) -> Tensor:
        """The same of (K, elements), by the elements whose gradients do not cancel.

        The others must agree as far as they are exact.
        """
        most = strength.amax(1, keepdim=True)
        weak = strength < WEAK * most
        low = blocks.masked_fill(weak, torch.inf).amin(1)
        high = blocks.masked_fill(weak, -torch.inf).amax(1)
        owner = self.owners(low, high)
        off = (blocks - self.codes[owner.clamp(min=0)][:, None]).abs() * strength
        agree = (off <= EXACT * self.codes[-1] * most).all(1)
        owner[~agree] = SEVERAL
        return owner


def find_ratios(twin: Twin, encoded: Encoded) -> Ratios:
    """Two passes back through the twin; raises `GeometryRefused` as that does."""
    with torch.enable_grad():
        leaves = {key: one.values.requires_grad_() for key, one in encoded.pixels.items()}
        rows = twin.inputs_embeds({**encoded.others, **leaves})  # (S, D)
        if not rows.requires_grad:
            raise refuse("No token depends on the image.")
        random = torch.Generator().manual_seed(1)
        mixed = rows @ torch.randn(rows.shape[1], generator=random, dtype=rows.dtype)  # (S,)
        irregular = 0.4 * torch.rand(len(rows), generator=random, dtype=rows.dtype)
        codes = torch.arange(len(rows)) + 1 + irregular  # (S,)
        values = list(leaves.values())
        plain = torch.autograd.grad(mixed.sum(), values, retain_graph=True, allow_unused=True)
        coded = torch.autograd.grad((mixed * codes).sum(), values, allow_unused=True)
    ratios, strength = {}, {}
    for key, one, other in zip(leaves, plain, coded, strict=True):
        if one is not None and other is not None:
            ratios[key] = other.div_(one)
            strength[key] = one.abs_()
    return Ratios(codes, ratios, strength)
