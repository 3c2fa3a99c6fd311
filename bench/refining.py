"""Masks of one image through SAM: all at once, one decoded at a time, one image a mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench import original_way
from bench.cases import ORIGINAL, OURS, CaseSpec
from bench.inputs import picture, random_sam
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.refiners.sam_model import OFFICIAL, build_sam
from flmm_core.pipeline.types import EncodedImage

ALONE = "one call a mask"
BEHIND = OURS_BEHIND, ORIGINAL_BEHIND = "ours, encoded before", "original-way, encoded before"
WAYS = (OURS, ORIGINAL, ALONE, *BEHIND)
PICTURE_HW = (480, 640)


class RefiningCase:
    """16 coarse masks of one image, each with a prompt of one to four words.

    `original-way` encodes the image once and decodes one mask at a time through
    segment-anything's own modules; `one call a mask` asks ours for each mask alone, which encodes
    the image anew. `encoded before` is what is left behind SAM's image encoder.
    """

    def __init__(self, spec: CaseSpec) -> None:
        self.spec = spec
        torch.manual_seed(0)
        sam = random_sam(spec.model) if spec.model in OFFICIAL else build_sam(spec.model)
        self.refiner = SamRefiner(sam).to(spec.device).eval()
        self.picture = self.refiner.prepare(picture(PICTURE_HW[1], PICTURE_HW[0]))
        blobs = torch.randn(spec.phrases, 1, 4, 5) * 4
        self.coarse = F.interpolate(blobs, (48, 64), mode="bicubic")[:, 0].to(spec.device)
        width = self.refiner.prompt_width
        words = [torch.randn(1 + index % 4, width) for index in range(spec.phrases)]
        self.logits: Tensor | None = None
        self.encoded: EncodedImage | None = None
        self.words = [word.to(spec.device) for word in words]

    def prepare(self, way: str) -> None:
        """Exchange how SAM's modules compute, and encode the image where that is not timed."""
        original_way.choose_modules(self.refiner, way in (ORIGINAL, ORIGINAL_BEHIND))
        if way in BEHIND and self.encoded is None:
            (self.encoded,) = self.refiner.read([self.picture])

    @torch.no_grad()
    def run(self, way: str) -> dict[str, Any]:
        """All masks once."""
        self.logits = None  # what nobody reads any more is not kept beside the new
        refiner, coarse, words = self.refiner, self.coarse, self.words
        behind = way in BEHIND
        picture: Tensor | EncodedImage | None = self.encoded if behind else self.picture
        assert picture is not None
        if way in (OURS, OURS_BEHIND):
            (logits,) = refiner([picture], [coarse], [words], [PICTURE_HW])
        elif way in (ORIGINAL, ORIGINAL_BEHIND):
            logits = original_way.refine(refiner, picture, coarse, words, PICTURE_HW)
        else:
            singles = [
                refiner([picture], [coarse[i : i + 1]], [words[i : i + 1]], [PICTURE_HW])[0]
                for i in range(len(coarse))
            ]
            logits = torch.cat(singles)
        self.logits = logits
        return {"masks": len(logits)}


def specs(size: str) -> list[CaseSpec]:
    """The cases of a size: "tiny", or "medium": SAM's ViT-B and ViT-L."""
    names = {"tiny": ["tiny"], "medium": ["vit_b", "vit_l"]}
    return [CaseSpec("refining", name, phrases=16) for name in names[size]]
