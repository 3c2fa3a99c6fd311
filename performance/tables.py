"""Markdown tables of figures, and what they were measured on."""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from flmm_core.loader.cpus import usable_cpus

PACKAGES = ("torch", "transformers")


def environment() -> dict[str, Any]:
    """The machine and the versions."""
    found: dict[str, Any] = {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": _processor(),
        "cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{name: version(name) for name in PACKAGES},
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def _processor() -> str:
    """The processor's own name, where Linux tells it."""
    info = Path("/proc/cpuinfo")
    if info.is_file() and (named := re.search(r"model name\s*:\s*(.+)", info.read_text())):
        return named[1].strip()
    return platform.processor() or platform.machine()


def where(facts: Mapping[str, Any]) -> str:
    """An environment as one line."""
    versions = ", ".join(f"{name} {facts[name]}" for name in ("python", *PACKAGES))
    card = f", {facts['gpu']}" if "gpu" in facts else ""
    return (
        f"{facts['date']}: {facts['machine']}, {facts['cpus']} CPUs, {facts['threads']} "
        f"threads{card}; load before {facts['load_before']}; {versions}."
    )


def table(header: str, rows: Sequence[Sequence[object]]) -> str:
    """A table; all columns but the first are aligned right."""
    columns = header.count("|") - 1
    lines = (f"| {' | '.join(map(str, row))} |" for row in rows)
    return "\n".join([header, f"|---{'|--:' * (columns - 1)}|", *lines])


def seconds(value: float) -> str:
    """With three digits; a dash if it is not a number."""
    if math.isnan(value):
        return "–"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}" if value >= 1 else f"{value:.4f}"


def ratio(value: float) -> str:
    """With two decimals; a dash if it is not a number."""
    return "–" if math.isnan(value) else f"{value:.2f}"


def mib(count: float) -> str:
    """Bytes in MiB; a dash if it is not a number."""
    if math.isnan(count):
        return "–"
    return f"{count / (1 << 20):,.{1 if count < 100 << 20 else 0}f}"
