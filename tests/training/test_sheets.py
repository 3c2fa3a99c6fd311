"""The first pictures of a run: unseen images, early, and nothing else changes."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from flmm_core.errors import DataError
from flmm_core.progress import Progress
from flmm_core.training import sheets
from tests.cached import Runs, weights

Patch = pytest.MonkeyPatch


@pytest.fixture
def runs(random_twin: Path, drawn: Path, tmp_path: Path) -> Runs:
    return Runs(random_twin, drawn, tmp_path)


class Seen(Progress):
    """What is said, and how many pictures there are at that time."""

    def __init__(self, pictures: Path) -> None:
        super().__init__()
        self.pictures, self.said = pictures, dict[str, int]()

    def say(self, text: str) -> None:
        self.said[text.partition(",")[0]] = len([*self.pictures.glob("*.png")])


def test_after_a_minute_there_are_pictures_and_the_head_is_the_same(
    runs: Runs, monkeypatch: Patch
) -> None:
    more = {"val_data": [runs.source], "eval_data": [runs.source], "pictures": 5, "ema": 0.5}
    plain = runs.train("plain", **more)
    monkeypatch.setattr(sheets, "FIRST_AFTER", 0.0)
    pictures = runs.folder / "run" / "pictures"
    seen = Seen(pictures)
    run = runs.train("run", progress=seen, **more)
    assert seen.said["First pictures"] == sheets.FIRST
    assert weights(run) == weights(plain)
    # Those of the end have replaced them.
    assert sorted(path.name for path in pictures.iterdir()) == [f"{i:02}.png" for i in range(5)]
    for path in pictures.iterdir():
        with Image.open(path) as ours, Image.open(plain / "pictures" / path.name) as others:
            assert ours.tobytes() == others.tobytes()


@pytest.mark.parametrize(
    ("more", "first"),
    [({"pictures": 0}, False), ({"val_data": []}, False), ({"pictures": 1}, True)],
)
def test_they_need_validation_data_and_can_be_switched_off(
    runs: Runs, monkeypatch: Patch, more: dict[str, object], first: bool
) -> None:
    monkeypatch.setattr(sheets, "FIRST_AFTER", 0.0)
    seen = Seen(runs.folder / "run" / "pictures")
    runs.train("run", progress=seen, **({"val_data": [runs.source], "steps": 1} | more))
    assert seen.said.get("First pictures", 0) == int(first)


def test_a_picture_that_cannot_be_drawn_does_not_end_the_training(
    runs: Runs, monkeypatch: Patch
) -> None:
    def unreadable(*_: object, **__: object) -> None:
        raise DataError("The image is gone.", found="No such file.", repair="Put it back.")

    monkeypatch.setattr(sheets, "FIRST_AFTER", 0.0)
    monkeypatch.setattr(sheets, "read_image", unreadable)
    seen = Seen(runs.folder / "run" / "pictures")
    run = runs.train("run", progress=seen, val_data=[runs.source], steps=1)
    assert any(text.startswith("No pictures after step 1: The image is gone") for text in seen.said)
    assert weights(run)
