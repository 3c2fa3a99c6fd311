"""Checkpoints of other programs are read without running their code; damaged ones are refused."""

from __future__ import annotations

import os
import pickle
import sys
import types
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from flmm_core.errors import WeightsError
from flmm_core.pipeline.original import read_checkpoint
from flmm_core.plugins import load_backbones
from tests.original import e2e_checkpoint, nested, without_frozen

SPEC = load_backbones().get("deepseek_vl")


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    return e2e_checkpoint()


def test_safetensors_and_files_of_old_versions_of_torch(
    state: dict[str, Tensor], tmp_path: Path
) -> None:
    trained = without_frozen(state)
    save_file(trained, tmp_path / "a.safetensors")
    torch.save(trained, tmp_path / "a.bin", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "a.bin"):
        found = read_checkpoint(tmp_path / name, SPEC)
        assert found.head.keys() == trained.keys()
        assert all(torch.equal(found.head[key], trained[key]) for key in trained)


def test_logs_beside_the_weights_are_left_out(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MMEngine keeps objects of its own classes, with numpy arrays, beside the weights."""

    class HistoryBuffer:
        def __init__(self) -> None:
            self._log_history = np.arange(3.0)
            self._count_history = np.int64(3)
            self.smallest = HistoryBuffer.min

        def min(self) -> float:
            return 0.0

    home = "mmengine.logging.history_buffer"
    HistoryBuffer.__module__ = HistoryBuffer.min.__module__ = home
    HistoryBuffer.__qualname__, HistoryBuffer.min.__qualname__ = (
        "HistoryBuffer",
        "HistoryBuffer.min",
    )
    parents = "mmengine", "mmengine.logging", home
    for name in parents:
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    vars(sys.modules[home])["HistoryBuffer"] = HistoryBuffer
    logs = {"log_scalars": OrderedDict(loss=HistoryBuffer())}
    torch.save({**nested(state), "message_hub": logs}, tmp_path / "a.pth")
    for name in parents:
        monkeypatch.delitem(sys.modules, name)
    found = read_checkpoint(tmp_path / "a.pth", SPEC)
    assert {**found.head, **{f"sam.model.{k}": v for k, v in found.encoder.items()}}.keys() == (
        state.keys()
    )


class Hostile:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_no_code_is_run_and_damage_is_noticed(state: dict[str, Tensor], tmp_path: Path) -> None:
    file, made = tmp_path / "a.pth", tmp_path / "made"
    trained = without_frozen(state)
    for zipped in (True, False):
        content = {**trained, "x": Hostile(made)}
        torch.save(content, file, _use_new_zipfile_serialization=zipped)
        with pytest.raises(WeightsError, match="which is not run"):
            read_checkpoint(file, SPEC)
    file.write_bytes(pickle.dumps({"state_dict": {"x": Hostile(made)}}))
    with pytest.raises(WeightsError, match="cannot be read"):
        read_checkpoint(file, SPEC)
    assert not made.exists()

    for form in ("zip", "old", "safetensors"):
        if form == "safetensors":
            save_file(trained, file)
        else:
            torch.save(trained, file, _use_new_zipfile_serialization=form == "zip")
        whole = file.read_bytes()
        for length in (0, 1, 9, 200, len(whole) // 2, len(whole) - 1):
            file.write_bytes(whole[:length])
            with pytest.raises(WeightsError, match="cannot be read"):
                read_checkpoint(file, SPEC)
    torch.save(trained, file)
    changed = bytearray(file.read_bytes())
    changed[len(changed) // 2] ^= 0x10  # a weight
    file.write_bytes(changed)
    with pytest.raises(WeightsError, match="damaged"):
        read_checkpoint(file, SPEC)
    for path in (tmp_path, tmp_path / "missing.pth"):
        with pytest.raises(WeightsError, match="cannot be read"):
            read_checkpoint(path, SPEC)
