"""`--precision bf16`: bfloat16 where most of the work is, float32 where it matters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.presence import Presence
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.unet import UNet
from tests.cached import Runs


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    made = Runs(random_twin, drawn, tmp_path)
    made.settings |= {
        "pictures": 0,
        "learning_rate": 2e-3,
        "eval_data": [made.source],
        "steps": 3,
        "batch_size": 2,
    }
    return made


def losses(run: Path) -> list[float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def refined(run: Path) -> float:
    return float(json.loads((run / "summary.json").read_text())["refined"]["ciou"])


def test_it_ends_close_to_float32(runs: Runs) -> None:
    half_head = {"precision": "bf16", "dtype": "float32"}
    full = runs.train("full")
    half = runs.train("half", **half_head)
    assert losses(half) != losses(full)
    assert losses(half) == pytest.approx(losses(full), rel=0.03)
    assert refined(half) == pytest.approx(refined(full), abs=0.03)


def test_what_is_half_and_what_is_not(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, set[torch.dtype]] = {}

    def note(name: str, value: Tensor) -> None:
        seen.setdefault(name, set()).add(value.dtype)

    def outputs(owner: Any, method: str, name: str) -> None:
        former = getattr(owner, method)

        def wrapped(self: Any, *args: Any, **kwargs: Any) -> Any:
            out = former(self, *args, **kwargs)
            if self.training:
                for value in out if isinstance(out, tuple) else (out,):
                    note(name, value)
            return out

        monkeypatch.setattr(owner, method, wrapped)

    outputs(UNet, "forward", "inside")
    outputs(MaskHead, "forward", "coarse logits")
    outputs(Presence, "forward", "presence logits")
    outputs(SamRefiner, "_decode", "refined logits")
    outputs(SamRefiner, "_box_prompts", "boxes")
    run = runs.train("run", steps=1, precision="bf16", eval_data=[])
    assert seen.pop("inside") == {torch.bfloat16}
    assert seen == {
        name: {torch.float32}
        for name in ("coarse logits", "presence logits", "refined logits", "boxes")
    }
    state = torch.load(run / "last" / "optimizer.pt", weights_only=True)["optimizer"]["state"]
    assert {value.dtype for one in state.values() for value in one.values()} == {torch.float32}


def test_the_model_is_loaded_in_bfloat16_unless_dtype_says_otherwise(runs: Runs) -> None:
    def dtype(**more: Any) -> str:
        return str(runs.config(**more)[0].dtype)

    assert dtype() == "auto"
    assert dtype(precision="bf16") == "bfloat16"
    assert dtype(precision="bf16", dtype="float32") == "float32"
    assert dtype(precision="bf16", dtype="auto") == "auto"
