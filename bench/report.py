"""Measurements as JSON, and as tables of Markdown for the screen and for docs/performance.md."""

from __future__ import annotations

import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "transformers", "timm", "segment-anything", "numpy")
MARKS = "<!-- bench:{name} -->", "<!-- /bench:{name} -->"


def environment() -> dict[str, Any]:
    """Where and with what it was measured."""
    import torch

    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": processor(),
        "cpus": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    if malloc := {key: value for key, value in os.environ.items() if key.startswith("MALLOC_")}:
        found["malloc"] = malloc
    return found


def processor() -> str:
    """The processor's own name, where the system tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file() and (named := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        return named[1].strip()
    return platform.processor() or platform.machine()


def where(facts: Mapping[str, Any]) -> str:
    """A line of text for an environment."""
    names = ("torch", "transformers", "timm")
    versions = ", ".join(f"{name} {facts[name]}" for name in names)
    card = f", {facts['gpu']}" if "gpu" in facts else ""
    return (
        f"{facts['date']}: {facts['machine']}, {facts['cpus']} CPUs, {facts['threads']} "
        f"threads{card}; load before {facts['load_before']}; Python {facts['python']}, {versions}."
    )


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table; columns but the first are set to the right."""
    lines = [f"| {' | '.join(columns)} |", f"|---{'|--:' * (len(columns) - 1)}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def mib(count: float) -> str:
    """Bytes in MiB."""
    return f"{count / (1 << 20):,.1f}" if count < 100 << 20 else f"{count / (1 << 20):,.0f}"


def seconds(value: float) -> str:
    """With three digits that count."""
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def write(folder: Path, name: str, result: Mapping[str, Any], text: str) -> None:
    """`NAME.json` and `NAME.md` in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (folder / f"{name}.md").write_text(text + "\n", encoding="utf-8")


def rewrite(page: Path, name: str, text: str) -> bool:
    """Put the text between a page's marks; gives whether it has them."""
    start, end = (mark.format(name=name) for mark in MARKS)
    before, found, rest = page.read_text(encoding="utf-8").partition(start)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        return False
    page.write_text(f"{before}{start}\n{text}\n{end}{after}", encoding="utf-8")
    return True
