"""What the page can do, without the web: take images, ground phrases, answer, explain."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image

from flmm_core.data import rle
from flmm_core.errors import DataError, UsageError
from flmm_core.explain.explanation import Explanation
from flmm_core.explain.make import explain, explain_reply
from flmm_core.explain.words import split_words
from flmm_core.pipeline.conversation.answer import Answer
from flmm_core.pipeline.conversation.chat import pointed, replying
from flmm_core.pipeline.conversation.phrases.choose import open_finder
from flmm_core.pipeline.mask_logits import above, portions
from flmm_core.pipeline.result import Result
from flmm_core.serving.page.held import (
    HELD_IMAGES,
    HELD_RESULTS,
    SHOWN,
    HeldImage,
    ImageShelf,
    Shelf,
)
from flmm_core.serving.page.models import Loaded, Models

Event = tuple[str, dict[str, Any]]
MOST_LOOKS = 8
STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of files in a ZIP, so that the same masks are the same file."""


@dataclass(eq=False)
class Found:
    """A result that the page may ask about again.

    Attributes:
        image: What it is about.
        model: The choice that it came from.
        result: The masks; None without a head.
        text: The answer; empty if phrases were looked for.
        question: What it answers.
        spans: The characters of the text that name each part of the result.
        explanations: By text, as they were asked for.
    """

    image: Image.Image
    model: str
    result: Result | None = None
    text: str = ""
    question: str | None = None
    spans: Sequence[tuple[int, int]] = ()
    explanations: dict[str, Explanation] = field(default_factory=dict)


@dataclass
class Studio:
    """The page's models, images and results."""

    models: Models
    images: ImageShelf = field(default_factory=lambda: ImageShelf(HELD_IMAGES))
    results: Shelf[Found] = field(default_factory=lambda: Shelf(HELD_RESULTS))

    def choose(self, name: str) -> dict[str, Any]:
        """Load a model; what the page needs to know of it."""
        return _facts(self.models.load(name))

    def take(self, image: Image.Image) -> dict[str, Any]:
        """Keep an image (RGB, upright) in memory; its name in requests, and its size."""
        name = self.images.put(HeldImage.of(image))
        return {"id": name, "width": image.width, "height": image.height}

    def image(self, name: str) -> HeldImage:
        """An image that was taken; DataError if it was forgotten."""
        if (held := self.images.get(name)) is None:
            raise DataError(
                "The image is no longer in memory.",
                found="Others came since, or the server was started anew.",
                repair="Choose it again.",
            )
        return held

    def ground(self, model: str, image: str, phrases: Sequence[str]) -> dict[str, Any]:
        """Masks of phrases, for the page.

        Raises:
            UsageError: A phrase is empty, or the model has no head.
        """
        held = self.image(image)
        result = self.models.load(model).ground(held.image, phrases)
        return self._keep(Found(held.image, model, result))

    def answer(self, model: str, image: str, turns: Sequence[tuple[str, str]]) -> Iterator[Event]:
        """What the model says, in pieces, then all of it with masks of what it names.

        Args:
            turns: (role, text) of the conversation, the last one a question.

        Yields:
            ("text", {"text": piece}) and at the end ("answer", ...).

        Raises:
            UsageError: The model does not talk.
        """
        held, loaded = self.image(image), self.models.load(model)
        if not loaded.chats:
            raise UsageError("This model does not talk.", repair="Name phrases instead.")
        found = Found(held.image, model, question=turns[-1][1])
        messages = [{"role": role, "content": text} for role, text in turns]
        for piece in replying(loaded.backbone, found.image, messages):
            if isinstance(piece, str):
                yield "text", {"text": piece}
            else:
                reply = piece
        found.text = reply.text
        if loaded.grounder is not None:
            *_, answer = pointed(loaded.grounder, reply, open_finder("rules"), keep_absent=True)
            assert isinstance(answer, Answer)
            found.result = answer.result
            found.spans = [(span.start, span.end) for span in answer]
        yield "answer", self._keep(found)
        if any(word.names for word in split_words(found.text)):
            # At once, as a reply holds the KV cache of its conversation.
            found.explanations[found.text] = explain_reply(loaded.source, reply)

    def _keep(self, found: Found) -> dict[str, Any]:
        return {
            "id": self.results.put(found),
            "found": [] if found.result is None else _parts(found.result),
            "text": found.text,
            "spans": [
                {"start": start, "end": end, "part": part}
                for part, (start, end) in enumerate(found.spans)
            ],
            "words": [
                {"start": word.start, "end": word.end, "word": number}
                for number, word in enumerate(split_words(found.text))
                if word.names
            ],
        }

    def looks_at(self, name: str, x: float, y: float, by: str) -> dict[str, Any]:
        """The words of an answer that look at a place, those that do most first.

        Args:
            x: In fractions of the image's width; so for `y` and its height.
            by: A way of looking, see `Explanation`.
        """
        found = self._found(name)
        place = x * found.image.width, y * found.image.height
        explained = self._explained(found, found.text)
        looks = explained.words_at(place, by)[:MOST_LOOKS]
        return {
            "looks": [
                {"word": look.word, "text": look.text, "share": look.share, "lift": look.lift}
                for look in looks
            ]
        }

    def word_attention(self, name: str, number: int, by: str) -> dict[str, Any]:
        """Where a word of an answer looks."""
        found = self._found(name)
        return _heat(self._explained(found, found.text), [number], by)

    def part_attention(self, name: str, number: int, by: str) -> dict[str, Any]:
        """Where a phrase looks: the mean of its words."""
        found = self._found(name)
        if not found.spans:
            phrase = self._result(name).phrases[number]
            explained = self._explained(found, phrase)
            return _heat(explained, range(len(explained.words)), by)
        start, end = found.spans[number]
        explained = self._explained(found, found.text)
        words = [n for n, word in enumerate(explained.words) if word.start < end > start < word.end]
        return _heat(explained, words, by)

    def _explained(self, found: Found, text: str) -> Explanation:
        if text not in found.explanations:
            source = self.models.load(found.model).source
            found.explanations[text] = explain(
                source, found.image, text=text, prompt=found.question
            )
        return found.explanations[text]

    def _found(self, name: str) -> Found:
        if (found := self.results.get(name)) is None:
            raise DataError(
                "The result is no longer in memory.",
                found="Others came since, or the server was started anew.",
                repair="Ask again.",
            )
        return found

    def _result(self, name: str, threshold: float = 0) -> Result:
        result = self._found(name).result
        if result is None:
            raise UsageError("Without a trained head there are no masks.")
        return result if result.probabilities.isnan().any() else result.abstain(threshold)

    def overlay(self, name: str, threshold: float, opacity: float) -> bytes:
        """PNG of the image with all masks and their legend."""
        return _png(self._result(name, threshold).overlay(opacity=opacity))

    def masks(self, name: str, threshold: float) -> bytes:
        """ZIP of one PNG (0 and 255) a phrase, mask-1.png, ..., with the phrases in names.txt."""
        result = self._result(name, threshold)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            names = []
            for number, phrase in enumerate(result.phrases, start=1):
                mask = Image.fromarray(result.mask(number - 1).numpy() * np.uint8(255))
                archive.writestr(zipfile.ZipInfo(f"mask-{number}.png", STAMP), _png(mask))
                names.append(f"mask-{number}.png\t{' '.join(phrase.split())}\n")
            archive.writestr(zipfile.ZipInfo("names.txt", STAMP), "".join(names))
        return file.getvalue()

    def coco(self, name: str, threshold: float) -> bytes:
        """JSON of `Result.to_coco`."""
        return json.dumps(self._result(name, threshold).to_coco(), ensure_ascii=False).encode()


