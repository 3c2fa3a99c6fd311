"""The recipe of the tiny SAMs: it learns, and a stopped run goes on as if it had not stopped."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from flmm_core.pipeline.refiners.sam2_model import build_sam2
from flmm_core.pipeline.refiners.sam_model import build_sam
from recipes import tiny_sam

READERS: dict[str, Any] = {"sam": build_sam, "sam2": build_sam2}


@pytest.mark.parametrize("name", READERS)
def test_a_stopped_run_goes_on_and_its_export_is_read(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make = tiny_sam.SEGMENTERS[name]
    monkeypatch.setitem(tiny_sam.SEGMENTERS, name, lambda: replace(make(), steps=5))
    monkeypatch.setattr(tiny_sam, "IMAGES", 1)
    whole = tiny_sam.train(name, tmp_path / "whole", every=1).model.state_dict()
    assert len(set(map(json.dumps, rows(tmp_path / "whole")))) == 5

    draw = tiny_sam.batch

    def stopping(step: int, *more: Any) -> Any:
        if step == 4:
            raise KeyboardInterrupt
        return draw(step, *more)

    monkeypatch.setattr(tiny_sam, "batch", stopping)
    with pytest.raises(KeyboardInterrupt):
        tiny_sam.train(name, tmp_path / "stopped", every=1)
    monkeypatch.setattr(tiny_sam, "batch", draw)
    segmenter = tiny_sam.train(name, tmp_path / "stopped", every=1)
    found = segmenter.model.state_dict()
    assert all(torch.equal(found[key], value) for key, value in whole.items())
    assert rows(tmp_path / "stopped") == rows(tmp_path / "whole")

    segmenter.save(tmp_path / "export")
    decoder = READERS[name]("tiny", tmp_path / "export").mask_decoder.state_dict()
    assert all(
        torch.equal(value, found[f"decoder.mask_decoder.{key}"].half().float())
        for key, value in decoder.items()
    )


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "log.jsonl").read_text().splitlines()
    return [{**json.loads(line), "seconds": 0} for line in lines]
