"""Which words to ground: read from the states of a whole caption, learned from narrations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from flmm_core.data.sample import Sample
from flmm_core.errors import UsageError
from flmm_core.evaluation.keywords import KeywordScores, annotated_phrases
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, Range
from flmm_core.pipeline.conversation.phrases.choose import find_phrases, open_finder
from flmm_core.pipeline.conversation.phrases.keywords import selected, words_of
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.keywords import KeywordSelector
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.refiners.none import NoRefiner
from flmm_core.pipeline.types import CaptionStates, Features, KeywordLogits
from flmm_core.segment import Segment, caption_text
from flmm_core.training.losses import Counts, head_loss, keyword_loss
from tests.models import FAMILIES, build, picture
from tests.pipeline.conversation.promises import check_promises
from tests.pipeline.test_text_prompts import HIDDEN, LAYERS, features

PIECES = [
    Segment("a café", 0),
    Segment(" beside "),
    Segment("two <|pad|> dogs", 1),
    Segment(" and "),
    Segment(" 猫 ", 0),
    Segment("!"),
]


@pytest.mark.parametrize("family", FAMILIES)
def test_the_states_of_a_caption_are_those_of_transformers(family: str) -> None:
    backbone: Any = build(family)
    image = picture(48, 24)
    first = backbone.prepare(image, PIECES, name="first")
    samples = [first, backbone.prepare(image, [Segment("a cat", 0)], like=first)]
    for batch in ([samples[0]], samples):
        traces = backbone.trace(backbone.collate(batch), captions=True)
        plain = backbone.trace(backbone.collate(batch))
        for sample, trace, without in zip(batch, traces, plain, strict=True):
            alone = backbone.collate([sample]).tensors
            with torch.no_grad():
                theirs = backbone.vlm.model(**alone, use_cache=False, output_hidden_states=True)
            states = torch.stack(theirs.hidden_states[1:])[:, 0, sample.start :]
            torch.testing.assert_close(trace.caption.hidden, states, atol=1e-3, rtol=1e-4)
            torch.testing.assert_close(trace.hidden, without.hidden)
            torch.testing.assert_close(trace.attention, without.attention)
            assert torch.equal(trace.row_phrase, without.row_phrase)
            assert without.caption is None


@pytest.mark.parametrize("family", FAMILIES)
def test_offsets_say_which_characters_of_the_given_caption_a_token_covers(family: str) -> None:
    backbone: Any = build(family)
    inputs = backbone.prepare(picture(48, 24), PIECES)
    text = caption_text(PIECES)
    assert len(inputs.offsets) == len(inputs.caption)
    covered = {place for start, end in inputs.offsets for place in range(start, end)}
    assert covered == set(range(len(text)))  # also where a control string was parted
    (trace,) = backbone.trace(backbone.collate([inputs]), captions=True)
    for phrase, words in ((0, "a café猫"), (1, "two <|pad|> dogs")):
        pairs = zip(inputs.offsets, trace.caption.phrase.tolist(), strict=True)
        at = [one for one, of in pairs if of == phrase]
        places = sorted({place for start, end in at for place in range(start, end)})
        assert "".join(text[place] for place in places) == words


def states(seed: int, count: int = 7) -> CaptionStates:
    """Tokens of two phrases that stand side by side; one direction tells them."""
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(LAYERS, count, HIDDEN, generator=generator)
    phrase = torch.tensor([-1, 0, 0, 1, 1, -1, -1])[:count]
    hidden[1, :, 3] += torch.where(phrase >= 0, 4.0, -4.0)
    hidden[1, [1, 3], 5] += 9
    return CaptionStates(hidden, tuple((2 * n, 2 * n + 1) for n in range(count)), phrase)


def small_head(**parts: Any) -> Head:
    torch.manual_seed(0)
    keywords = KeywordSelector(LAYERS, HIDDEN)
    return Head(MaskHead(6, 4, 8), None, NoRefiner(), keywords=keywords, **parts)


def narrated(seed: int) -> Features:
    return replace(features([2]), caption=states(seed))


def test_the_selector_is_one_linear_layer_on_normalized_states() -> None:
    torch.manual_seed(1)
    selector = KeywordSelector(LAYERS, HIDDEN)
    hidden = torch.randn(LAYERS, 5, HIDDEN)
    norm = nn.LayerNorm(HIDDEN, elementwise_affine=False)
    states = torch.cat([norm(layer) for layer in hidden], 1)
    torch.testing.assert_close(selector(hidden), selector.readout(states))
    assert selector(hidden[:, :0]).shape == (0, 2)


def test_only_narrations_teach_it_and_each_counts_the_same() -> None:
    head, truth = small_head(), torch.ones(1, 24, 24, dtype=torch.bool)
    batch = [replace(narrated(seed), image_hw=(24, 24)) for seed in range(3)]
    _, whole = head_loss(head, batch, [truth] * 3, narrated=[True, False, True])
    alone = [
        keyword_loss(head.keywords(one.caption.hidden), one.caption.phrase)  # type: ignore[misc,union-attr]
        for one in (batch[0], batch[2])
    ]
    torch.testing.assert_close(whole.parts["keywords"], torch.stack(alone).mean())
    counts = Counts(phrases=3, masks=3, refined=3, narrations=2)
    parts = [
        head_loss(head, [one], [truth], narrated=[own], counts=counts)[1].parts["keywords"]
        for one, own in zip(batch, (True, False, True), strict=True)
    ]
    torch.testing.assert_close(torch.stack(parts).sum(), whole.parts["keywords"])
    _, nothing = head_loss(head, batch, [truth] * 3)
    assert nothing.parts["keywords"] == 0


def test_it_learns_to_tell_phrases_that_stand_side_by_side_apart() -> None:
    head = small_head()
    assert head.keywords is not None
    optimizer = torch.optim.AdamW(head.keywords.parameters(), lr=5e-2)
    for step in range(200):
        learned = states(step)
        loss = keyword_loss(head.keywords(learned.hidden), learned.phrase)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    text, unseen = "a b c d e f g", states(1000)
    context = PhraseContext(head=head, offsets=unseen.offsets, hidden=unseen.hidden)
    assert find_phrases(text, open_finder("keywords"), context) == [(2, 5), (6, 9)]
    assert find_phrases(text, open_finder("keywords:1"), context) == []
    assert len(find_phrases(text, open_finder("keywords:0"), context)) == 7


def test_a_head_without_a_selector_is_refused() -> None:
    finder = open_finder("keywords")
    assert finder.needs_hidden
    head = Head(MaskHead(6, 4, 8), None, NoRefiner())
    for context in (PhraseContext(), PhraseContext(head=head)):
        with pytest.raises(UsageError, match=r"^The head has no keyword selector\.\n.*--phrases"):
            finder.check(context)
        with pytest.raises(UsageError, match="flmm train --init-head HEAD --head-keywords"):
            finder.find("a cat", context)
    finder.check(PhraseContext(head=small_head()))
    with pytest.raises(UsageError, match="The hidden states of the text are not known"):
        finder.find("a cat", PhraseContext(head=small_head()))


def logits(*tokens: str) -> torch.Tensor:
    """B begins a phrase, I is in one, O is in none."""
    both = {"B": (5.0, 5.0), "I": (-5.0, 5.0), "O": (-5.0, -5.0)}
    return torch.tensor([both[token] for token in tokens])


@pytest.mark.parametrize(
    ("text", "offsets", "tokens", "expected"),
    [
        # words of several tokens, with the space before them or without it
        ("a ring on", [(0, 1), (1, 4), (4, 6), (6, 9)], "BIIO", ["a ring"]),
        ("a ring", [(0, 1), (2, 4), (4, 6)], "OBI", ["ring"]),
        # a word is in a phrase whole or not at all
        ("ringlets", [(0, 4), (4, 8)], "BO", ["ringlets"]),
        ("a ringlet", [(0, 1), (1, 6), (6, 9)], "BIO", ["a ringlet"]),
        # marks and words in between end a phrase, side by side it begins anew
        ("red, ring", [(0, 3), (3, 4), (4, 9)], "BII", ["red"]),
        ("red ring cat", [(0, 3), (3, 8), (8, 12)], "BIB", ["red ring", "cat"]),
        # what nothing begins is none
        ("the ring", [(0, 3), (3, 8)], "OI", []),
        # scripts without spaces
        ("一只猫在", [(0, 1), (1, 2), (2, 3), (3, 4)], "BIIO", ["一只猫"]),
        ("", [], "", []),
    ],
)
def test_tokens_become_whole_words(
    text: str, offsets: list[Range], tokens: str, expected: list[str]
) -> None:
    found = selected(text, logits(*tokens).reshape(-1, 2), offsets)
    assert [text[start:end] for start, end in found] == expected


@given(st.text(), st.data())
def test_any_tokens_of_any_text_give_phrases_of_whole_words(text: str, data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    offsets = list(zip([0, *cuts], [*cuts, len(text)], strict=True))
    drawn = data.draw(
        st.lists(st.sampled_from("BIO"), min_size=len(offsets), max_size=len(offsets))
    )
    found = selected(text, logits(*drawn), offsets)
    check_promises(text, found)
    edges = words_of(text)
    assert {start for start, _ in found} <= {start for start, _ in edges}
    assert {end for _, end in found} <= {end for _, end in edges}


def test_scores_count_exact_phrases_and_words() -> None:
    pieces = (
        Segment("a red ring", 0), Segment(" beside "), Segment("a ", 1), Segment("star", 1),
        Segment(" by the sea."),
    )  # fmt: skip
    text = caption_text(pieces)
    assert annotated_phrases(pieces) == [(0, 10), (18, 24)]
    offsets = tuple(words_of(text))  # a red ring beside a star by the sea
    sample = Sample("x", None, (1, 1), pieces, (None, None), narrated=True)  # type: ignore[arg-type]
    scores = KeywordScores()
    scores.add(sample, KeywordLogits(logits(*"BIOOBIOBI"), offsets))
    once = scores.to_dict()
    assert once["captions"] == 1
    # chosen: "a red", "a star", "the sea"
    assert (once["precision"], once["recall"], once["f1"]) == (1 / 3, 1 / 2, 2 / 5)
    assert once["word_f1"] == 2 * 4 / (6 + 5)
    assert once["rules_f1"] == 2 * 2 / (3 + 2)  # "the sea", too
    scores.merge(scores)
    assert scores.to_dict() == {**once, "captions": 2}
