"""`Grounder.look`: an image that is read once gives the masks of one that is read each time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from flmm_core.errors import UsageError
from flmm_core.pipeline.confidence import Confidence, NotThere, Platt
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from tests.flows import assemble
from tests.models import FAMILIES, build, picture

IMAGE = picture(48, 48, 1)
PHRASES = ("a red ring", "the star", "x")


@pytest.fixture(params=[*FAMILIES, "llava_next_window"])
def grounder(request: pytest.FixtureRequest) -> Grounder:
    """The last of these cannot go on from a KV cache."""
    return assemble(build(request.param))


def agree(one: Result, other: Result) -> None:
    assert one.phrases == other.phrases
    assert one.image is other.image
    for name, bound in (("coarse_logits", 1e-4), ("logits", 1e-3), ("scores", 1e-3)):
        found = getattr(one, name), getattr(other, name)
        torch.testing.assert_close(*found, atol=bound, rtol=bound)
    torch.testing.assert_close(one.heat.maps, other.heat.maps, atol=1e-5, rtol=1e-4)
    assert not one.logits.is_inference()


def test_phrases_one_after_the_other_are_as_if_the_image_was_read_each_time(
    grounder: Grounder,
) -> None:
    look = grounder.look(IMAGE)
    for phrase in (*PHRASES, PHRASES[0]):
        agree(look.ground([phrase]), grounder.ground(look.image, [phrase]))
    agree(look.ground(PHRASES), grounder.ground(look.image, PHRASES))
    agree(look.ground(PHRASES, batch_size=2), grounder.ground(look.image, PHRASES))
    together = {"together": True}
    agree(look.ground(PHRASES, **together), grounder.ground(look.image, PHRASES, **together))
    assert len(look.ground([])) == 0


def test_another_prompt(grounder: Grounder) -> None:
    look = grounder.look(IMAGE, "Where is it?")
    agree(look.ground(PHRASES), grounder.ground(look.image, PHRASES, "Where is it?"))
    assert not torch.equal(
        look.ground(PHRASES).heat.maps, grounder.ground(look.image, PHRASES).heat.maps
    )


def test_each_sample_alone(grounder: Grounder) -> None:
    alone = replace(grounder, observer=replace(grounder.observer, one_by_one=True))
    agree(alone.look(IMAGE).ground(PHRASES), alone.ground(IMAGE, PHRASES))


def test_the_image_runs_once() -> None:
    grounder = assemble(build("qwen"))
    runs: list[str] = []
    observer: Any = grounder.observer
    hooks = [
        module.register_forward_hook(lambda *_, name=name: runs.append(name))
        for name, module in (
            ("tower", observer.backbone.vlm.model.visual),
            ("refiner", observer.encoder.module),
        )
    ]
    try:
        look = grounder.look(IMAGE)
        assert sorted(runs) == ["refiner", "tower"]
        for phrase in PHRASES:
            look.ground([phrase])
    finally:
        for hook in hooks:
            hook.remove()
    assert sorted(runs) == ["refiner", "tower"]


def test_what_is_not_there() -> None:
    grounder = assemble(build("qwen"))
    platt = Platt(slope=2.0, offset=-1.0)
    grounder.confidence = Confidence(masks=1, calibrator=platt, not_there=None)
    middle = float(grounder.ground(IMAGE, PHRASES).probabilities.median())
    chosen = NotThere(threshold=middle, quantity="iou", value=1, without=1, samples=1)
    grounder.confidence = grounder.confidence.model_copy(update={"not_there": chosen})
    look = grounder.look(IMAGE)
    kept, held = (look.ground(PHRASES, keep_absent=keep) for keep in (True, False))
    assert kept.there.all()
    assert held.there.any()
    assert not held.there.all()
    for found, keep in ((kept, True), (held, False)):
        expected = grounder.ground(look.image, PHRASES, keep_absent=keep)
        agree(found, expected)
        torch.testing.assert_close(found.probabilities, expected.probabilities)


def test_bad_phrases_and_images() -> None:
    grounder = assemble(build("qwen"))
    with pytest.raises(UsageError, match="Phrase 1 is empty"):
        grounder.look(IMAGE).ground(["a red ring", " "])
    with pytest.raises(UsageError, match="image"):
        grounder.look(None)
