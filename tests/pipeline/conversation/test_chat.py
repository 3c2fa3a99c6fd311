"""Chat behind the shipped models: masks of their own words, turns, streams, second looks."""

from __future__ import annotations

import functools
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_mask

from flmm_core.data.drawn.scenes import make_scene, paint
from flmm_core.errors import UsageError
from flmm_core.pipeline.conversation import zoom
from flmm_core.pipeline.conversation.answer import Answer, Span
from flmm_core.pipeline.conversation.zoom import around
from flmm_core.pipeline.grounder import Grounder
from flmm_core.plugins import load_backbones, load_class
from flmm_core.segment import Segment
from flmm_core.spec import DEFAULT_PROMPT
from recipes.talking import named_things, same_answers
from tests.flows import assemble, flow, weighed

FAMILIES = ("qwen", "deepseek_vl", "llava_next")


@functools.cache
def twin(family: str) -> Grounder:
    """A shipped model behind a head with random weights."""
    spec = load_backbones().get(family)
    return assemble(load_class(spec).load(spec))


@functools.cache
def scene(index: int) -> Image.Image:
    return Image.fromarray(paint(make_scene((1, index)))[0])


@pytest.fixture(params=FAMILIES)
def grounder(request: pytest.FixtureRequest) -> Grounder:
    return twin(request.param)


def as_caption(answer: Answer) -> list[Segment]:
    """What the model said as a caption whose phrases are the spans."""
    pieces, done = [], 0
    for number, span in enumerate(answer):
        if span.start > done:
            pieces.append(Segment(answer.text[done : span.start]))
        pieces.append(Segment(span.phrase, number))
        done = span.end
    return [*pieces, Segment(answer.text[done:])]


@pytest.mark.parametrize("options", [{"pool": "mean"}, {"pool": "max"}, {"ends": 2}])
def test_masks_are_those_of_the_same_words_as_a_caption(
    grounder: Grounder, options: dict[str, Any]
) -> None:
    """Recorded while the model wrote, against the flow that is trained and evaluated."""
    pooled = weighed(assemble(grounder.backbone, **options))
    answer = pooled.chat(
        scene(2), DEFAULT_PROMPT, phrases=lambda text: [(0, 1), (2, len(text) - 1)]
    )
    assert len(answer) == 2
    (expected,) = flow(pooled, [pooled.observer.prepare(scene(2), as_caption(answer))])
    assert expected.coarse_logits.std() > 0.01
    torch.testing.assert_close(
        answer.result.coarse_logits, expected.coarse_logits, atol=1e-3, rtol=0
    )
    torch.testing.assert_close(answer.result.logits, expected.logits, atol=2e-3, rtol=0)


def test_answers_are_those_without_us(grounder: Grounder) -> None:
    found = same_answers(grounder, 3)
    assert (found["prompts"], found["same_answers"]) == (3, 3)
    assert named_things(grounder, 1)["named"] > 0


def test_nothing_is_run_twice() -> None:
    grounder = twin("qwen")
    counts: list[int] = []
    layer = grounder.backbone.vlm.get_decoder().layers[0]
    hook = layer.register_forward_pre_hook(
        lambda _, args, kwargs: counts.append(
            (args[0] if args else kwargs["hidden_states"]).shape[1]
        ),
        with_kwargs=True,
    )
    first = grounder.chat(scene(2), "What is it?")
    second = grounder.chat(scene(2), [*first.messages, {"role": "user", "content": "And then?"}])
    third = [*second.messages, {"role": "user", "content": "And now?"}]
    grounder.chat(scene(2), third)
    hook.remove()
    whole = grounder.backbone.processor.apply_chat_template(
        [*third[:-1], {"role": "user", "content": [{"type": "text", "text": "And now?"}]}],
        add_generation_prompt=True, tokenize=False,
    )  # fmt: skip
    grounder.backbone.forget()
    alone = grounder.backbone.processor(text=[whole], images=[scene(2)], add_special_tokens=False)
    last = len(grounder.chat(scene(2), third).token_ids)
    assert sum(counts) == len(alone["input_ids"][0]) + last - 1  # the last one only ends it


def test_a_stream_is_the_answer_in_parts(grounder: Grounder) -> None:
    answer = grounder.chat(scene(2), DEFAULT_PROMPT)
    parts = list(grounder.stream(scene(2), DEFAULT_PROMPT))
    text = [part for part in parts if isinstance(part, str)]
    spans = [part for part in parts if isinstance(part, Span)]
    assert len(text) > 5
    assert "".join(text) == answer.text
    assert len(spans) >= 2
    assert parts == [*text, *spans, parts[-1]]
    end = parts[-1]
    assert isinstance(end, Answer)
    assert end.to_json() == answer.to_json()
    assert [span.to_record() for span in spans] == [span.to_record() for span in end]


def test_who_stops_listening_stops_the_model() -> None:
    grounder, steps = twin("qwen"), []
    decoder = grounder.backbone.vlm.get_decoder()
    counted = decoder.register_forward_hook(lambda *_: steps.append(1))
    stream = grounder.stream(scene(2), DEFAULT_PROMPT, max_new_tokens=400, min_new_tokens=400)
    assert isinstance(next(stream), str)
    stream.close()  # type: ignore[attr-defined]
    counted.remove()
    assert 0 < len(steps) < 300
    assert grounder.chat(scene(2), DEFAULT_PROMPT).text  # it is free again


def test_an_error_of_the_model_reaches_who_listens() -> None:
    with pytest.raises(UsageError, match="num_beams"):
        list(twin("qwen").stream(scene(2), DEFAULT_PROMPT, num_beams=3))


