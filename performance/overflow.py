"""float16 ends at 65504: whether a model's values pass it, and whether that is noticed."""

from __future__ import annotations

from typing import Any

import torch

from flmm_core.errors import RunError
from flmm_core.pipeline.observer import Observer
from performance.alternate import Case, Comparison, Workload, compare_all
from performance.models import LLAVA, build_backbone, caption_for, image_for
from performance.tables import table

PLAIN, PROVOKED = "as it is", "last layer enlarged"
COLUMNS = "| model | S | largest hidden state | values that are not finite | overflow refused |"
LAST = "mlp.down_proj.weight"
ENLARGED = 1e6


class Overflow(Workload):
    """One image with its phrases in float16, all values of its features checked.

    `last layer enlarged` multiplies the last product of the language model by a million: every
    check that a user relies on has to refuse what follows.
    """

    def __init__(self, case: Case) -> None:
        backbone = build_backbone(case)
        self.observer = Observer(backbone)
        image = image_for(case)
        self.sample = self.observer.prepare(image, caption_for(backbone, image, case))
        named = backbone.vlm.model.language_model.named_parameters()
        self.last = [weight for name, weight in named if name.endswith(LAST)][-1]
        self.kept = self.last.detach().clone()

    @torch.no_grad()
    def prepare(self, way: str) -> None:
        """Put the last layer as the way has it."""
        scale = ENLARGED if way == PROVOKED else 1.0
        self.last.copy_((self.kept.float() * scale).clamp(-6e4, 6e4))

    @torch.no_grad()
    def run(self, way: str) -> dict[str, Any]:
        """One forward, through the checks of `flmm`."""
        backbone = self.observer.backbone
        (trace,) = backbone.trace(backbone.collate([self.sample.backbone]))
        values = trace.hidden.float()
        finite = torch.isfinite(values)
        found = {
            "tokens": len(self.sample.backbone),
            "not_finite": int((~finite).sum()) + int((~torch.isfinite(trace.attention)).sum()),
            "largest": float(values[finite].abs().amax()),
            "refused": False,
        }
        try:
            self.observer.observe(self.observer.collate([self.sample]))
        except RunError:
            found["refused"] = True
        return found

    def facts(self, result: dict[str, Any]) -> dict[str, Any]:
        """What was found."""
        return result


def cases(size: str) -> list[Case]:
    """The cases of a size; a tiny model has float16 on a CPU, too."""
    work = "performance.overflow:Overflow", (PLAIN, PROVOKED)
    if size != "real":
        return [Case(*work, name, dtype="float16") for name in ("qwen", "llava_next")]
    gpu = {"dtype": "float16", "device": "cuda"}
    return [Case(*work, "qwen2.5-vl-3b", 1380, **gpu), Case(*work, LLAVA, 0, **gpu)]


def measure(size: str, repeats: int, until: float) -> tuple[list[Comparison], str]:
    """What was found, and its table; nothing here is timed, so every way runs once."""
    rows = compare_all(cases(size), 1, until)
    lines = []
    for row in rows:
        plain, provoked = (row.runs[way].facts for way in (PLAIN, PROVOKED))
        lines.append(
            (
                f"{row.case.model} {row.case.dtype}",
                plain.get("tokens", "–"),
                f"{plain['largest']:,.0f}" if plain else "–",
                plain.get("not_finite", "–"),
                {True: "yes", False: "no", None: "–"}[provoked.get("refused")],
            )
        )
    return rows, table(COLUMNS, lines)
