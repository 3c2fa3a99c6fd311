"""What the model says: the capability "chat"."""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.conversation import Turns, user_turns
from flmm_core.pipeline.backbone.reply import Reply
from flmm_core.testing.probes import CAPTION, picture
from flmm_core.testing.promise import NotPromised, require, require_equal, require_near
from flmm_core.testing.reference import Encoded, Reference, reference

QUESTIONS = ("What is this?", "Name all colors, and say what is on the left.")
SYSTEM = "You answer in one sentence."
LENGTH = 10
CLOSE = 1e-3
"""Scores that differ by less are a tie, which rounding may decide."""


def check_answers(backbone: Backbone) -> None:
    """Greedy answers are those of transformers' own `generate`, for images, prompts, systems."""
    stored = _stored(backbone)
    asked = [(picture(96, 144, s), QUESTIONS[q], backbone.system) for s, q in ((0, 0), (1, 1))]
    asked.append((picture(200, 120), QUESTIONS[0], SYSTEM))
    usual = backbone.system
    for image, question, system in asked:
        try:
            encoded = stored.encode(user_turns(question, system), [image])
        except NotPromised:
            continue
        backbone.system = system
        try:
            reply = backbone.reply(image, question, record=False, max_new_tokens=LENGTH)
            text = backbone.generate(image, question, max_new_tokens=LENGTH)
        finally:
            backbone.system = usual
        what = f"answer to {question!r}" + (
            f" with the system message {system!r}" * (system is SYSTEM)
        )
        _require_tokens(stored, encoded, reply, what, max_new_tokens=LENGTH)
        require_equal(text, reply.text, f"{what}, from generate")
        require_equal(reply.text, stored.read(reply.token_ids.tolist()), f"text of the {what}")
    word = backbone.image_token
    backbone.generate(picture(96, 144), f"What is {word}?", max_new_tokens=1)  # no second image


def check_answers_see_image_and_prompt(backbone: Backbone) -> None:
    """Another image, prompt or system message changes the answer as it changes the model's own.

    Of two tokens, the model prefers one with the first input and the other with the second; only
    these two are allowed as an answer.
    """
    stored, found, usual = _stored(backbone), 0, backbone.system
    image, question = picture(96, 144, 3), QUESTIONS[0]
    cases = [
        ("image", [(picture(96, 144, seed), question, usual) for seed in (3, 4)]),
        ("image", [(Image.new("RGB", (144, 96), c), question, usual) for c in ("black", "white")]),
        ("image", [(each, question, usual) for each in (image, image.rotate(180))]),
        ("prompt", [(image, each, usual) for each in QUESTIONS]),
        ("system message", [(image, question, usual), (image, question, SYSTEM)]),
    ]
    for kind, inputs in cases:
        try:
            given = [stored.encode(user_turns(q, system), [i]) for i, q, system in inputs]
        except NotPromised:  # the template takes no system message
            continue
        first, second = (stored.run(each.tensors).logits[-1] for each in given)  # (vocabulary,)
        pair = _opposed(stored, first, second)
        if pair is None:
            continue
        found += 1
        for number, (image, question, system) in enumerate(inputs):
            backbone.system = system
            try:
                text = backbone.generate(
                    image,
                    question,
                    max_new_tokens=1,
                    prefix_allowed_tokens_fn=lambda *_, allowed=pair: list(allowed),
                )
            finally:
                backbone.system = usual
            expected = stored.read([pair[number]])
            require_equal(text, expected, f"answer to {kind} {number} of 2 ({question!r})")
    require(found, "probes that tell inputs apart", expected="some", found="none")


