"""What a cell is measured with: rows of different facts are never mixed."""

from __future__ import annotations

import torch

from flmm_core.benchmark.plan import Cell, Plan
from flmm_core.evaluation.baselines import Method as Flow
from flmm_core.evaluation.phrase_rows import CellFacts
from flmm_core.pipeline.head_folder import Grounder


def cell_facts(plan: Plan, cell: Cell, grounder: Grounder, flow: Flow, digest: str) -> CellFacts:
    """The facts of a cell before it is measured.

    Args:
        plan: What the cell belongs to.
        cell: What is measured.
        grounder: What it is measured with.
        flow: What makes the masks.
        digest: Of the frozen model's weights.
    """
    with_head = cell.method == "head"
    trained = [value for value in grounder.parameters() if value.requires_grad]
    vlm = grounder.backbone.vlm
    return CellFacts(
        backbone=cell.system.backbone,
        model=cell.system.model,
        revision=getattr(vlm.config, "_commit_hash", None),
        weights_sha256=digest,
        head=str(cell.system.head) if with_head else None,
        head_sha256=cell.system.head_sha256 if with_head else None,
        method=cell.method,
        source=cell.source,
        pictures=str(cell.samples.folder),
        protocol=plan.protocol,
        dtype=str(next(iter(vlm.parameters())).dtype).removeprefix("torch."),
        device=torch.device(vlm.device).type,
        steps=grounder.facts.get("steps") if with_head else None,
        trainable_parameters=sum(value.numel() for value in trained) if with_head else None,
        **{
            "refiner": grounder.recipe.refiner,
            "prompt": grounder.recipe.prompt,
            "settings": getattr(flow, "settings", {}),
            "samples": cell.total,
            "batch_size": plan.batch_size,
            "abstain_below": cell.system.abstain_below,
            "seed": 0,
        },
    )
