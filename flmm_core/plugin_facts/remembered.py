"""Facts of plugins that were examined before, in one file for each Python environment.

They hold as long as nothing that they depend on has changed: the plugin's distribution and files,
those of flmm that declare what plugins are, and what else is installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import sys
import sysconfig
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from importlib.metadata import EntryPoint
from itertools import islice
from pathlib import Path

from pydantic import BaseModel

from flmm_core import hookspecs, spec
from flmm_core.files import SEAL, cache_folder, sealed, write_json
from flmm_core.plugin_facts.facts import Facts

FAULT_SECONDS = 600.0
"""For how long a fault is remembered: its cause may lie outside of what can be looked at."""
MOST_FILES = 2000
"""Of a plugin's package, those whose changes are noticed."""
INSTALLED = frozenset({".dist-info", ".egg-info", ".egg-link", ".pth"})
"""What every installation writes into the folder of packages."""


class Kept(BaseModel):
    """Facts, and when they were found out (seconds since 1970)."""

    facts: Facts
    time: float

    def holds(self, seconds: float) -> bool:
        """Whether examining the plugin again, for so many seconds, would tell no more."""
        if not self.facts.is_faulty:
            return True
        return 0 <= time.time() - self.time < FAULT_SECONDS and not (
            0 < self.facts.waited < seconds
        )


_kept: dict[str, Kept] = {}
"""In this process, also where there is no folder to keep a file in."""


def recall(stamp: str, seconds: float) -> Facts | None:
    """The facts of the plugin with this stamp, if they still hold."""
    if stamp not in _kept:
        _kept.update(_read())
    kept = _kept.get(stamp)
    return kept.facts if kept is not None and kept.holds(seconds) else None


def remember(found: Mapping[str, Facts], stamps: Iterable[str]) -> None:
    """Keep what was found, by stamp; what is not among all the `stamps` is forgotten."""
    _kept.update({stamp: Kept(facts=facts, time=time.time()) for stamp, facts in found.items()})
    content = {stamp: _kept[stamp].model_dump() for stamp in stamps if stamp in _kept}
    with suppress(OSError, ValueError):  # of a folder that cannot be written
        write_json(_file(), sealed(content), compact=True)


def _file() -> Path:
    place = hashlib.sha256(os.fsencode(sys.prefix)).hexdigest()[:16]
    return cache_folder() / "plugins" / f"{place}.json"


def _read() -> dict[str, Kept]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        content = json.loads(_file().read_bytes())
        if content.pop(SEAL, None) == sealed(content)[SEAL]:
            return {stamp: Kept.model_validate(kept) for stamp, kept in content.items()}
    return {}


def stamp(entry: EntryPoint, owner: str) -> str:
    """A digest that changes with everything on which a plugin's facts depend.

    Args:
        entry: The entry point.
        owner: Name and version of its distribution.
    """
    site = environment_folders()
    with suppress(Exception):
        site |= {str(entry.dist.locate_file(""))} if entry.dist else set()
    known = Path(__file__).parent.glob("*.py")
    parts = (
        [owner, entry.name, entry.value, sys.version],
        [_installed(Path(folder)) for folder in sorted(site)],
        [_state(path) for path in sorted([*known, Path(spec.__file__), Path(hookspecs.__file__)])],
        [_state(path) for path in _files(entry.module.partition(".")[0])],
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def environment_folders() -> set[str]:
    """Where this Python's packages are installed."""
    return {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}


def _installed(folder: Path) -> list[tuple[str, int, int]]:
    """What is in a folder of packages; not its own time, which a module's bytecode changes."""
    with suppress(OSError):
        return sorted(
            _state(path) if path.suffix in INSTALLED else (str(path), 0, 0)
            for path in folder.iterdir()
            if path.name != "__pycache__"
        )
    return []


def _files(package: str) -> list[Path]:
    """The source files of a package, or of a module; nothing is imported."""
    try:
        found = importlib.util.find_spec(package)
    except Exception:  # of a finder that another package has installed
        return []
    if found is None:
        return []
    folders = [Path(folder) for folder in found.submodule_search_locations or ()]
    files = (path for folder in folders for path in folder.rglob("*.py"))
    origin = [Path(found.origin)] if found.origin and not folders else []
    return origin + sorted(islice(files, MOST_FILES))


def _state(path: Path) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except OSError:
        return str(path), 0, 0
    return str(path), status.st_mtime_ns, status.st_size
