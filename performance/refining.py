"""The masks of one image through SAM: all at once, one decoded at a time, one call per mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.pipeline.types import EncodedImage
from performance import original_way
from performance.alternate import ORIGINAL, OURS, Case, Comparison, Workload, compare_all
from performance.models import build_refiner, noise
from performance.tables import ratio, seconds, table

ALONE = "one call per mask"
DECODED, ORIGINAL_DECODED = "ours, encoded before", "original-way, encoded before"
COLUMNS = (
    "| SAM | masks | ours, s | original-way, s | one call per mask, s | original-way / ours "
    "| without encoder: ours, s | original-way, s | original-way / ours |"
)
IMAGE_HW = (480, 640)


class Refining(Workload):
    """Coarse masks of one image, each with a text prompt of one to four tokens.

    `original-way` encodes the image once and decodes one mask at a time through
    segment-anything's own modules; `one call per mask` asks ours for each mask alone, which encodes
    the image anew. `encoded before` is what follows SAM's image encoder.
    """

    def __init__(self, case: Case) -> None:
        self.encoder, self.refiner = build_refiner(case)
        self.image = self.encoder.prepare(noise(IMAGE_HW[1], IMAGE_HW[0]))
        blobs = torch.randn(case.phrases, 1, 4, 5) * 4
        self.coarse = F.interpolate(blobs, (48, 64), mode="bicubic")[:, 0].to(case.device)
        words = [torch.randn(1 + i % 4, self.refiner.prompt_width) for i in range(case.phrases)]
        self.words = [word.to(case.device) for word in words]
        self.encoded: EncodedImage | None = None

    def prepare(self, way: str) -> None:
        """Encode the image where that is not timed."""
        original = way in (ORIGINAL, ORIGINAL_DECODED)
        original_way.choose_modules(self.encoder, self.refiner, original)
        if way in (DECODED, ORIGINAL_DECODED) and self.encoded is None:
            self.encoded = self._encode()

    def _encode(self) -> EncodedImage:
        return self.encoder.encode([self.image])[0]

    @torch.no_grad()
    def run(self, way: str) -> Tensor:
        """(P, H, W) logits."""
        if way == ALONE:
            singles = [slice(place, place + 1) for place in range(len(self.coarse))]
            return torch.cat([self._refine(self._encode(), each) for each in singles])
        before = way in (DECODED, ORIGINAL_DECODED)
        image = self.encoded if before and self.encoded else self._encode()
        if way in (OURS, DECODED):
            return self._refine(image, slice(None))
        return original_way.refine(self.refiner, image, self.coarse, self.words, IMAGE_HW).full()

    def _refine(self, image: EncodedImage, chosen: slice) -> Tensor:
        coarse, words = self.coarse[chosen], self.words[chosen]
        logits: Tensor = self.refiner([image], [coarse], [words], [IMAGE_HW])[0].full()
        return logits

    def facts(self, result: Tensor) -> dict[str, Any]:
        """How many masks."""
        return {"masks": len(result)}


def cases(size: str) -> list[Case]:
    """The cases of a size; encoding anew for every mask takes minutes with an official one."""
    ways = (OURS, ORIGINAL, DECODED, ORIGINAL_DECODED)
    work = "performance.refining:Refining"
    if size == "tiny":
        return [Case(work, (*ways, ALONE), phrases=16)]
    gpu = {"dtype": "bfloat16", "device": "cuda"} if size == "real" else {}
    return [Case(work, ways, sam=sam, phrases=16, **gpu) for sam in ("vit_b", "vit_l")]


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """The figures, and their table."""
    rows = compare_all(cases(size), repeats, until)
    lines = [
        (
            f"{row.case.sam} {row.case.dtype}",
            row.case.phrases,
            *(seconds(row.median(way)) for way in (OURS, ORIGINAL, ALONE)),
            ratio(row.ratio(ORIGINAL, OURS)),
            *(seconds(row.median(way)) for way in (DECODED, ORIGINAL_DECODED)),
            ratio(row.ratio(ORIGINAL_DECODED, DECODED)),
        )
        for row in rows
    ]
    return rows, table(COLUMNS, lines)
