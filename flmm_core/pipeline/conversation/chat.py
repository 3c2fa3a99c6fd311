"""Chat: the VLM answers, its phrases are found, and each is grounded by the attention it had."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from flmm_core.pipeline.backbone.reply import Range, Reply
from flmm_core.pipeline.conversation.answer import Answer, Span
from flmm_core.pipeline.conversation.phrases.base import PhraseContext, PhraseFinder
from flmm_core.pipeline.conversation.phrases.choose import (
    Phrases,
    find_phrases,
    open_finder,
    without_marks,
)
from flmm_core.pipeline.result import Result, collect, joined
from flmm_core.pipeline.types import EncodedImage

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone
    from flmm_core.pipeline.grounder import Grounder

AT_ONCE = 4
"""How many phrases are grounded together."""


def answer(
    grounder: Grounder,
    image: object,
    messages: object,
    phrases: Phrases,
    keep_absent: bool,
    seed: int | None,
    generation: Mapping[str, Any],
) -> Answer:
    """See `Grounder.chat`."""
    messages, finder = without_marks(messages, _opened(grounder, phrases))
    reply = grounder.backbone.reply(image, messages, seed=seed, **generation)
    for found in pointed(grounder, reply, finder, keep_absent):
        last = found
    assert isinstance(last, Answer)
    return last


def stream(
    grounder: Grounder,
    image: object,
    messages: object,
    phrases: Phrases,
    keep_absent: bool,
    seed: int | None,
    generation: Mapping[str, Any],
) -> Iterator[str | Span | Answer]:
    """See `Grounder.stream`."""
    messages, finder = without_marks(messages, _opened(grounder, phrases))
    for piece in replying(grounder.backbone, image, messages, seed=seed, **generation):
        if isinstance(piece, str):
            yield piece
        else:
            yield from pointed(grounder, piece, finder, keep_absent)


def replying(
    backbone: Backbone, image: object, messages: object, **how: Any
) -> Iterator[str | Reply]:
    """`Backbone.reply` as it comes: pieces of the text, then the reply; args and errors as there.

    A consumer that stops early stops the model.
    """
    pieces: queue.SimpleQueue[str | Reply | BaseException] = queue.SimpleQueue()
    stopped = threading.Event()

    def tell(text: str) -> None:
        if stopped.is_set():
            raise _StoppedError
        pieces.put(text)

    def write() -> None:
        try:
            pieces.put(backbone.reply(image, messages, on_text=tell, **how))
        except BaseException as error:  # it belongs to the consumer
            pieces.put(error)

    writer = threading.Thread(target=write, name="flmm-stream", daemon=True)
    writer.start()
    try:
        while isinstance(piece := pieces.get(), str):
            yield piece
    finally:
        stopped.set()
        writer.join()
    if isinstance(piece, BaseException):
        raise piece
    yield piece


class _StoppedError(Exception):
    """The consumer of a stream wants no more."""


def _opened(grounder: Grounder, phrases: Phrases) -> PhraseFinder:
    finder = open_finder(phrases)
    finder.check(PhraseContext(backbone=grounder.backbone, head=grounder.head))
    return finder


@torch.no_grad()
def pointed(
    grounder: Grounder, reply: Reply, finder: PhraseFinder, keep_absent: bool
) -> Iterator[Span | Answer]:
    """Of a recorded reply each span as soon as it has its masks, then the answer."""
    images = [seen.image for seen in reply.images]
    hidden = reply.hidden() if finder.needs_hidden else None
    context = PhraseContext(
        images=images,
        backbone=grounder.backbone,
        head=grounder.head,
        offsets=reply.offsets if hidden is None else reply.offsets[: hidden.shape[1]],
        hidden=hidden,
    )
    ranges = find_phrases(reply.text, finder, context)
    encoded = [grounder.observer.encode(image) if ranges else None for image in images]
    parts: list[list[Result]] = [[] for _ in images]
    places: list[tuple[int, int, int]] = []  # image, part and number of each span
    for start in range(0, len(ranges), AT_ONCE):
        some = ranges[start : start + AT_ONCE]
        results = [
            _grounded(grounder, reply, some, number, encoded[number], keep_absent)
            for number in range(len(images))
        ]
        for part, result in zip(parts, results, strict=True):
            part.append(result)
        for number, span_range in enumerate(some):
            best = max(range(len(images)), key=lambda k: _sure(results[k], number))
            places.append((best, start, number))
            yield _span(span_range, best, results[best], number)
    whole = [
        joined(part) if part else collect(image, [], [])
        for part, image in zip(parts, images, strict=True)
    ]
    spans = tuple(
        _span(span_range, best, whole[best], start + number)
        for span_range, (best, start, number) in zip(ranges, places, strict=True)
    )
    yield Answer(
        reply.text, reply.token_ids, spans, tuple(whole), reply.messages, reply.prompt_tokens
    )


def _grounded(
    grounder: Grounder,
    reply: Reply,
    ranges: Sequence[Range],
    number: int,
    encoded: EncodedImage | None,
    keep_absent: bool,
) -> Result:
    """The masks of some phrases in one image."""
    observer = grounder.observer
    trace = reply.trace(ranges, number, observer.pool, observer.ends)
    features = observer.features([trace], [encoded], [""])
    texts = [reply.text[start:end] for start, end in ranges]
    groundings = grounder.head(features)
    result = collect(reply.images[number].image, texts, groundings, grounder.confidence)
    threshold = grounder.confidence.threshold if grounder.confidence else None
    return result if keep_absent or threshold is None else result.abstain(threshold)


def _sure(result: Result, number: int) -> float:
    likely = float(result.probabilities[number])
    return float(result.scores[number]) if likely != likely else likely  # nan


def _span(found: Range, image: int, result: Result, number: int) -> Span:
    start, end = found
    return Span(result, number, start, end, image)
