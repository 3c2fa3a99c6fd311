from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found of a toy model is nobody else's."""
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
