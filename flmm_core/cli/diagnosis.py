"""What `flmm doctor` finds out, part by part: none keeps the others from speaking."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from flmm_core import __version__
from flmm_core.data.drawn.splits import SPLITS, split_folder
from flmm_core.errors import FlmmError, shortened
from flmm_core.files import cache_folder, check_writable, free_bytes
from flmm_core.loader.cpus import usable_cpus
from flmm_core.plugin_facts.examine import examine
from flmm_core.plugins import (
    Registry,
    is_own,
    load_backbones,
    load_phrase_finders,
    load_refiners,
)
from flmm_core.spec import plural

VERSION = 1
"""Of the JSON object: it may gain keys, but what a key means stays as it is."""
OPTIONAL = {
    "bitsandbytes": "quantized models",
    "peft": "adapters (LoRA)",
    "flash-attn": "models whose config.json asks for it",
    "pyarrow": "parquet data",
    "ray": "flmm annotate",
    "spacy": "phrases by spaCy",
    "tensorboard": "--log-with tensorboard",
    "wandb": "--log-with wandb",
    "trackio": "--log-with trackio",
    "mlflow": "--log-with mlflow",
}
PROBE_SECONDS = 180
CLASS_SECONDS = 20.0
"""What the classes of all plugins may take to import, once torch is imported."""
HUB_SECONDS = 3.0
WALK_SECONDS = 2.0
"""The size of a folder that takes longer to walk is not told."""

PROBE = """
import json, sys
found = {}
try:
    import torch
    found["version"] = torch.__version__
    found["cuda"] = torch.version.cuda
    found["devices"] = [{"name": "cpu", "title": "CPU", "memory_bytes": None, "free_bytes": None}]
    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        title = torch.cuda.get_device_name(number)
        facts = {"name": f"cuda:{number}", "title": title, "memory_bytes": total}
        found["devices"].append({**facts, "free_bytes": free})
    if torch.backends.mps.is_available():
        facts = {"name": "mps", "title": "Apple GPU", "memory_bytes": None, "free_bytes": None}
        found["devices"].append(facts)
    (torch.ones(2, 2) @ torch.ones(2, 2)).sum().item()
except BaseException as error:
    found["error"] = f"{type(error).__name__}: {error}"
