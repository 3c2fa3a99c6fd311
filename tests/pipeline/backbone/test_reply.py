"""Conversations against transformers' own `generate`, and their attention against eager passes."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
import torch

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.backbone.messages import read_messages
from flmm_core.pipeline.backbone.transcript import Transcript
from tests.models import FAMILIES, build, picture

shared = functools.cache(build)
IMAGE, OTHER = picture(48, 48, 1), picture(48, 24, 2)
NEW = {"max_new_tokens": 6, "min_new_tokens": 6}
IMAGE_PART = {"type": "image"}


@pytest.fixture(params=FAMILIES)
def backbone(request: pytest.FixtureRequest) -> Any:
    return shared(request.param)


def user(text: str, *images: Any) -> dict[str, Any]:
    return {"role": "user", "content": [*images, {"type": "text", "text": text}]}


def inputs_of(backbone: Any, images: Any, messages: Any, **how: Any) -> Any:
    """A conversation as transformers' own processor and template make it."""
    text = backbone.processor.apply_chat_template(
        messages, tokenize=False, **(how or {"add_generation_prompt": True})
    )
    return backbone.processor(
        text=[text], images=images, return_tensors="pt", add_special_tokens=False
    )


@torch.no_grad()
def alone(backbone: Any, inputs: Any, **how: Any) -> list[int]:
    """New tokens of transformers' `generate`, without us."""
    made = backbone.vlm.generate(**inputs, **{"do_sample": False, **how})
    return made[0, inputs["input_ids"].shape[1] :].tolist()


