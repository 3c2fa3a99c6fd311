"""The maps of words are what transformers itself attends to."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.explain import reading
from flmm_core.explain.make import explain, explain_reply
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.types import WHOLE_IMAGE
from tests.explain.explanations import known_heads
from tests.flows import assemble, weighed
from tests.models import FAMILIES, HEADS, LAYERS, build, picture

TEXT = "a red ring, it's left"
IMAGE = picture(48, 48, 1)

shared = functools.cache(build)


def eager(backbone: Any, text: str) -> tuple[Tensor, Any, int]:
    """Attention (L * N, S, S) of an eager pass of the whole sequence; its views and length."""
    sample = backbone.prepare(IMAGE, reading.as_segments(text, reading.split_words(text)))
    vlm = copy.deepcopy(backbone.vlm)
    vlm.set_attn_implementation("eager")
    tensors = to_vlm(vlm, backbone.collate([sample]).tensors)
    with torch.no_grad():
        attended = vlm.model(**tensors, use_cache=False, output_attentions=True).attentions
    return torch.stack(attended)[:, 0].flatten(0, 1), sample.views, len(sample)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_word_is_the_mean_of_its_tokens_in_each_head(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = shared(family)
    known_heads(monkeypatch, 2, 0)
    found = explain(backbone, IMAGE, text=TEXT, top_k=2)
    attended, views, length = eager(backbone, TEXT)
    view = views[-1]  # the frame of all maps
    assert (view.image_box, len(found.words)) == (WHOLE_IMAGE, 6)
    for number, word in enumerate(found.words):
        # the toy tokenizer has one token a byte, and the text ends the sequence
        rows = torch.arange(word.start, word.end) + length - len(TEXT)
        assert found.text[word.start : word.end] == word.text == "".join(word.tokens)
        expected = attended[:, rows].mean(1)[:, view.token_index]  # (L * N, h, w)
        expected = expected / expected.sum((1, 2), keepdim=True)
        for channel in (0, LAYERS * HEADS - 1):
            layer, head = divmod(channel, HEADS)
            ours = found.map(number, layer=layer, attention_head=head, view=view.name)
            np.testing.assert_allclose(ours, expected[channel], rtol=2e-3, atol=1e-5)
        of_view = found.map(number, view=view.name)
        np.testing.assert_allclose(of_view, expected.mean(0), atol=1e-4)
        if len(views) == 1:
            np.testing.assert_allclose(found.map(number, "mean"), expected.mean(0), atol=1e-6)
            top = expected[[2, 0]].mean(0)
            np.testing.assert_allclose(found.map(number), top, atol=1e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_answer_has_the_rows_that_it_was_generated_with(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = shared(family)
    known_heads(monkeypatch, 0)
    letters = backbone.tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    others = [token for token in range(len(backbone.tokenizer)) if token not in letters]
    settings = {"max_new_tokens": 6, "suppress_tokens": others}
    found = explain(backbone, IMAGE, ask="what?", split="tokens", **settings)
    assert found.asked
    prefix = backbone._prefix(IMAGE, "what?", "")
    vlm = copy.deepcopy(backbone.vlm)
    vlm.set_attn_implementation("eager")
    sequence = {key: value[None] for key, value in prefix.tokens.items()}
    generated = vlm.generate(
        **to_vlm(vlm, {**prefix.image, **sequence}), do_sample=False, output_attentions=True,
        return_dict_in_generate=True, pad_token_id=0, **settings,
    )  # fmt: skip
    ids = generated.sequences[0, len(prefix) :].tolist()
    assert [word.tokens for word in found.words] == [
        (token,) for token in backbone.tokenizer.convert_ids_to_tokens(ids)
    ]
    _, views, _ = eager(backbone, "a")
    for place in range(len(ids) - 1):  # the step after a token was written has its row
        rows = torch.stack(generated.attentions[place + 1])[:, 0, :, 0].flatten(0, 1)  # (L * N, S)
        for view in views:
            if view.image_box != WHOLE_IMAGE or view is not views[-1]:
                continue  # other views are brought into the frame of the last
            expected = rows[:, view.token_index]
            expected = expected / expected.sum((1, 2), keepdim=True)
            np.testing.assert_allclose(
                found.map(place, layer=1, attention_head=2, view=view.name),
                expected[HEADS + 2], rtol=2e-3, atol=1e-4,
            )  # fmt: skip


def test_of_an_answer_that_was_begun_each_word_has_its_own_tokens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_heads(monkeypatch, 0)
    backbone = shared("qwen")
    letters = backbone.tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    others = [token for token in range(len(backbone.tokenizer)) if token not in letters]
    asked = [{"role": "user", "content": "what?"}, {"role": "assistant", "content": "a red"}]
    found = explain(backbone, IMAGE, ask=asked, max_new_tokens=4, suppress_tokens=others)
    given, begun = found.words
    assert (given.text, given.tokens) == ("a", ())  # the model did not write it
    assert begun.text.startswith("red")
    assert "".join(begun.tokens) == begun.text[3:]


def test_a_long_text_is_read_in_portions(monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = shared("llava_next")
    known_heads(monkeypatch, 1)
    whole = explain(backbone, IMAGE, text=TEXT)
    lengths = []
    trace = type(backbone).trace

    def traced(self: Any, batch: Any, **rest: Any) -> Any:
        lengths.append((len(batch.samples[0]), len(batch.samples[0].phrase_rows)))
        return trace(self, batch, **rest)

    monkeypatch.setattr(type(backbone), "trace", traced)
    monkeypatch.setattr(reading, "PORTION", 1)
    apart = explain(backbone, IMAGE, text=TEXT)
    rows = len(whole.words) + len(whole.ways["mean"].prompt)
    assert [count for _, count in lengths] == [1] * rows
    assert len({length for length, _ in lengths}) > len(whole.words)  # none is read to the end
    for way in whole.ways:
        np.testing.assert_allclose(whole.ways[way].words, apart.ways[way].words, atol=1e-5)
        np.testing.assert_allclose(whole.ways[way].prompt, apart.ways[way].prompt, atol=1e-5)


def test_a_head_adds_what_it_makes_of_each_word(monkeypatch: pytest.MonkeyPatch) -> None:
    known_heads(monkeypatch, 0)
    grounder = assemble(shared("qwen"))
    found = explain(grounder, IMAGE, text="red ring")
    masks = grounder.ground(IMAGE, ["red ring"], together=True).coarse_logits.sigmoid()
    ours = found.ways["learned"].words
    assert ours.shape[1:] == tuple(masks.shape[1:])
    assert 0 <= ours.min() < ours.max() <= 1
    assert set(found.ways) == {"heads", "mean", "learned"}
    # of one word, it is the coarse mask of that word as a phrase
    alone = explain(grounder, IMAGE, text="ring")
    mask = grounder.ground(IMAGE, ["ring"]).coarse_logits.sigmoid()
    np.testing.assert_allclose(alone.ways["learned"].words, mask.numpy(), atol=1e-4)


@pytest.mark.parametrize("options", [{"ends": 2}, {"pool": "max"}])
def test_a_head_reads_each_word_with_its_own_pooling(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    known_heads(monkeypatch, 0)
    averaging, grounder = assemble(shared("qwen")), weighed(assemble(shared("qwen"), **options))
    mean = explain(averaging, IMAGE, text="ring").ways
    found = explain(grounder, IMAGE, text="ring").ways
    mask = grounder.ground(IMAGE, ["ring"]).coarse_logits.sigmoid()
    np.testing.assert_allclose(found["learned"].words, mask.numpy(), atol=1e-4)
    assert np.abs(found["learned"].words - mean["learned"].words).max() > 1e-3
    for way in ("heads", "mean"):  # of these no head decides
        np.testing.assert_allclose(found[way].words, mean[way].words, atol=1e-6)

    letters = grounder.backbone.tokenizer.convert_tokens_to_ids(list("abcdefgh"))
    others = [token for token in range(len(grounder.backbone.tokenizer)) if token not in letters]
    settings: dict[str, Any] = {"max_new_tokens": 6, "suppress_tokens": others}
    answer = grounder.chat(IMAGE, "what?", phrases=lambda text: [(0, len(text))], **settings)
    said = explain(grounder, IMAGE, ask="what?", **settings)
    assert [word.text for word in said.words] == [answer.text]
    mask = answer.result.coarse_logits.sigmoid()
    np.testing.assert_allclose(said.ways["learned"].words, mask.numpy(), atol=1e-4)


def test_an_answer_is_explained_without_running_the_model_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    known_heads(monkeypatch, 0)
    backbone = shared("qwen")
    reply = backbone.reply(IMAGE, "what?", max_new_tokens=5)

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the model ran")

    monkeypatch.setattr(backbone.vlm.get_decoder(), "forward", refused)
    found = explain_reply(backbone, reply)
    assert (found.text, found.prompt, found.asked) == (reply.text, "what?", True)
    monkeypatch.undo()
    known_heads(monkeypatch, 0)
    again = explain(backbone, IMAGE, ask="what?", max_new_tokens=5)
    np.testing.assert_array_equal(found.ways["mean"].words, again.ways["mean"].words)


def test_layers_that_are_not_named_may_not_be_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from flmm_core.explain import make

    known_heads(monkeypatch, 0)
    monkeypatch.setattr(make, "KEPT", 1)
    backbone = shared("qwen")
    whole = explain(backbone, IMAGE, text="ring", layers=[1])
    assert whole.map("ring", layer=1).sum() == pytest.approx(1, abs=1e-3)
    with pytest.raises(UsageError, match=r"The maps of layer 0 were not kept\.\n.*\n.*layers="):
        whole.map("ring", layer=0)
    with pytest.raises(UsageError, match="were not kept"):
        explain(backbone, IMAGE, text="ring").map("ring", layer=1)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({}, "Give either a text or a question"),
        ({"text": "a", "ask": "b"}, "Give either a text or a question"),
        ({"text": " \n"}, "The text is empty"),
        ({"text": "a \ud800"}, "The text is empty or no Unicode text"),
        ({"ask": ""}, "The question is empty"),
        ({"text": "a", "top_k": 0}, "0 attention heads cannot be chosen"),
        ({"text": "a", "top_k": 13}, "13 attention heads cannot be chosen"),
        ({"text": "a", "layers": [3]}, "The model has no layer 3"),
    ],
)
def test_what_cannot_be_explained_is_said(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError, match=problem) as error:
        explain(shared("qwen"), IMAGE, **given)
    assert error.value.repair


def test_marked_phrases_are_read_without_marks_and_drawn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known_heads(monkeypatch, 0)
    plain, found = (
        explain(shared("qwen"), IMAGE, text=text)
        for text in (TEXT, "a [[red ring]], it's [[left]]")
    )
    assert found.text == plain.text
    np.testing.assert_array_equal(found.ways["mean"].words, plain.ways["mean"].words)
    assert [[found.words[n].text for n in each] for each in found.marked] == [
        ["red", "ring"], ["left"],
    ]  # fmt: skip
    assert [path.name for path in found.save(tmp_path / "a")[3:]] == [
        "word-002-red-ring.png", "word-006-left.png",
    ]  # fmt: skip
    assert [path.name for path in found.save(tmp_path / "b", ["a"])[3:]] == ["word-001-a.png"]
    assert len(plain.save(tmp_path / "c")[3:]) == 5
    with pytest.raises(UsageError, match="is not closed"):
        explain(shared("qwen"), IMAGE, text="a [[red ring")
