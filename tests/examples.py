"""The plugins in `examples`, each a package and the script that makes its tiny model."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "examples"


def example(name: str) -> Any:
    """The module `make_tiny` of an example; its package can be imported from now on."""
    folder = FOLDER / f"{name}_backbone"
    if str(folder) not in sys.path:
        sys.path.append(str(folder))
    found = importlib.util.spec_from_file_location(f"make_{name}", folder / "make_tiny.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module
