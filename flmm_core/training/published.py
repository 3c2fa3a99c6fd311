"""What a run says of its head on the hub: scores, settings, versions; no path of this machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flmm_core.config.resolve import flat
from flmm_core.config.resume import CONFIG
from flmm_core.config.yaml_files import read_yaml
from flmm_core.errors import UsageError
from flmm_core.pipeline.head_folder import find_head
from flmm_core.pipeline.hub import HUB_ID, split_revision
from flmm_core.pipeline.model_card import Evidence
from flmm_core.training.run_folder import ENVIRONMENT, SUMMARY

SHOWN = (
    "steps", "epochs", "batch_size", "accumulate", "learning_rate", "refiner_learning_rate",
    "refine_at_most", "weight_decay", "clip_norm", "warmup", "ema", "precision", "dtype", "seed",
    "train_protocol", "caption_mode", "absent_share", "head.base_channels", "head.enlarge_to",
    "head.pool", "head.pool_ends", "head.paper_rounding", "head.presence", "head.keywords",
)  # fmt: skip
"""The settings on a model card: numbers and words that say nothing of the machine."""


def find_local_head(run: Path) -> Path:
    """The head of a run folder or a head's folder; raises as `find_head`, and for a hub id."""
    if not run.exists():
        raise UsageError(
            f"There is no folder '{run}' to push.",
            repair="Give a run folder of `flmm train`, one of its checkpoints or a head's folder.",
        )
    return find_head(run)


def evidence_of(run: Path, terms: str = "") -> Evidence:
    """What the files of a run say of its head; a folder that is no run says nothing.

    `terms` is the license of the head.
    """
    settings: dict[str, Any] = {}
    if (run / CONFIG).is_file():
        settings = dict(flat(read_yaml(run / CONFIG)[0]))
    weights = settings.get("refiner_weights")
    shown = {
        name: settings[name] for name in SHOWN if settings.get(name) not in (None, "none", 0.0)
    }
    if settings.get("head.pool") != "learned":
        shown.pop("head.pool_ends", None)
    return Evidence(
        scores=_read(run / SUMMARY).get("evaluations") or {},
        settings=shown,
        versions=_read(run / ENVIRONMENT).get("packages") or {},
        refiner_weights=_shown(str(weights)) if weights else "",
        license=terms,
    )


def _shown(weights: str) -> str:
    """What a refiner's weights are called elsewhere: a hub id, or a file's or folder's name."""
    path = Path(weights)
    on_hub = HUB_ID.fullmatch(split_revision(weights)[0]) and path.suffix not in (".pt", ".pth")
    return weights if on_hub and not path.exists() else path.name


def _read(path: Path) -> dict[str, Any]:
    """The contents of a JSON object; empty if there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
