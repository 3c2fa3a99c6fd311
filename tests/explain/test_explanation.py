"""Asking an explanation: maps of words, words at places, sinks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.errors import UsageError
from tests.explain.explanations import known

TEXT = "A dog and a red ball. The ball is red."
CELLS = {"dog": (0, 0), "red": (3, 4), "ball": (3, 5)}
Patch = pytest.MonkeyPatch


def first(looks: list[Any]) -> str:
    return str(looks[0].text)


@pytest.mark.parametrize("region", [(5, 5), (0, 0, 10, 10), np.pad([[1]], ((2, 37), (3, 56)))])
def test_the_word_that_looks_at_a_place_is_first(region: Any) -> None:
    found = known(TEXT, CELLS)
    looks = found.words_at(region)
    assert first(looks) == "dog"
    assert looks[0].lift > 1.5 > 1 > looks[1].lift
    assert [look.word for look in looks] != sorted(look.word for look in looks)
    assert "." not in {look.text for look in looks}
    assert "." in {look.text for look in found.words_at(region, marks=True)}


def test_words_are_ranked_by_what_does_not_fall_on_sinks() -> None:
    plain, drained = known(TEXT, CELLS), known(TEXT, CELLS, sink=(0, 1))
    assert not plain.ways["heads"].sinks.any()
    assert np.argwhere(drained.ways["heads"].sinks).tolist() == [[0, 1]]
    ranked = [[look.text for look in one.words_at((59, 39))][:4] for one in (plain, drained)]
    assert ranked[0] == ranked[1] == ["ball", "ball", "red", "red"]
    # with the sink, its neighbor would belong to every word
    assert first(drained.words_at((8, 5))) == "dog"
    for place in ((15, 5), (8, 5)):
        shares = [{look.word: look.share for look in e.words_at(place)} for e in (plain, drained)]
        assert shares[0] == pytest.approx(shares[1], abs=0.05)
    for how, (left, top) in (({}, (10, 0)), ({"sinks": False}, (50, 30))):
        x, y = drained.peak("ball", **how)
        assert left < x < left + 10
        assert top < y < top + 10
    without = drained.map("ball", sinks=False)
    np.testing.assert_allclose(without.sum(), 1, atol=1e-5)
    assert without[0, 1] == 0


def test_what_all_words_mean_is_no_sink() -> None:
    """All look at the one thing that there is, but the prompt does not."""
    found = known("red ball", {"red": (1, 1), "ball": (1, 1)})
    assert found.ways["heads"].words.min(0).max() > 0.5
    assert not found.ways["heads"].sinks.any()


def test_words_are_named_by_number_text_and_several() -> None:
    found = known(TEXT, CELLS)
    assert found.find("ball") == (5,)
    assert found.find("BALL") == (5,)
    assert found.find("a red  ball") == (3, 4, 5)
    assert found.find(-1) == (len(found.words) - 1,)
    both = found.map("red ball")
    np.testing.assert_allclose(both, (found.map(4) + found.map(5)) / 2)
    assert found.map([4, 5]).tolist() == both.tolist()


@pytest.mark.parametrize(
    ("ask", "problem", "says"),
    [
        (lambda e: e.map("bal"), "The word 'bal' is not in the text. Did you mean 'ball'?", "dog"),
        (lambda e: e.map("cow"), "The word 'cow' is not in the text.", "A, dog, and, a, red, ball"),
        (lambda e: e.map(""), "A phrase to look up is empty.", "one word"),
        (lambda e: e.map(99), "There is no word 99.", "12 words"),
        (lambda e: e.map(0, "median"), "Unknown way of looking 'median'. Did you mean 'mean'?", ""),
        (lambda e: e.map(0, layer=3), "The model has no layer 3.", "from 0 to 2"),
        (lambda e: e.map(0, layer=0, attention_head=2), "The model has no attention head 2.", "1"),
        (lambda e: e.map(0, attention_head=1), "Attention head 1 of which layer?", "0 to 1"),
        (lambda e: e.map(0, view="fine"), "The backbone has no view 'fine'.", "image"),
        (lambda e: e.words_at((60, 0)), "The point 60,0 is outside the image.", "60 x 40"),
        (lambda e: e.words_at((-1, 0)), "The point -1,0 is outside the image.", "0 to 59"),
        (lambda e: e.words_at((5, 5, 5, 9)), "The box 5,5,5,9 is empty.", "x0 < x1"),
        (lambda e: e.words_at((70, 5, 80, 9)), "The box 70,5,80,9 is outside the image.", "60 x"),
        (lambda e: e.words_at(np.zeros((40, 60))), "The region is empty.", "no pixel"),
        (lambda e: e.words_at(np.ones((60, 40))), "The mask has another size than the image.",
         "40 x 60 pixels, the image 60 x 40"),
        (lambda e: e.words_at("here"), "The region is neither a point, a box nor a mask.", "str"),
        (lambda e: e.words_at((float("nan"), 1)), "The point nan,1 is outside the image.", "0 to"),
    ],
)  # fmt: skip
def test_what_is_not_there_is_said(ask: Any, problem: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        ask(known(TEXT, CELLS))
    assert str(error.value).splitlines()[0] == problem
    assert says in str(error.value)
    assert error.value.repair


def test_a_learned_map_needs_a_head() -> None:
    found = known(TEXT, CELLS)
    del found.ways["learned"]
    with pytest.raises(UsageError, match="There is no learned map"):
        found.map(0, "learned")


def test_overlays_have_the_size_of_the_image(tmp_path: Path) -> None:
    found = known(TEXT, CELLS)
    plain = found.overlay("dog", title=False)
    assert plain.size == found.image.size
    shown = np.asarray(plain, np.int64)
    assert shown[5, 5].sum() > 2 * shown[35, 5].sum()  # bright where the word looks
    titled = found.overlay("dog")
    assert titled.width >= plain.width
    assert titled.height > plain.height
    assert np.array_equal(np.asarray(titled)[:40, :60], shown)


def test_everything_is_saved(tmp_path: Path) -> None:
    found = known(TEXT, CELLS)
    files = found.save(tmp_path / "out", ["red ball"], "mean")
    assert [file.name for file in files] == [
        "explanation.npz", "explanation.json", "explanation.html", "word-005-red-ball.png",
    ]  # fmt: skip
    with np.load(files[0]) as arrays:
        assert arrays["words"].tolist() == [word.text for word in found.words]
        np.testing.assert_array_equal(arrays["heads"], found.ways["heads"].words)
        assert {"mean", "learned", "heads_prompt", "heads_sinks"} <= set(arrays.files)
    assert Image.open(files[3]).width >= found.image.width


def test_overlays_of_an_earlier_explanation_are_removed(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    known(TEXT, CELLS).save(folder)
    (folder / "word-mine.png").touch()
    assert len(list(folder.glob("word-*.png"))) == 11
    known("red ball", CELLS).save(folder)
    assert {path.name for path in folder.glob("*.png")} == {
        "word-001-red.png", "word-002-ball.png", "word-mine.png",
    }  # fmt: skip
