"""What `explain` gives: the map of each word, and the words that look at a place."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.errors import UsageError, did_you_mean, shortened
from flmm_core.explain import drawing, files
from flmm_core.explain.maps import Floats, Maps, peak_of, scaled
from flmm_core.explain.regions import cell_weights
from flmm_core.explain.ways import chosen_channels, no_way, way_text
from flmm_core.explain.words import Word
from flmm_core.pipeline.conversation.phrases.lookup import occurrences
from flmm_core.pipeline.types import VlmShape

Named = int | str | Sequence[int]
"""How a word, or several, are named; see `Explanation`."""


@dataclass(frozen=True)
class Look:
    """How much a word looks at a region.

    Attributes:
        word: Its index.
        text: The word.
        share: How much of its softened map (`Maps.softened`) falls on the region, 0 to 1.
        lift: How many times as much that is as the mean of all words and of the prompt.
    """

    word: int
    text: str
    share: float
    lift: float


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """Where the words of a text look in an image, with all that is needed to ask more.

    A word is named by its index, or by its text ("ring", "a red ring"; the first occurrence, and
    the mean of its words). A way of looking is one of `WAYS`, or a layer, an attention head in it,
    a view, or several of these.

    Attributes:
        image: RGB, upright.
        text: What was read, or the model's answer.
        words: Its words and marks (or tokens), in order.
        prompt: The user's text before it.
        asked: Whether the model wrote the text.
        ways: By name, the maps of that way; "learned" only with a trained head.
        heads: (view, layer, attention head) of the way "heads", best first.
        vlm: The shape of the VLM.
        channels: (W + R, K, h, w) float16, single channels of the words and of R prompt's tokens.
        kept: The numbers of these K channels.
        facts: Backbone and model, for files.
        marked: The words of each phrase that was marked as `[[red ring]]`; the text is without
            the marks.
    """

    image: Image.Image
    text: str
    words: tuple[Word, ...]
    prompt: str
    asked: bool
    ways: Mapping[str, Maps]
    heads: tuple[tuple[str, int, int], ...]
    vlm: VlmShape
    channels: NDArray[np.float16]
    kept: tuple[int, ...]
    facts: Mapping[str, str]
    marked: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        shown = shortened(self.text, 60)
        return f"Explanation({shown!r}, {len(self.words)} words, {', '.join(self.ways)})"

    @property
    def tokens(self) -> tuple[str, ...]:
        """The tokens of all words, as the tokenizer writes them."""
        return tuple(token for word in self.words for token in word.tokens)

    def maps(
        self,
        by: str = "heads",
        *,
        layer: int | None = None,
        attention_head: int | None = None,
        view: str | None = None,
    ) -> Maps:
        """The maps of all words in one way.

        Args:
            by: One of `WAYS`; unused with any of the others.
            layer: From 0; a negative one counts from the last.
            attention_head: Of that layer; the mean of its heads by default.
            view: Of a backbone with several; the mean of all by default.

        Raises:
            UsageError: There is no such way, layer, head or view, or its maps were not kept.
        """
        if layer is None and attention_head is None and view is None:
            if by not in self.ways:
                raise no_way(by, self.ways)
            return self.ways[by]
        return self.of_channels(chosen_channels(self.vlm, layer, attention_head, view))

    def of_channels(self, wanted: Sequence[int]) -> Maps:
        """The mean of some channels: view-major, then layer, then head.

        Raises:
            UsageError: The maps of one were not kept.
        """
        places = {channel: place for place, channel in enumerate(self.kept)}
        if missing := [channel for channel in wanted if channel not in places]:
            number = missing[0] // self.vlm.heads % self.vlm.layers
            raise UsageError(
                f"The maps of layer {number} were not kept.",
                found=f"Of {len(self.words)} words in {self.vlm.attention_channels} channels, only "
                f"{len(self.kept)} were.",
                repair="Name the layers when you explain: explain(..., layers=[...]).",
            )
        some = self.channels[:, [places[channel] for channel in wanted]]
        rows = scaled(some.astype(np.float32).mean(1))
        return Maps(rows[: len(self.words)], rows[len(self.words) :])

    def find(self, word: Named) -> tuple[int, ...]:
        """The indices of the words that an index, a text or several indices name.

        Raises:
            UsageError: The text is not among the words, or the index is out of range.
        """
        if isinstance(word, str):
            for place in occurrences(self.text, [word])[:1]:
                return self.within(place)
            known = dict.fromkeys(one.text for one in self.words)
            near = did_you_mean(word, known)
            raise UsageError(
                f"The word '{shortened(word)}' is not in the text. {near}".rstrip(),
                found=f"Its words are: {shortened(', '.join(known), 500)}.",
                repair="Give one of them, or several that follow each other.",
            )
        if not isinstance(word, int):
            return tuple(place for one in word for place in self.find(one))
        if not -len(self.words) <= word < len(self.words):
            raise UsageError(
                f"There is no word {word}.",
                found=f"The text has {len(self.words)} words.",
                repair=f"Give a number from 0 to {len(self.words) - 1}, or the word itself.",
            )
        return (word % len(self.words),)

    def within(self, place: tuple[int, int]) -> tuple[int, ...]:
        """The indices of the words that a range (start, end) of characters covers some of."""
        start, end = place
        return tuple(
            number
            for number, word in enumerate(self.words)
            if word.start < end and start < word.end
        )

    def chosen(self, words: Sequence[Named] = ()) -> list[tuple[int, ...]]:
        """The indices of each of some words; of none, those that are marked, or else all words.

        Raises:
            UsageError: As `find`.
        """
        if words:
            return [self.find(word) for word in words]
        every = ((number,) for number, word in enumerate(self.words) if word.names)
        return list(self.marked or every)

    def map(
        self,
        word: Named,
        by: str = "heads",
        *,
        sinks: bool = True,
        **where: Any,
    ) -> Floats:
        """(h, w) where a word looks: the cells of a grid that covers exactly the image.

        Args:
            word: See the class.
            by: See `maps`, which takes `where`, too.
            sinks: False leaves out attention sinks, see `Maps.sinks`.

        Returns:
            Shares of the word's attention to the image, which add up to 1; with "learned" the
            probability that a cell belongs to what is named.
        """
        maps = self._maps(by, sinks=sinks, **where)
        return np.asarray(maps.words[list(self.find(word))].mean(0), np.float32)

    def _maps(self, by: str, *, sinks: bool = True, **where: Any) -> Maps:
        maps = self.maps(by, **where)
        return maps if sinks else maps.without_sinks()

    def peak(self, word: Named, by: str = "heads", **how: Any) -> tuple[float, float]:
        """(x, y) in pixels, the point that a word looks at most; args as of `map`.

        It is the highest point of the softened map, between the centers of cells: see `peak_of`.
        """
        maps = self._maps(by, **how).softened()
        y, x = peak_of(maps.words[list(self.find(word))].mean(0))
        return x * self.image.width, y * self.image.height

    def words_at(
        self, region: object, by: str = "heads", *, marks: bool = False, **where: Any
    ) -> list[Look]:
        """The words that look at a region, those first that look there most.

        A word's share is of its own attention, softened and without sinks, so that words that
        look everywhere or at sinks are not first. What lies within a cell of the region counts,
        too.

        Args:
            region: A point (x, y), a box (x0, y0, x1, y1) in pixels, or a mask (H, W) of the
                image's size.
            by: See `maps`, which takes `where`, too.
            marks: Rank punctuation, too.

        Raises:
            UsageError: The region is empty, outside of the image, or of another size.
        """
        maps = self.maps(by, **where).without_sinks().softened()
        weights = cell_weights(region, (self.image.height, self.image.width), maps.grid)
        shares, mean = maps.shares(weights)
        looks = [
            Look(number, word.text, float(share), float(share) / max(mean, 1e-12))
            for number, (word, share) in enumerate(zip(self.words, shares, strict=True))
            if marks or word.names
        ]
        return sorted(looks, key=lambda look: -look.share)

    def overlay(
        self, word: Named, by: str = "heads", *, title: bool = True, **how: Any
    ) -> Image.Image:
        """The image with a word's map over it, and below it what it shows; args as of `map`."""
        values = self.map(word, by, **how)
        where = {key: value for key, value in how.items() if key != "sinks"}
        probabilities = self.maps(by, **where).probabilities
        picture = drawing.overlay(self.image, values, 1.0 if probabilities else None)
        if not title:
            return picture
        words = [self.words[number] for number in self.find(word)]
        said = self.text[words[0].start : words[-1].end]
        ends = (
            ("0", "1") if probabilities else ("0", f"{100 * values.max():.2g} % of its attention")
        )
        return drawing.titled(picture, said, way_text(by, self.heads, **how), ends)

    def to_records(self) -> list[dict[str, Any]]:
        """Per word: `word`, `start`, `end`, `tokens`, `peak_x`, `peak_y` (pixels, of "heads")."""
        return [
            {
                "word": word.text,
                "start": word.start,
                "end": word.end,
                "tokens": list(word.tokens),
                **dict(zip(("peak_x", "peak_y"), self.peak(number), strict=True)),
            }
            for number, word in enumerate(self.words)
        ]

    def save(
        self,
        folder: str | os.PathLike[str],
        words: Sequence[Named] = (),
        by: str = "heads",
        **how: Any,
    ) -> list[Path]:
        """Write explanation.npz, explanation.json, explanation.html and one overlay per word.

        Args:
            words: Those that get an overlay; see `chosen`.

        Returns:
            The files.
        """
        return files.save(self, Path(folder), words, by, **how)

    def _repr_html_(self) -> str:
        return files.frame(self)

    def save_html(self, path: str | os.PathLike[str]) -> Path:
        """Write one HTML page that needs no other file and no network."""
        return files.save_html(self, Path(path))
