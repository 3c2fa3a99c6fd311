"""A model at toy width: the same class, processor and geometry, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from flmm_core.pipeline.backbone.geometry.twin import fit_rope_sections, shrunk, wake


def toy_config(config: Any, vocabulary: int) -> Any:
    """A copy of a model's config at toy width, of which the whole model runs."""
    small = shrunk(config, vocabulary)
    fit_rope_sections(small)
    return small


def build_toy(model_class: Any, config: Any, vocabulary: int) -> Any:
    """The toy model of a config, in float32; always the same one."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class._from_config(toy_config(config, vocabulary))
        wake(model)
    return model.float().eval()


def write_toy(model: Any, processor: Any, folder: Path) -> None:
    """Write a toy model, and its processor, to a folder."""
    model.to(torch.bfloat16).save_pretrained(folder)  # half the size
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # weights are written for their owner alone
