"""Faults of answers and conversations."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from PIL import Image

from tests.testing.mutants.mutant import Make, method, mutant

ANSWERS, SEE, STOP, SAMPLED, ROWS, TALK, SAME = (
    "check_answers",
    "check_answers_see_image_and_prompt",
    "check_answers_stop",
    "check_sampled_answers",
    "check_answer_rows",
    "check_conversations",
    "check_vlm_stays_unchanged",
)


def said(change: Callable[[str], Any]) -> Make:
    """Other words from `generate`."""
    return method("generate", lambda self, right, *args, **kw: change(right(*args, **kw)))


mutant(ANSWERS, "answers with random words")(said(lambda text: text + str(random.random())))
mutant(ANSWERS, "answers that are empty")(said(lambda text: ""))
mutant(ANSWERS, "answers that are no text")(said(lambda text: text.encode()))
mutant(ANSWERS, "answers in capitals")(said(str.swapcase))
mutant(ANSWERS, "the same answer to everything")(said(lambda text: "A photo."))
mutant(ANSWERS, "answers that begin with the question")(
    method(
        "generate", lambda self, right, i, prompt=None, **kw: f"{prompt} {right(i, prompt, **kw)}"
    )
)


def settings(change: Callable[[dict[str, Any]], dict[str, Any]]) -> Make:
    """Other settings of generation."""
    return method("reply", lambda self, right, *args, **kw: right(*args, **change(kw)))


def without(*names: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda given: {key: value for key, value in given.items() if key not in names}


mutant(ANSWERS, "answers sampled by default")(
    settings(lambda kw: {"do_sample": True, "temperature": 50.0, "top_k": 0, "seed": 1, **kw})
)
mutant(ANSWERS, "answers with a penalty on repetition")(
    settings(lambda kw: {"repetition_penalty": 5.0, **kw})
)


def no_system(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
    given, self.system = self.system, None
    try:
        return right(*args, **kwargs)
    finally:
        self.system = given


def another_end(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
    reply = right(*args, **kwargs)
    return replace(reply, token_ids=reply.token_ids.flip(0))


mutant(SEE, "system message ignored in answers")(method("reply", no_system))
mutant(ANSWERS, "tokens of an answer in reverse")(method("reply", another_end))

GRAY = Image.new("RGB", (150, 120), (120, 120, 120))


def blank(name: str) -> Make:
    return method(
        name,
        lambda self, right, image, *args, **kw: right(
            Image.new("RGB", image.size, (120, 120, 120)), *args, **kw
        ),
    )


mutant(SEE, "image ignored in answers")(blank("generate"))
mutant(SEE, "image of another size in answers")(
    method("generate", lambda self, right, image, *args, **kw: right(GRAY, *args, **kw))
)
mutant(SEE, "prompt ignored in answers")(
    method("generate", lambda self, right, image, prompt=None, **kw: right(image, "Why?", **kw))
)
mutant(SEE, "image upside down in answers")(
    method(
        "generate", lambda self, right, image, *args, **kw: right(image.rotate(180), *args, **kw)
    )
)

mutant(STOP, "end token ignored")(settings(without("eos_token_id")))
mutant(STOP, "number of tokens ignored")(settings(without("max_new_tokens")))
mutant(STOP, "one token too many")(
    settings(lambda kw: {**kw, "max_new_tokens": kw.get("max_new_tokens", 64) + 1})
)
mutant(STOP, "one token too few")(
    settings(lambda kw: {**kw, "max_new_tokens": max(1, kw.get("max_new_tokens", 64) - 1)})
)

mutant(SAMPLED, "sampling ignored")(settings(without("do_sample", "temperature", "top_k")))
mutant(SAMPLED, "temperature ignored")(settings(without("temperature")))
mutant(SAMPLED, "seed ignored")(settings(lambda kw: {**kw, "seed": 1} if "seed" in kw else kw))
mutant(SAMPLED, "no seed")(settings(without("seed")))


def replied(change: Callable[[Any], Any]) -> Make:
    """Rows of an answer that are changed after they are recorded: `change(trace)`."""

    def wrong(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        reply = right(*args, **kwargs)
        kind = type(reply)

        class Faulty(kind):  # type: ignore[misc, valid-type]
            def trace(self, *args: Any, **kwargs: Any) -> Any:
                return change(super().trace(*args, **kwargs))

        object.__setattr__(reply, "__class__", Faulty)
        return reply

    return method("reply", wrong)


mutant(ROWS, "attention of answers 0.1 % too large")(
    replied(lambda t: replace(t, attention=t.attention * 1.001))
)
mutant(ROWS, "attention of answers by head in reverse")(
    replied(lambda t: replace(t, attention=t.attention.flip(1)))
)
mutant(ROWS, "attention of answers over image tokens only")(
    replied(lambda t: replace(t, attention=t.attention / t.attention.sum(-1, True)))
)
mutant(ROWS, "hidden states of answers one token late")(
    replied(lambda t: replace(t, hidden=t.hidden.roll(1, 1)))
)
mutant(ROWS, "hidden states of answers one layer late")(
    replied(lambda t: replace(t, hidden=t.hidden.roll(1, 0)))
)
mutant(ROWS, "rows of answers one token early")(
    method("reply", lambda self, right, *a, **kw: _earlier(right(*a, **kw)))
)
mutant(ROWS, "image ignored in recorded answers")(blank("reply"))


def _earlier(reply: Any) -> Any:
    """The characters of an answer are taken for those of the tokens before."""
    return replace(reply, offsets=(*reply.offsets[1:], reply.offsets[-1]))


def stale_image(self: Any, right: Any, image: Any, *args: Any, **kwargs: Any) -> Any:
    """The image of the first conversation stays."""
    self.__dict__.setdefault("first_image", image)
    return right(self.first_image, *args, **kwargs)


def last_question(self: Any, right: Any, image: Any, messages: Any, **kwargs: Any) -> Any:
    """What was said before is forgotten."""
    if not isinstance(messages, str):
        text = messages[-1]["content"][-1]["text"]
        messages = [
            {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        ]
    return right(image, messages, **kwargs)


def stale_cache(self: Any, right: Any, image: Any, messages: Any, **kwargs: Any) -> Any:
    """The KV cache of a conversation is used for another with the same words."""
    past = self._talk._past
    if past is not None:
        past._images = (image,)
    return right(image, messages, **kwargs)


def whole_turn_kept(self: Any, right: Any, image: Any, messages: Any, **kwargs: Any) -> Any:
    """The first question of a conversation is asked again in each turn."""
    if not isinstance(messages, str) and len(messages) > 1:
        messages = [*messages[:-1], {**messages[-1], "content": messages[0]["content"][-1:]}]
    return right(image, messages, **kwargs)


def moved_positions(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
    """Later turns continue from a cache whose last token was dropped."""
    past = self._talk._past
    if past is not None and past.cache is not None:
        for layer in past.cache.layers:
            layer.keys = layer.keys.roll(1, 2)
    return right(*args, **kwargs)


mutant(TALK, "image of the first conversation kept")(method("reply", stale_image))
mutant(TALK, "earlier turns forgotten")(method("reply", last_question))
mutant(TALK, "cache of another image")(method("reply", stale_cache))
mutant(TALK, "first question asked again")(method("reply", whole_turn_kept))
mutant(TALK, "cache with its keys moved")(method("reply", moved_positions))


def learning(name: str) -> Make:
    def wrong(self: Any, right: Any, *args: Any, **kwargs: Any) -> Any:
        next(self.vlm.parameters()).data.mul_(1.001)
        return right(*args, **kwargs)

    return method(name, wrong)


@mutant(SAME, "traces with a gradient to the model")
def gradient(base: Any) -> Any:
    class Faulty(base):
        def trace(self, *args: Any, **kwargs: Any) -> Any:
            weight = next(self.vlm.parameters())
            weight.requires_grad_(True)
            traces = super().trace(*args, **kwargs)
            with torch.enable_grad():
                return tuple(replace(t, hidden=t.hidden + weight.sum() * 0) for t in traces)

    return Faulty


mutant(SAME, "weights that change with each answer")(learning("generate"))
mutant(SAME, "weights that change with each trace")(learning("trace"))
