"""Paper rounding trains on truth at the size that the VLM sees, where images become squares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from flmm_core.data.sources import open_source
from tests.cached import Runs


@pytest.mark.parametrize(
    ("paper", "resize"), [(True, "original"), (True, "rounded"), (False, "rounded")]
)
def test_the_truth_has_the_size_of_the_processors_image(
    paper: bool, resize: str, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[tuple[int, ...]] = []

    class Seen(Exception):  # noqa: N818
        pass

    def look(head: Any, features: Any, truths: Any, **_: Any) -> Any:
        sizes.extend(tuple(truth.shape[1:]) for truth in truths)
        sizes.extend(each.image_hw for each in features)
        raise Seen

    monkeypatch.setattr("flmm_core.training.loop.head_loss", look)
    runs = Runs(Path("tiny"), drawn, tmp_path)
    with pytest.raises(Seen):
        runs.train(
            "run", backbone="deepseek_vl", batch_size=6, options={"resize": resize},
            head__paper_rounding=paper, train_protocol="flmm-paper",
        )  # fmt: skip
    hws = {sample.image_hw for sample in open_source(f"refcoco:{drawn}@train", "flmm-paper")}
    shape = {
        "original": lambda side, longest: int(side / longest * 112),
        "rounded": lambda side, longest: round(side * 112 / longest),
    }[resize]
    assert set(sizes[6:]) <= hws
    for found, hw in zip(sizes[:6], sizes[6:], strict=True):
        wanted = tuple(max(14, shape(side, max(hw))) for side in hw)
        assert found == (wanted if paper else hw)