print("\\n" + json.dumps(found))
"""
"""Runs in a process of its own: a broken build of torch may crash or hang instead of raising."""


def diagnose() -> dict[str, Any]:
    """The contents of `flmm doctor --json`; `problems` lists what keeps flmm from working."""
    problems: list[str] = []

    def safely(name: str, examine: Callable[[list[str]], Any]) -> Any:
        try:
            return examine(problems)
        except Exception as error:  # whatever is broken, the rest is told
            problems.append(f"{name} cannot be examined: {_line(error)}")
            return None

    probe = safely("torch", _probe) or {}
    return {
        "version": VERSION,
        "flmm": __version__,
        "python": {
            "version": platform.python_version(),
            "executable": sys.executable,
            "system": platform.platform(),
        },
        "machine": safely("The machine", lambda _: _machine()),
        "torch": {
            "version": probe.get("version"),
            "cuda": probe.get("cuda"),
            "error": probe.get("error"),
        },
        "devices": probe.get("devices", []),
        "packages": safely("The packages", _packages),
        "optional": [
            {"name": name, "version": _version(name), "for": use} for name, use in OPTIONAL.items()
        ],
        "plugins": safely("The plugins", lambda told: _plugins(told, bool(probe.get("version")))),
        "hub": safely("The hub", lambda _: _hub()),
        "folders": safely("The folders", _folders),
        "data": safely("The drawn scenes", lambda _: _drawn()),
        "problems": problems,
    }


def _probe(problems: list[str]) -> dict[str, Any]:
    """What torch says."""
    try:
        run = subprocess.run(
            [sys.executable, "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"},
        )
        found: dict[str, Any] = json.loads(run.stdout.splitlines()[-1])
    except subprocess.TimeoutExpired:
        found = {"error": f"importing it takes more than {PROBE_SECONDS} s"}
    except (IndexError, ValueError):
        last = (run.stderr.splitlines() or [""])[-1]
        found = {"error": f"the process ended with status {run.returncode}. {last}".rstrip()}
    if error := found.get("error"):
        found["error"] = shortened(" ".join(str(error).split()), 300)
        repair = "Install it again (pip install --force-reinstall torch torchvision)."
        problems.append(f"torch does not work: {found['error']}. {repair}")
    return found


def _machine() -> dict[str, Any]:
    memory = psutil.virtual_memory()
    return {
        "cores": os.cpu_count(),
        "usable_cores": usable_cpus(),
        "memory_bytes": memory.total,
        "available_bytes": memory.available,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _packages(problems: list[str]) -> list[dict[str, Any]]:
    """What flmm needs, with what is installed."""
    found = []
    for text in metadata.requires("flmm") or ():
        needed = Requirement(text)
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        version = _version(needed.name)
        fits = version is not None and needed.specifier.contains(version, prereleases=True)
        if not fits:
            what = "is missing" if version is None else f"is {version}"
            problems.append(
                f"{needed.name} {what}; flmm needs {needed.name}{needed.specifier}. "
                f'Install it: pip install "{needed.name}{needed.specifier}".'
            )
        wanted = {"name": needed.name, "version": version, "needs": str(needed.specifier)}
        found.append({**wanted, "fits": fits})
    return sorted(found, key=lambda package: str(package["name"]))


def _plugins(problems: list[str], torch_works: bool) -> dict[str, Any]:
    registries = load_backbones(), load_refiners(), load_phrase_finders()
    # A distribution that does not load is met by each.
    failed = {f.plugin.label: f.reason for registry in registries for f in registry.failures}
    unloadable = _unloadable(registries) if torch_works else {}
    problems += [f"Plugin {label} does not load: {reason}" for label, reason in failed.items()]
    problems += [f"The {name} cannot be used: {reason}" for name, reason in unloadable.items()]
    return {
        **{
            plural(registry.kind): [
                {
                    "name": name,
                    "plugin": registry.plugins[name].label,
                    "error": unloadable.get(f"{registry.kind} '{name}'"),
                }
                for name in registry.specs
            ]
            for registry in registries
        },
        "not_loaded": [{"plugin": label, "reason": reason} for label, reason in failed.items()],
    }


def _unloadable(registries: Sequence[Registry[Any]]) -> dict[str, str]:
    """Whose class cannot be imported, and why; other processes import them."""
    targets: dict[str, str] = {}
    modules = ["torch", "transformers"]
    for registry in registries:
        for name, spec in registry.specs.items():
            targets[f"{registry.kind} '{name}'"] = spec.target
            if is_own(registry.plugins[name].label):
                modules.append(spec.target.split(":")[0])
    found = examine([*targets.items()], CLASS_SECONDS, classes=True, preload=modules)
    return {
        name: facts.error or f"importing it had not ended after {facts.waited:g} s"
        for name, facts in zip(targets, found, strict=True)
        if facts.is_faulty
    }


def _hub() -> dict[str, Any]:
    """Whether models can be downloaded; the token itself is never told."""
    from huggingface_hub import constants, get_token

    facts: dict[str, Any] = {
        "endpoint": constants.ENDPOINT,
        "offline": bool(constants.HF_HUB_OFFLINE),
        "token": get_token() is not None,
        "reachable": None,
        "error": None,
    }
    if facts["offline"]:
        return facts
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=HUB_SECONDS):
            return {**facts, "reachable": True}
    except urllib.error.HTTPError:  # it answers
        return {**facts, "reachable": True}
    except (OSError, ValueError) as error:
        return {**facts, "reachable": False, "error": _line(getattr(error, "reason", error))}


def _folders(problems: list[str]) -> list[dict[str, Any]]:
    from huggingface_hub import constants

    places = {
        "flmm cache": cache_folder(),
        "hub cache": Path(constants.HF_HUB_CACHE),
        "runs": Path("runs"),
    }
    found = []
    for name, path in places.items():
        writable = True
        try:
            check_writable(path)
        except FlmmError as error:
            writable = False
            problems.append(f"The folder of the {name}, '{path}', cannot be used: {error.found}")
        found.append(
            {
                "name": name,
                "path": str(path.absolute()),
                "exists": path.is_dir(),
                "bytes": _size(path),
                "free_bytes": free_bytes(path),
                "writable": writable,
            }
        )
    return found


def _size(folder: Path) -> int | None:
    """Bytes in a folder, links not followed; None if it takes too long."""
    total, until = 0, time.monotonic() + WALK_SECONDS
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += os.lstat(Path(place, name)).st_size
            except OSError:  # removed meanwhile
                continue
        if time.monotonic() > until:
            return None
    return total


def _drawn() -> list[dict[str, Any]]:
    folders = {f"shapes@{split}": split_folder(split) for split in SPLITS}
    return [
        {"source": source, "path": str(path), "drawn": path.is_dir()}
        for source, path in folders.items()
    ]


def _line(error: object) -> str:
    return shortened(" ".join(f"{type(error).__name__}: {error}".split()), 300)
