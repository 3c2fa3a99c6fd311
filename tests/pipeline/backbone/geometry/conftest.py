from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of each test's own: every test measures."""
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path))
    return tmp_path
