"""What a run leaves behind, to compare a run with another one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch


def outcome(run: Path) -> dict[str, Any]:
    """All that a run leaves, apart from times and `environment.json`."""
    found: dict[str, Any] = {
        str(path.relative_to(run)): path.read_bytes()
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".safetensors", ".png")
    }
    for path in run.rglob("*.json"):
        found[str(path.relative_to(run))] = timeless(json.loads(path.read_bytes()))
    for path in run.rglob("optimizer.pt"):  # equal states are not always pickled to equal bytes
        found[str(path.relative_to(run))] = plain(torch.load(path, weights_only=True))
        del found[str(path.relative_to(run).with_suffix(".json"))]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    found["metrics"] = [timeless(json.loads(line)) for line in lines]
    found["names"] = sorted(str(path.relative_to(run)) for path in run.rglob("*"))
    found["links"] = {name: (run / name).resolve().name for name in ("best", "last")}
    del found["environment.json"]
    return found


def timeless(value: Any) -> Any:
    if isinstance(value, dict):
        times = ("seconds", "share_waiting_for_data")
        kept = {k: v for k, v in value.items() if k not in times and "_per_second" not in k}
        return {key: timeless(inner) for key, inner in kept.items()}
    return [timeless(inner) for inner in value] if isinstance(value, list) else value


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return value.tolist() if isinstance(value, torch.Tensor) else value


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in one.keys() | other.keys() if one.get(key) != other.get(key)]
