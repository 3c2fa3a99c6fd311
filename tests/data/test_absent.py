"""Borrowed phrases: they name nothing in the image that gets them."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.data import rle
from flmm_core.data.absent import SLICE, AbsentCount, borrow_absent, naming_words
from flmm_core.data.drawn.scenes import COLORS, SHAPES
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sample import AnnotatedImage, GroundedObject, Segment
from flmm_core.data.sources import open_source, read_source
from flmm_core.errors import ConfigError
from tests.cached import Runs


def image(number: int, *things: tuple[str, str], **more: object) -> AnnotatedImage:
    """An image whose objects have a category and a sentence each."""
    full = rle.encode(rle.decode(rle.empty(4, 6)) == 0)
    objects = tuple(GroundedObject(full, (words,), category) for category, words in things)
    name = f"{number}.png"
    return AnnotatedImage(name, Path(name), (4, 6), objects, **more)  # type: ignore[arg-type]


def borrowed(images: list[AnnotatedImage], share: float = 0.5) -> list[set[str]]:
    """What each image borrows."""
    return [
        {thing.sentences[0] for thing in each.objects if thing.absent}
        for each in borrow_absent(images, share)
    ]


def test_on_drawn_scenes_no_borrowed_name_is_true(tmp_path: Path) -> None:
    drawn = list(draw_images(60, seed=4, sentences=2))
    FORMATS["refcoco"].write(tmp_path, drawn)
    _, images = read_source(f"refcoco:{tmp_path}@train")
    found = borrow_absent(images, 0.4)
    assert found == borrow_absent(images, 0.4)
    count = AbsentCount.of(found)
    assert 0.3 < count.borrowed / count.phrases <= 0.42
    shared_color = 0
    for before, after in zip(drawn, found, strict=True):
        painted = {tuple(thing.sentences[0].split()[-2:]) for thing in before.objects}
        kept = [thing.sentences for thing in after.objects if not thing.absent]
        assert kept == [thing.sentences for thing in before.objects]
        for thing in after.objects:
            if thing.absent:
                color, shape = thing.sentences[0].split()[-2:]
                assert color in COLORS
                assert shape in SHAPES
                assert (color, shape) not in painted
                assert not rle.area(thing.read_mask())
                assert (thing.slice, len(thing.sentences)) == (SLICE, 2)
                shared_color += color in {color for color, _ in painted}
    assert shared_color > 5  # the color of one thing, the shape of none
    places = [thing.absent for after in found for thing in after.objects[:1]]
    assert 0.2 < sum(places) / len(places) < 0.6  # they do not only come last


def test_neither_words_nor_categories_of_the_image_are_borrowed() -> None:
    bus = image(0, ("bus", "the red bus"))
    for other, lent in (
        (image(1, ("person", "a man in a red shirt")), True),
        (image(1, ("bus", "the big vehicle")), False),  # the same category in other words
        (image(1, ("person", "man beside the buses")), False),  # the word, in the plural
        (image(1, ("dog", "a dog"), categories=frozenset({"Bus", "dog"})), False),  # unnamed there
        (image(1, ("", "a minibus")), False),  # the word in a longer one
    ):
        assert borrowed([bus, other])[1] == ({"the red bus"} if lent else set())


def test_people_are_people_by_any_name() -> None:
    lady = image(0, ("", "the lady"))
    for said in ("a guy", "two boys", "Someone", "women's hats"):
        assert borrowed([lady, image(1, ("", said))])[1] == set()
    assert borrowed([lady, image(1, ("", "the table"))])[1] == {"the lady"}


def test_words_that_name_no_thing_are_not_lent_alone() -> None:
    images = [image(0, ("", "the left one")), image(1, ("", "the table")), image(2, ("", "A"))]
    assert borrowed(images, 0.8) == [{"the table"}, set(), {"the table"}]
    assert naming_words("the dog's bowls on the left") == {"dog", "bowl"}


def test_signs_of_chinese_are_compared_one_by_one() -> None:
    images = [image(0, ("", "左边的狗")), image(1, ("", "黑狗")), image(2, ("", "汽车"))]
    assert borrowed(images)[1] <= {"汽车"}
    assert "左边的狗" not in borrowed(images)[1]


def test_what_is_annotated_as_absent_and_captions_stay_as_they_are() -> None:
    told = list(borrow_absent([image(0, ("", "a cup")), image(1, ("", "a dog"))], 0.5))
    assert AbsentCount.of(told) == AbsentCount(4, 0, 2)
    assert str(AbsentCount.of(told)) == "2 of 4 objects are not there, borrowed from other images"
    own = GroundedObject(rle.empty(4, 6), ("a cat",), absent=True)
    annotated = [image(0, ("", "a cup")), AnnotatedImage("1", Path("1"), (4, 6), (own,))]
    assert borrow_absent(annotated, 0.5) == tuple(annotated)
    assert str(AbsentCount.of(annotated)) == "1 of 2 objects are not there"
    narrated = [image(n, ("", words), caption=(Segment(words, 0),)) for n, words in enumerate("ab")]
    assert borrow_absent(narrated, 0.5) == tuple(narrated)
    assert borrow_absent([], 0.5) == ()


def test_refcoco_knows_the_categories_that_no_ref_names(drawn: Path) -> None:
    _, images = read_source(f"refcoco:{drawn}@train")
    for each in images:
        assert {thing.category for thing in each.objects} <= each.categories


def test_a_run_says_what_was_borrowed_and_a_cache_has_it(
    random_twin: Path, drawn: Path, tmp_path: Path
) -> None:
    runs = Runs(random_twin, drawn, tmp_path)
    shares = [runs.config(head__presence=on)[0].absent_share for on in (True, False)]
    assert shares == [0.2, 0.0]
    original = runs.config(head__paper_rounding=True)[0]
    assert (original.head.presence, original.absent_share) == (False, 0.0)
    with pytest.raises(ConfigError, match=r"--absent-share: should be less than or equal to 0\.8"):
        runs.config(absent_share=0.9)
    plain, more = (open_source(runs.source, "flmm-paper", absent_share=share) for share in (0, 0.5))
    assert sum(len(s.phrases) for s in plain) < sum(len(s.phrases) for s in more)
    runs.build(absent_share=0.5)
    folder = runs.train("cached", absent_share=0.5, cache=runs.cache)
    summary = (folder / "summary.json").read_text()
    assert f'"{runs.source}"' in summary
    count = AbsentCount.of(more.images)
    assert count.borrowed > 0
    assert f'"borrowed": {count.borrowed}' in summary
    assert '"presence":' in (folder / "metrics.jsonl").read_text()
    assert "absent_share: 0.5" in (folder / "config.yaml").read_text()