def _facts(loaded: Loaded) -> dict[str, Any]:
    headless = ""
    if loaded.grounder is None:
        headless = (
            "Without a trained head there are no masks. Train one: flmm train --backbone "
            f"{loaded.backbone.spec.name}"
        )
    return {
        "id": loaded.choice.id,
        "head": loaded.grounder is not None,
        "chat": loaded.chats,
        "prompt": loaded.backbone.prompt,
        "threshold": loaded.threshold,
        "headless": headless,
        "note": headless,
    }


def _parts(result: Result) -> list[dict[str, Any]]:
    """The records of `to_coco`, each with its coarse mask as large as the browser shows it."""
    records = result.to_coco()
    scale = min(1.0, SHOWN / max(result.image.size))
    size = max(1, round(scale * result.image.height)), max(1, round(scale * result.image.width))
    for part in portions(len(result), size):
        for record, mask in zip(
            records[part], above(result.coarse_logits[part], size, 0), strict=True
        ):
            code = rle.encode(mask.numpy())
            record["coarse"] = {"size": code["size"], "counts": code["counts"].decode("ascii")}
    return records


def _heat(explained: Explanation, words: Sequence[int], by: str) -> dict[str, Any]:
    """A map (h, w) in steps of 1/255, row by row; shares of attention up to the greatest."""
    values = explained.map(list(words), by, sinks=False)
    if not explained.maps(by).probabilities:
        values = values / max(float(values.max()), 1e-12)
    steps = (values * 255).round().clip(0, 255).astype(np.uint8)
    height, width = steps.shape
    return {
        "height": height,
        "width": width,
        "values": base64.b64encode(steps.tobytes()).decode("ascii"),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
