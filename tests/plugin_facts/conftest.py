from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.plugin_facts import remembered


@pytest.fixture(autouse=True)
def environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packages seem to be installed: what another process installs changes no test."""
    folder = tmp_path_factory.mktemp("environment")
    monkeypatch.setattr(remembered, "environment_folders", lambda: {str(folder)})
    return folder