def check_answers_stop(backbone: Backbone) -> None:
    """An answer ends at the model's end token, or after as many tokens as were asked for."""
    stored, image = _stored(backbone), picture(96, 144)
    encoded = stored.encode(user_turns(QUESTIONS[0], backbone.system), [image])
    tokens, _ = stored.generate(encoded, max_new_tokens=LENGTH)
    cases: tuple[dict[str, Any], ...]
    cases = {"max_new_tokens": 1}, {"max_new_tokens": 3}, {"eos_token_id": tokens[2:3]}
    for each in cases:
        settings = {"max_new_tokens": LENGTH, **each}
        reply = backbone.reply(image, QUESTIONS[0], record=False, **settings)
        _require_tokens(stored, encoded, reply, f"answer with {settings}", **settings)
        text = backbone.generate(image, QUESTIONS[0], **settings)
        require_equal(text, reply.text, f"answer with {settings}, from generate")


def check_sampled_answers(backbone: Backbone) -> None:
    """Sampling is transformers' own: another seed gives another answer, the same seed the same."""
    stored, image = _stored(backbone), picture(96, 144)
    encoded = stored.encode(user_turns(QUESTIONS[0], backbone.system), [image])
    settings: dict[str, Any] = {"do_sample": True, "temperature": 50.0, "top_k": 0}
    settings["max_new_tokens"] = LENGTH
    texts = []
    for seed in (5, 6, 5):
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            expected, _ = stored.generate(encoded, **settings)
        text = backbone.generate(image, QUESTIONS[0], seed=seed, **settings)
        what = f"answer sampled with temperature=50, seed={seed}"
        require_equal(text, stored.read(expected), what)
        texts.append(text)
    differ = texts[0] != texts[1]
    require(differ, "answers with seeds 5 and 6", expected="two", found=f"{texts[0]!r} twice")


def check_answer_rows(backbone: Backbone) -> None:
    """What the words of an answer attend to is what one forward over the whole text says."""
    stored, image = _stored(backbone), picture(120, 150, seed=7)
    words = _printable(stored)
    for question in QUESTIONS:
        encoded = stored.encode(user_turns(question, backbone.system), [image])
        reply = backbone.reply(
            image,
            question,
            max_new_tokens=LENGTH,
            prefix_allowed_tokens_fn=lambda *_: words,
            repetition_penalty=1.0,
        )
        require_equal(
            len(reply.token_ids), LENGTH, f"number of tokens of the answer to {question!r}"
        )
        _require_rows(stored, encoded, reply, f"answer to {question!r}")


def check_conversations(backbone: Backbone) -> None:
    """A conversation that goes on, and another one after it, read what each of them says."""
    stored, words = _stored(backbone), _printable(_stored(backbone))
    first, other = picture(120, 150, seed=7), picture(120, 150, seed=8)
    how: dict[str, Any] = {"max_new_tokens": 6, "prefix_allowed_tokens_fn": lambda *_: words}
    history: list[dict[str, Any]] = []
    for image, known, what in (
        (first, 0, "first turn"),
        (first, 1, "second turn"),
        (first, 2, "third turn"),
        (other, 0, "first turn with another image"),
        (first, 1, "second turn after the same words, with the first image again"),
        (first, 0, "first turn with the first image again"),
    ):
        question, said = QUESTIONS[known % 2], history[: 2 * known]
        content: list[dict[str, Any]] = [{"type": "text", "text": question}]
        if not said:
            content.insert(0, {"type": "image"})
        turns: Turns = (*said, {"role": "user", "content": content})
        try:
            encoded = stored.encode(turns, [image])
        except NotPromised:
            if known:  # the model answers one question, and no more
                continue
            raise
        reply = backbone.reply(image, list(turns), **how)
        _require_rows(stored, encoded, reply, f"answer in the {what}")
        history = reply.messages
    backbone.forget()


def _stored(backbone: Backbone) -> Reference:
    if "chat" not in backbone.spec.capabilities:
        raise NotPromised("the capability 'chat' is not declared")
    return reference(backbone)


