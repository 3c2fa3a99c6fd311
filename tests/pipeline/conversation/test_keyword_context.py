"""What a finder reads of an answer is what the head learned from: the same text as a caption."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.errors import UsageError
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder, Range
from flmm_core.pipeline.conversation.phrases.keywords import words_of
from flmm_core.segment import Segment
from tests.flows import fresh_grounder


class Reader(PhraseFinder):
    """Keeps the context that it is given."""

    needs_hidden = True
    context = PhraseContext()

    def find(self, text: str, context: PhraseContext) -> list[Range]:
        self.context = context
        return []


@pytest.fixture(scope="module")
def grounder() -> Any:
    return fresh_grounder(Recipe("qwen", refiner="none", keywords=True, base_channels=4))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.fromarray(paint(make_scene(5))[0])


@pytest.mark.parametrize("most", [5, 64])  # cut off, and ended by itself
def test_states_of_an_answer_are_those_of_a_caption(
    grounder: Any, image: Image.Image, most: int
) -> None:
    backbone, finder = grounder.backbone, Reader(None)
    answer = grounder.chat(image, backbone.prompt, phrases=finder, max_new_tokens=most)
    inputs = backbone.prepare(image, [Segment(answer.text, 0)])
    (trace,) = backbone.trace(backbone.collate([inputs]), captions=True)
    context = finder.context
    assert tuple(context.offsets) == inputs.offsets
    assert context.hidden is not None
    torch.testing.assert_close(context.hidden, trace.caption.hidden, atol=2e-4, rtol=1e-4)


def test_keywords_choose_words_of_an_answer(grounder: Any, image: Image.Image) -> None:
    ask = image, grounder.backbone.prompt
    every = grounder.chat(*ask, phrases="keywords:0", keep_absent=True, max_new_tokens=8)
    assert [(span.start, span.end) for span in every.spans] == words_of(every.text) != []
    assert len(grounder.chat(*ask, phrases="keywords:1", max_new_tokens=8).spans) == 0


def test_a_head_without_a_selector_is_refused_before_the_answer(image: Image.Image) -> None:
    grounder = fresh_grounder(Recipe("qwen", refiner="none", base_channels=4))
    with pytest.raises(UsageError, match=r"^The head has no keyword selector\."):
        grounder.chat(image, "What is there?", phrases="keywords")


@pytest.mark.parametrize("parts", [False, True])
def test_marks_in_a_given_beginning_win_and_are_not_read(
    grounder: Any, image: Image.Image, parts: bool
) -> None:
    def begin(text: str) -> Any:
        content = [{"type": "text", "text": text}] if parts else text
        ask = {"role": "user", "content": grounder.backbone.prompt}
        return [ask, {"role": "assistant", "content": content}]

    more = {"keep_absent": True, "max_new_tokens": 4}
    plain = grounder.chat(image, begin("a red ring and a"), **more)
    marked = grounder.chat(image, begin("a [[red ring]] and a"), **more)
    assert marked.text == plain.text
    assert [(span.start, span.end) for span in marked.spans] == [(2, 10)]
    *_, streamed = grounder.stream(image, begin("a [[red]] ring and a"), **more)
    assert [span.phrase for span in streamed.spans] == ["red"]
    with pytest.raises(UsageError, match=r"'\[\[' is not closed"):
        grounder.chat(image, begin("a [[red ring and a"), **more)
