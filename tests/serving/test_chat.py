"""POST /v1/chat/completions with the official client: what `Grounder.chat` says and points at."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from flmm_core.data.drawn.writing import draw_images
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.observer import Observer
from flmm_core.serving.limits import Limits
from flmm_core.spec import DEFAULT_PROMPT
from tests.flows import fresh_grounder
from tests.serving.running import data_url, running

QUESTION = DEFAULT_PROMPT
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    drawn = [each.image for each in draw_images(2, seed=5, kinds=("plain",))]
    return [Image.fromarray(np.asarray(each)) for each in drawn]


@pytest.fixture(scope="module")
def talker() -> Grounder:
    """The tiny model, which can talk, and a fresh head."""
    return fresh_grounder(Recipe("qwen", refiner="none"))


@pytest.fixture(scope="module")
def http(talker: Grounder) -> Iterator[httpx.Client]:
    with running({"twin": talker}, Limits(new_tokens=64)) as client:
        yield client


@pytest.fixture(scope="module")
def client(http: httpx.Client) -> openai.OpenAI:
    return client_of(http)


def client_of(http: httpx.Client, key: str = "unused") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{http.base_url}/v1", api_key=key, max_retries=0)


def user(text: str, *images: Image.Image) -> dict[str, Any]:
    parts: list[Any] = [
        {"type": "image_url", "image_url": {"url": data_url(each)}} for each in images
    ]
    return {"role": "user", "content": [*parts, {"type": "text", "text": text}]}


def plain(text: str, images: int = 1) -> dict[str, Any]:
    """The same for `Grounder.chat`."""
    return {
        "role": "user",
        "content": [{"type": "image"}] * images + [{"type": "text", "text": text}],
    }


def ask(client: openai.OpenAI, *messages: dict[str, Any], **options: Any) -> Any:
    return client.chat.completions.create(model="twin", messages=list(messages), **options)  # type: ignore[call-overload]


def same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    assert len(found) == len(expected) > 0
    for record, wanted in zip(found, expected, strict=True):
        for key in ("phrase", "start", "end", "image", "there", "segmentation"):
            assert record[key] == wanted[key]
        assert record["score"] == pytest.approx(wanted["score"], abs=1e-4)


def test_text_and_spans_are_those_of_the_grounder(
    client: openai.OpenAI, talker: Grounder, images: list[Image.Image]
) -> None:
    answer = ask(client, user(QUESTION, images[0]))
    expected = talker.chat(images[0], QUESTION, max_new_tokens=64)
    (choice,) = answer.choices
    assert choice.message.content == expected.text
    same(choice.message.flmm["spans"], expected.to_json()["spans"])
    for span in choice.message.flmm["spans"]:
        assert choice.message.content[span["start"] : span["end"]] == span["phrase"]
    assert choice.finish_reason == "stop"
    assert answer.usage.completion_tokens == len(expected.token_ids)
    assert answer.usage.prompt_tokens > 16
    assert answer.object == "chat.completion"
    assert answer.model == "twin"


def test_a_stream_gives_the_text_first_and_then_the_spans(
    client: openai.OpenAI, talker: Grounder, images: list[Image.Image]
) -> None:
    expected = talker.chat(images[0], QUESTION, max_new_tokens=64)
    text, spans, reasons, usage, kinds = "", [], [], None, []
    stream = ask(
        client, user(QUESTION, images[0]), stream=True, stream_options={"include_usage": True}
    )
    for chunk in stream:
        assert chunk.object == "chat.completion.chunk"
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            found = (choice.delta.model_extra or {}).get("flmm", {}).get("spans", [])
            spans += found
            kinds.append("span" if found else "text" if choice.delta.content else "other")
            reasons.append(choice.finish_reason)
    assert text == expected.text
    assert kinds.count("text") > 2
    assert "text" not in kinds[kinds.index("span") :]
    same(spans, expected.to_json()["spans"])
    assert reasons[-1] == "stop"
    assert set(reasons[:-1]) == {None}
    assert usage is not None
    assert usage.completion_tokens == len(expected.token_ids)


def test_settings_of_generation_are_passed_on(
    client: openai.OpenAI, talker: Grounder, images: list[Image.Image]
) -> None:
    short = ask(client, user(QUESTION, images[0]), max_tokens=3)
    assert (short.choices[0].finish_reason, short.usage.completion_tokens) == ("length", 3)
    whole = ask(client, user(QUESTION, images[0])).usage.completion_tokens
    just = ask(client, user(QUESTION, images[0]), max_tokens=whole)  # its last token ends it
    assert (just.choices[0].finish_reason, just.usage.completion_tokens) == ("stop", whole)
    said = {
        seed: ask(client, user(QUESTION, images[0]), temperature=1.5, top_p=0.95, seed=seed)
        for seed in (1, 2, 1)
    }
    expected = talker.chat(
        images[0], QUESTION, seed=2, do_sample=True, temperature=1.5, top_p=0.95, top_k=0,
        max_new_tokens=64,
    )  # fmt: skip
    assert said[2].choices[0].message.content == expected.text
    assert said[1].choices[0].message.content != expected.text


def test_a_conversation_goes_on_from_the_message_that_was_sent(
    client: openai.OpenAI, talker: Grounder, images: list[Image.Image]
) -> None:
    first = ask(client, user(QUESTION, images[0])).choices[0].message
    turns = [user(QUESTION, images[0]), first.model_dump(), user("And what else?")]
    second = ask(client, *turns).choices[0].message
    messages = [plain(QUESTION), {"role": "assistant", "content": first.content}]
    messages.append({"role": "user", "content": "And what else?"})
    assert second.content == talker.chat(images[0], messages, max_new_tokens=64).text


def test_our_options_choose_phrases_and_masks(
    client: openai.OpenAI, images: list[Image.Image]
) -> None:
    text = ask(client, user(QUESTION, images[0])).choices[0].message.content
    word = text.split()[1].strip(".,")
    for masks in ("rle", "png", "none"):
        options = {"flmm": {"phrases": [word], "masks": masks, "keep_absent": True}}
        spans = ask(client, user(QUESTION, images[0]), extra_body=options).choices[0].message.flmm
        assert {span["phrase"] for span in spans["spans"]} == {word}
        for span in spans["spans"]:
            assert ("png" in span) == (masks == "png")
            assert ("segmentation" in span) == (masks != "none")


@pytest.mark.parametrize("family", ["qwen", "llava_next"])
def test_several_images_are_seen_in_their_order(family: str, images: list[Image.Image]) -> None:
    talker = fresh_grounder(Recipe(family, refiner="none"))
    wide = [images[0], images[1].resize((150, 60))]
    turns = [user(QUESTION, wide[0]), {"role": "assistant", "content": "a red ring"}]
    turns.append(user("And here?", wide[1]))
    messages = [plain(QUESTION), turns[1], plain("And here?")]
    options = {"phrases": lambda text: [(0, len(text.split()[0]))], "max_new_tokens": 12}
    with running({"twin": talker}, Limits(new_tokens=12, images=2)) as http:
        client = client_of(http)
        for ordered in (wide, wide[::-1]):
            one = talker.chat(ordered, [plain(QUESTION, 2)], **options)
            first = one.text.split()[0]
            asked = {"extra_body": {"flmm": {"phrases": [first]}}}
            message = ask(client, user(QUESTION, *ordered), **asked).choices[0].message
            assert message.content == one.text
            record, (span, *_) = message.flmm["spans"][0], one
            assert record["image"] == span.image
            width, height = ordered[span.image].size
            assert record["segmentation"]["size"] == [height, width]
        later = ask(client, *turns).choices[0].message
        assert later.content == talker.chat(wide, messages, max_new_tokens=12).text
        with pytest.raises(openai.BadRequestError, match="3 images"):
            ask(client, user(QUESTION, *wide, wide[0]))


@pytest.mark.parametrize(
    ("options", "param"),
    [
        ({"n": 2}, "n"),
        ({"stop": ["a"]}, "stop"),
        ({"logprobs": True}, "logprobs"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"max_tokens": 65}, "max_tokens"),
        ({"temperature": 3}, "temperature"),
        ({"extra_body": {"beams": 4}}, "beams"),
        ({"extra_body": {"flmm": {"phrases": "spacy:model=/etc"}}}, "flmm.phrases"),
        ({"extra_body": {"flmm": {"phrases": "ruels"}}}, None),
    ],
)
def test_what_is_not_honored_is_refused(
    client: openai.OpenAI, images: list[Image.Image], options: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, user(QUESTION, images[0]), **options)
    assert caught.value.param is param or str(caught.value.param).startswith(str(param))
    assert caught.value.type == "invalid_request_error"


def test_what_asks_for_nothing_is_taken(client: openai.OpenAI, images: list[Image.Image]) -> None:
    ask(
        client, user(QUESTION, images[0]), n=1, stop=None, presence_penalty=0, logprobs=False,
        tool_choice="none", user="somebody", metadata={"a": "b"}, response_format={"type": "text"},
        max_completion_tokens=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("messages", "said"),
    [
        ([], "at least 1 item"),
        ([{"role": "user", "content": "Hello?"}], "no image"),
        ([{"role": "tool", "content": "a", "tool_call_id": "b"}], "role"),
        ([user(QUESTION, Image.new("RGB", (9, 9)), *[Image.new("RGB", (9, 9))] * 8)], "9 images"),
        ([user("a" * 30_000, Image.new("RGB", (9, 9)))], "characters"),
        ([user("a" * 15_000, Image.new("RGB", (9, 9)))], "long"),
        ([user(QUESTION, Image.new("RGB", (9, 9))), {"role": "assistant", "content": "A"}], "last"),
        ([{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}], "type"),
    ],
)  # fmt: skip
def test_messages_that_cannot_be_answered_are_refused(
    client: openai.OpenAI, messages: list[Any], said: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=said):
        ask(client, *messages)


def test_errors_are_those_that_the_client_knows(
    talker: Grounder, images: list[Image.Image], monkeypatch: Patch
) -> None:
    with running({"twin": talker}, token="word-of-honor") as http:
        with pytest.raises(openai.AuthenticationError):
            client_of(http, "wrong").models.list()
        right = client_of(http, "word-of-honor")
        assert [model.id for model in right.models.list()] == ["twin"]
        assert right.models.retrieve("twin").owned_by == "flmm"
        with pytest.raises(openai.NotFoundError) as caught:
            right.models.retrieve("twins")
        assert caught.value.code == "model_not_found"
        monkeypatch.setattr(Observer, "features", lambda *a, **o: 1 / 0)
        with pytest.raises(openai.InternalServerError):
            ask(right, user(QUESTION, images[0]))
        stream = ask(right, user(QUESTION, images[0]), stream=True)
        with pytest.raises(openai.APIError, match="The server failed"):
            list(stream)


def test_a_client_that_leaves_a_stream_stops_the_model(
    talker: Grounder, images: list[Image.Image]
) -> None:
    endless = {"extra_body": {"flmm": {"phrases": []}}, "max_tokens": 400}
    with running({"twin": talker}) as http:
        client = client_of(http)
        stream = ask(
            client, user(QUESTION, images[0]), stream=True, temperature=2, seed=3, **endless
        )
        next(iter(stream))
        stream.close()
        ask(client, user(QUESTION, images[0]), max_tokens=1)
        shown = http.get("/metrics").text
        assert "flmm_generated_tokens_total 1.0" in shown
        assert "flmm_request_memory_bytes 0.0" in shown
        assert "flmm_waiting_requests 0.0" in shown