@torch.no_grad()
def eager(backbone: Any, inputs: Any, new: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention (L, N, S, S) and hidden states (L, S, D) of a pass over conversation and answer."""
    model = copy.deepcopy(backbone.vlm)
    model.set_attn_implementation("eager")
    longer = dict(inputs)
    for key, value in inputs.items():
        if value.shape == inputs["input_ids"].shape:
            fill = {"input_ids": new, "attention_mask": torch.ones_like(new)}
            longer[key] = torch.cat([value, fill.get(key, torch.zeros_like(new))[None]], 1)
    output = model.model(
        **longer, use_cache=False, output_attentions=True, output_hidden_states=True
    )
    return torch.stack(output.attentions)[:, 0], torch.stack(output.hidden_states[1:])[:, 0]


class Counter:
    """How many tokens each forward runs."""

    def __init__(self, backbone: Any) -> None:
        self.counts: list[int] = []
        layer = backbone.vlm.get_decoder().layers[0]
        self.hook = layer.register_forward_pre_hook(self.see, with_kwargs=True)

    def see(self, _: Any, args: Any, kwargs: Any) -> None:
        states = args[0] if args else kwargs["hidden_states"]
        self.counts.append(states.shape[1])


def check_rows(backbone: Any, reply: Any, inputs: Any) -> None:
    """All rows of a reply are those of an eager pass."""
    attention, hidden = eager(backbone, inputs, reply.token_ids)
    count = len(reply.rows)
    places = reply.first + torch.arange(count)
    torch.testing.assert_close(reply.rows.hidden(places), hidden[:, places], atol=2e-5, rtol=0)
    for seen in reply.images:
        columns = torch.cat([view.token_index.flatten() for view in seen.views])
        expected = attention[:, :, places][..., columns]
        assert expected.max() > 0.02, "an attention of zeros would prove nothing"
        each = reply.rows.attention([place[None] for place in places], columns)
        torch.testing.assert_close(each, expected, atol=2e-5, rtol=0)
        for pool, pooled in (("mean", expected.mean(2)), ("max", expected.amax(2))):
            found = reply.rows.attention([places], columns, pool)[:, :, 0]
            torch.testing.assert_close(found, pooled, atol=2e-5, rtol=0)


def test_an_answer_is_that_of_generate_and_all_its_tokens_have_rows(backbone: Any) -> None:
    inputs = inputs_of(backbone, [IMAGE], [user("What is it?", IMAGE_PART)])
    reply = backbone.reply(IMAGE, "What is it?", **NEW)
    assert reply.token_ids.tolist() == alone(backbone, inputs, **NEW)
    assert len(reply.rows) == 6  # the last one, too
    check_rows(backbone, reply, inputs)


def test_sampling_with_a_seed_is_generate_with_that_seed(backbone: Any) -> None:
    how = {**NEW, "do_sample": True, "temperature": 1.5, "top_k": 40, "repetition_penalty": 1.2}
    inputs = inputs_of(backbone, [IMAGE], [user("What is it?", IMAGE_PART)])
    torch.manual_seed(7)
    expected = alone(backbone, inputs, **how)
    before = torch.random.get_rng_state()
    reply = backbone.reply(IMAGE, "What is it?", seed=7, **how)
    assert reply.token_ids.tolist() == expected
    assert torch.equal(torch.random.get_rng_state(), before)
    assert backbone.reply(IMAGE, "What is it?", seed=8, **how).token_ids.tolist() != expected


def test_a_later_turn_runs_only_what_is_new(backbone: Any) -> None:
    """Also after the model has done something else, with an image of another shape."""
    first = backbone.reply(IMAGE, "What is it?", **NEW)
    backbone.generate(OTHER, "And this?", max_new_tokens=2)
    (trace,) = backbone.trace(backbone.collate([backbone.prepare(OTHER, [])]))
    del trace
    # toy models write bytes that are no text: what is said again is said by us
    asked = [*first.messages, user("And now, with another image?", IMAGE_PART)]
    inputs = inputs_of(backbone, [IMAGE, OTHER], asked)
    counter = Counter(backbone)
    second = backbone.reply([IMAGE, OTHER], asked, **NEW)
    counter.hook.remove()
    prompt, known = inputs["input_ids"].shape[1], first.first
    assert second.token_ids.tolist() == alone(backbone, inputs, **NEW)
    assert prompt - known - 6 - 1 <= counter.counts[0] <= prompt - known - 1
    assert counter.counts[1:] == [1] * 7  # the prompt's last token, and the answer
    check_rows(backbone, second, inputs)


def test_another_conversation_begins_anew(backbone: Any) -> None:
    first = backbone.reply(IMAGE, "What is it?", **NEW)
    asked = [*first.messages, user("Now?")]
    counter = Counter(backbone)
    other = backbone.reply(OTHER, asked, **NEW)  # the same words about another image
    assert counter.counts[0] == other.first
    backbone.reply(IMAGE, "What is it?", **NEW)
    assert counter.counts[7] == first.first
    counter.hook.remove()


def test_where_keys_are_dropped_the_answer_is_read_once_more() -> None:
    for family, how in (
        ("llava_next_window", {}),
        ("qwen", {"use_cache": False}),
        ("deepseek_vl", {"cache_implementation": "static", "disable_compile": True}),
    ):
        backbone = shared(family)
        inputs = inputs_of(backbone, [IMAGE], [user("What is it?", IMAGE_PART)])
        reply = backbone.reply(IMAGE, "What is it?", **NEW, **how)
        assert reply.token_ids.tolist() == alone(backbone, inputs, **NEW, **how)
        check_rows(backbone, reply, inputs)


def test_a_begun_answer_is_continued(backbone: Any) -> None:
    asked = [user("What?", IMAGE_PART), {"role": "assistant", "content": "A red"}]
    begun = {"role": "assistant", "content": [{"type": "text", "text": "A red"}]}
    inputs = inputs_of(backbone, [IMAGE], [asked[0], begun], continue_final_message=True)
    reply = backbone.reply(IMAGE, asked, **NEW)
    assert reply.token_ids.tolist() == alone(backbone, inputs, **NEW)
    assert reply.text.startswith("A red")
    rows = reply.tokens_of(0, 5)
    assert reply.first + 5 == inputs["input_ids"].shape[1]  # a token a byte
    assert rows.tolist() == list(range(reply.first, reply.first + 5))
    given = {key: value[:, :-5] if value.shape == inputs["input_ids"].shape else value
             for key, value in inputs.items()}  # fmt: skip
    attention, _ = eager(backbone, given, torch.cat([inputs["input_ids"][0, -5:], reply.token_ids]))
    columns = reply.images[0].views[0].token_index.flatten()
    expected = attention[:, :, rows][..., columns].mean(2)
    found = reply.rows.attention([rows], columns)[:, :, 0]
    torch.testing.assert_close(found, expected, atol=2e-5, rtol=0)


def test_text_comes_while_the_model_writes(backbone: Any) -> None:
    pieces: list[str] = []
    how = {**NEW, "suppress_tokens": list(backbone.tokenizer.all_special_ids)}
    reply = backbone.reply(IMAGE, "What is it?", on_text=pieces.append, **how)
    assert "".join(pieces) == reply.text


def test_characters_of_tokens() -> None:
    """A token a byte: all bytes of a character cover it; control tokens cover nothing."""
    tokenizer = shared("qwen").tokenizer
    ids = tokenizer("aé\U0001f600 b", add_special_tokens=False)["input_ids"]
    transcript = Transcript(tokenizer)
    said = [transcript.add(token) for token in [*ids, tokenizer.eos_token_id]]
    assert said[0] == "a"
    assert said[1] == "a"  # half a character is not said
    assert said[-1] == transcript.text == "aé\U0001f600 b"
    assert transcript.offsets() == [
        (0, 1), (1, 2), (1, 2), (2, 3), (2, 3), (2, 3), (2, 3), (3, 4), (4, 5), (5, 5),
    ]  # fmt: skip


def test_messages_of_every_form() -> None:
    plain = read_messages(IMAGE, "What?")
    assert plain.turns == (
        {"role": "user", "content": [IMAGE_PART, {"type": "text", "text": "What?"}]},
    )
    parts = read_messages(None, [user("What?", {"type": "image", "image": IMAGE})])
    assert parts.turns == plain.turns
    assert parts.images == (IMAGE,)
    begun = read_messages(IMAGE, [user("What?"), {"role": "assistant", "content": "A"}])
    assert (begun.turns, begun.begun) == (plain.turns, "A")


@pytest.mark.parametrize(
    ("images", "messages", "said"),
    [
        (IMAGE, [], "There is no message to answer."),
        (IMAGE, 3, "There is no message to answer."),
        (IMAGE, [{"role": "user"}], "Message 0 has no role and content."),
        (IMAGE, [{"role": "usr", "content": "a"}], "Did you mean 'user'?"),
        (IMAGE, [{"role": "user", "content": 3}], "neither text nor a list"),
        (IMAGE, [{"role": "user", "content": [{"type": "video"}]}], "neither text nor an image"),
        (IMAGE, [user("a"), {"role": "system", "content": "b"}], "not the first message"),
        (IMAGE, [{"role": "assistant", "content": "b"}], "no user's message"),
        (IMAGE, [user("a", IMAGE_PART, IMAGE_PART)], "show 2 images, but 1 is given"),
        ([IMAGE, OTHER], [user("a", IMAGE_PART)], "show 1 image, but 2 are given"),
        ([], [user("a")], "There is no image to talk about."),
        (None, [user("a")], "There is no image to talk about."),
        (IMAGE, [user("a", {"type": "image", "image": IMAGE})], "both in the messages and beside"),
        (IMAGE, [user("\ud800")], "not Unicode text"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_answered(images: Any, messages: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        read_messages(images, messages)
    assert said in error.value.asked


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ({"num_beams": 4}, "num_beams=4 is not supported."),
        ({"num_return_sequences": 2, "do_sample": True}, "num_return_sequences=2"),
        ({"topk": 5}, "Did you mean 'top_k'?"),
        ({"return_dict_in_generate": True}, "Unknown setting"),
        ({"max_new_tokens": 0}, "transformers refuses"),
        ({"do_sample": True, "temperature": -1.0}, "transformers refuses"),
    ],
)
def test_settings_that_are_refused(how: Any, said: str) -> None:
    with pytest.raises(UsageError) as error:
        shared("qwen").reply(IMAGE, "What?", **how)
    assert said in error.value.asked


def test_a_conversation_that_is_too_long_is_refused() -> None:
    with pytest.raises(UsageError, match="longer than the model can take"):
        shared("qwen").reply(IMAGE, "word " * 200)


def test_inputs_are_moved_to_the_models_dtype() -> None:
    backbone = build("qwen", dtype=torch.bfloat16)
    inputs = to_vlm(
        backbone.vlm, dict(inputs_of(backbone, [IMAGE], [user("What is it?", IMAGE_PART)]))
    )
    reply = backbone.reply(IMAGE, "What is it?", **NEW)
    assert reply.token_ids.tolist() == alone(backbone, inputs, **NEW)
    assert reply.trace([(0, 1)] if reply.text else []).attention.dtype == torch.float32