def _require_tokens(
    stored: Reference, encoded: Encoded, reply: Reply, what: str, **settings: Any
) -> None:
    """The reply's tokens are those of transformers' `generate`, up to a tie of two tokens."""
    found: list[int] = reply.token_ids.tolist()
    expected, scores = stored.generate(encoded, **settings)
    if found == expected:
        return
    show = stored.processor.tokenizer.decode
    for place, (one, best) in enumerate(zip(found, expected, strict=False)):
        if one != best:
            gap = float(scores[place][best] - scores[place][one])
            if gap < CLOSE * float(scores[place].abs().clamp_max(1e9).max()):
                return
            break
    require_equal(
        f"{show(found)!r}, tokens {found}", f"{show(expected)!r}, tokens {expected}", what
    )


def _require_rows(stored: Reference, encoded: Encoded, reply: Reply, what: str) -> None:
    """Attention and hidden states of the whole answer are those of one forward over everything."""
    ids: list[int] = reply.token_ids.tolist()
    require_equal(reply.first, len(encoded.ids), f"position of the {what}")
    run = stored.run(stored.longer(encoded, ids))
    offsets = _offsets(stored, ids)
    require_equal(list(reply.offsets), offsets, f"characters of each token of the {what}")
    rows = [reply.first + place for place in range(len(ids))]
    half = len(reply.text) // 2
    trace = reply.trace([(0, len(reply.text)), (0, half)])
    columns = torch.cat([view.token_index.flatten() for view in trace.views])
    begun = [reply.first + n for n, (a, _) in enumerate(offsets) if a < half]
    expected = [run.attention[:, :, each][..., columns].mean(2) for each in (rows, begun)]
    require_near(trace.attention, torch.stack(expected, 2), f"attention of the {what}")
    require_near(trace.hidden, run.hidden[:, [*rows, *begun]], f"hidden states of the {what}")


def _offsets(stored: Reference, ids: list[int]) -> list[tuple[int, int]]:
    """The characters of the answer's text that each of its printable tokens covers."""
    show = stored.processor.tokenizer.decode
    text: str = show(ids)
    leading, length = len(text) - len(text.lstrip()), len(text.strip())
    lengths = [len(show(ids[: n + 1])) - leading for n in range(len(ids))]
    ends = [min(length, max(0, end)) for end in lengths]
    return list(zip([0, *ends[:-1]], ends, strict=True))


def _printable(stored: Reference) -> list[int]:
    """Tokens of ordinary words, each of which shows some text on its own."""
    tokenizer = stored.processor.tokenizer
    text = " a red circle and two small blue stars" + "".join(s.text for s in CAPTION)
    ids = set(tokenizer(text, add_special_tokens=False)["input_ids"])
    shown = [token for token in sorted(ids) if stored.read([token]).isascii()]
    return [token for token in shown if stored.read([token]).isalnum()]


def _opposed(stored: Reference, first: Tensor, second: Tensor) -> tuple[int, int] | None:
    """Two tokens (i, j): i is likelier with the first logits (V,), j with the second."""
    tokenizer = stored.processor.tokenizer
    count = min(len(tokenizer), len(first))
    order = (first - second)[:count].argsort()
    some = (
        torch.cat([order[:200], order[-200:]]).unique().tolist() if count > 400 else order.tolist()
    )
    control = {*tokenizer.all_special_ids, *tokenizer.get_added_vocab().values()}
    texts = {token: stored.read([token]) for token in some if token not in control}
    kept = [token for token, text in texts.items() if text.isprintable() and text]
    kept = [token for token in kept if "\ufffd" not in texts[token]]
    a, b = first[kept], second[kept]
    margin = torch.minimum(a[:, None] - a, b - b[:, None])
    names = [texts[token] for token in kept]
    numbers = torch.tensor([names.index(name) for name in names])
    margin[numbers[:, None] == numbers] = -torch.inf
    best = int(margin.argmax())
    i, j = divmod(best, len(kept))
    large = float(margin[i, j]) > CLOSE * float(a.abs().max())
    return (kept[i], kept[j]) if large else None