def test_a_span_is_in_the_image_where_it_is_most_probable(tmp_path: Path) -> None:
    grounder = twin("qwen")
    wide = scene(3).resize((200, 100))
    answer = grounder.chat([scene(2), wide], "What is it?", max_new_tokens=12)
    assert len(answer.results) == 2
    assert [result.image.size for result in answer.results] == [scene(2).size, (200, 100)]
    for number, span in enumerate(answer):
        scores = [float(result.scores[number]) for result in answer.results]
        assert span.image == int(np.argmax(scores))
        assert span.mask.shape == answer.results[span.image].logits.shape[1:]
    with pytest.raises(UsageError, match="several images"):
        _ = answer.result
    answer.save(tmp_path)
    for folder, result in zip((tmp_path, tmp_path / "image-2"), answer.results, strict=True):
        content = json.loads((folder / "result.json").read_text())
        assert (content["width"], content["height"]) == result.image.size


def test_phrases_as_users_give_them() -> None:
    grounder = twin("qwen")
    text = grounder.chat(scene(2), DEFAULT_PROMPT).text
    word = text.split()[1]
    answer = grounder.chat(scene(2), DEFAULT_PROMPT, phrases=[word])
    assert {span.phrase for span in answer} == {word}
    assert [text[span.start : span.end] for span in answer] == [word] * len(answer)
    assert len(grounder.chat(scene(2), DEFAULT_PROMPT, phrases=lambda text: [])) == 0
    words = [match.span() for match in re.finditer(r"\w+", text)][:6]  # more than run together
    answer = grounder.chat(scene(2), DEFAULT_PROMPT, phrases=lambda text: words)
    assert [(span.start, span.end) for span in answer] == words
    assert [span.phrase for span in answer] == [text[start:end] for start, end in words]


def test_an_answer_shows_and_saves_itself(tmp_path: Path) -> None:
    answer = twin("qwen").chat(scene(2), DEFAULT_PROMPT, phrases=lambda text: [(0, 5), (6, 11)])
    page = answer._repr_html_()
    assert page.count("<mark") == 4  # in the text and in the table
    assert "data:image/png;base64," in page
    first = answer[0]
    assert repr(first).startswith(f"Span({first.phrase!r}, score=")
    assert repr(answer) == f"Answer({answer.text!r}, 2 spans)"
    assert len(repr(answer.result)) < 300
    assert answer[-1].start == 6
    assert [span.end for span in answer[:1]] == [5]
    height, width = first.mask.shape
    assert first.attention().shape == answer.attention(0).shape == (height, width)
    assert float(first.attention().sum()) == pytest.approx(1, abs=1e-4)
    for row in answer.to_records():
        assert all(not isinstance(value, dict | list) for value in row.values())
    answer.save(tmp_path / "out")
    told = json.loads((tmp_path / "out" / "answer.json").read_text())
    assert told["text"] == answer.text
    for number, record in enumerate(told["spans"]):
        mask = coco_mask.decode(record["segmentation"]).astype(bool)
        assert np.array_equal(mask, answer[number].mask.numpy())
        stored = np.asarray(Image.open(tmp_path / "out" / f"mask-{number + 1}.png")) > 0
        assert np.array_equal(stored, mask)


def test_html_is_text() -> None:
    result = twin("qwen").ground(scene(2), ["<b>a</b> & b"])
    assert "<b>" not in result._repr_html_()
    assert "&lt;b&gt;a&lt;/b&gt; &amp; b" in result._repr_html_()
    (found,) = result
    assert found.phrase == "<b>a</b> & b"
    with pytest.raises(IndexError):
        result[1]


def test_a_second_look_shows_the_thing_from_near(grounder: Grounder) -> None:
    found = grounder.ground(scene(2), ["red cross"], keep_absent=True)[0]
    thought = grounder.think(scene(2), "What is it?", look_at="red cross", compare=True)
    assert thought.plain is not None
    assert thought.plain.text == grounder.chat(scene(2), "What is it?").text
    assert any(found.box)
    assert thought.box == around(found.box, scene(2).size, 0.5)
    assert thought.crop is not None
    assert max(thought.crop.size) == max(scene(2).size)
    both = grounder.chat([scene(2), thought.crop], "What is it?")
    assert thought.text == both.text
    assert len(thought.answer.results) == 2


def test_a_second_look_shows_the_pixels_within_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zoom, "around", lambda *_: (8, 4, 40, 36))  # a fresh head takes all of it
    thought = twin("qwen").think(scene(2), "What is it?", look_at="red cross", max_new_tokens=2)
    assert thought.crop is not None
    side = max(scene(2).size)
    near = scene(2).crop((8, 4, 40, 36)).resize((side, side), Image.Resampling.BICUBIC)
    assert thought.crop.tobytes() == near.tobytes()


def test_a_second_look_with_nothing_to_look_at_is_the_plain_answer() -> None:
    thought = twin("qwen").think(scene(2), "What is it?", phrases=lambda text: [])
    assert (thought.found, thought.crop) == (None, None)
    assert thought.answer is thought.plain
    with pytest.raises(UsageError, match="one image"):
        twin("qwen").think([scene(2), scene(3)], "What is it?")


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((10, 10, 20, 14), (5, 5, 25, 19)),
        ((0, 0, 4, 4), (0, 0, 6, 6)),
        ((90, 40, 100, 50), (85, 35, 100, 50)),
    ],
)
def test_the_crop_keeps_within_the_image(box: Any, expected: Any) -> None:
    assert around(box, (100, 50), 0.5) == expected
