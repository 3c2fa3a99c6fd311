"""`auto` on families of which no plugin is asked: published geometry, toy width, random weights."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from transformers import AutoConfig

from flmm_auto.families import LISTED
from recipes.auto import PHRASES, is_wrong, try_folder
from recipes.families import FAMILIES, REFUSED, write_folder

NAMES = (*FAMILIES, *REFUSED) if os.environ.get("FLMM_ALL_FAMILIES") else ("cohere2_vision",)
"""`FLMM_ALL_FAMILIES=1 pytest plugins/auto -k family` tries all of them, for some minutes.

The tokens of Cohere2 Vision's last tile answer less to any change than the others.
"""


@pytest.mark.parametrize("name", NAMES)
def test_a_family_is_listed_if_it_can_be_loaded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLMM_CACHE", str(tmp_path / "cache"))
    folder = write_folder(name, tmp_path / "toy")
    row = try_folder(folder)
    listed = AutoConfig.from_pretrained(folder).model_type in LISTED
    assert listed == (not row.refused), row.refused
    assert row.masks == (len(PHRASES) if listed else 0)
    assert not is_wrong(name, row), row
