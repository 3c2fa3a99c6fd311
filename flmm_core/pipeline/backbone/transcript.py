"""Tokens to text while they come, and which characters of the text each of them covers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from flmm_core.pipeline.backbone.conversation import common_length

INCOMPLETE = "\ufffd"
"""What a tokenizer shows for the first bytes of a character that later tokens complete."""


class Transcript:
    """What tokens say so far; control tokens say nothing."""

    def __init__(self, tokenizer: Any, skip: int = 0) -> None:
        """Begin; the first `skip` characters do not count."""
        self._tokenizer = tokenizer
        self._skip = skip
        self._ids: list[int] = []
        self._shown: list[str] = []

    def add(self, token: int) -> str:
        """One more token; returns the whole text so far, as far as it is certain."""
        self._ids.append(token)
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        self._shown.append(text[self._skip :].rstrip(INCOMPLETE))
        return self._shown[-1]

    @property
    def text(self) -> str:
        """All that was said."""
        text: str = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        return text[self._skip :]

    def offsets(self) -> list[tuple[int, int]]:
        """(start, end) of the characters of `text` that each token covers.

        All tokens of a character cover it; where a token says nothing, start = end.
        """
        text = self.text
        ends = [common_length(shown, text) for shown in self._shown]
        for place in reversed(range(len(ends) - 1)):  # a tokenizer may take characters back
            ends[place] = min(ends[place], ends[place + 1])
        ends[-1:] = [len(text)] if ends else []
        starts = [0, *ends[:-1]]
        said = [self._says(place) for place in range(len(ends))]
        following = len(text)
        found: list[tuple[int, int]] = []
        for start, end, says in zip(starts[::-1], ends[::-1], said[::-1], strict=True):
            following = end if end > start else following
            found.append((start, following if says else start))
        return found[::-1]

    def _says(self, place: int) -> bool:
        return bool(self._tokenizer.decode([self._ids[place]], skip_special_tokens=True))


class Teller:
    """Makes text of tokens while they come; for `generate` a streamer."""

    def __init__(
        self,
        tokenizer: Any,
        begun: Sequence[int],
        skip: int,
        on_text: Callable[[str], None] | None,
    ) -> None:
        """Begin after the tokens that the answer was given; see `Transcript` for `skip`."""
        self._transcript = Transcript(tokenizer, skip)
        self._on_text = on_text
        self._prompt_seen = False
        self._count = 0
        shown = ""
        for token in begun:
            shown = self._transcript.add(token)
        self._told = len(shown.strip())

    @property
    def streams(self) -> bool:
        """Whether anyone listens."""
        return self._on_text is not None

    @property
    def raw(self) -> str:
        """All that was said, with the spaces around it."""
        return self._transcript.text

    @property
    def text(self) -> str:
        return self.raw.strip()

    @property
    def last_says(self) -> bool:
        """Whether the last token shows any character."""
        last = self._transcript.offsets()[-1:]
        return any(start < end for start, end in last)

    def put(self, value: Tensor) -> None:
        """`generate` gives the prompt, then every token."""
        if not self._prompt_seen:
            self._prompt_seen = True
            return
        for token in value.flatten().tolist():
            self._count += 1
            self._tell(self._transcript.add(token).strip())

    def end(self, new: Tensor | None = None) -> None:
        """All (T,) tokens are there; `generate` itself says so without them."""
        if new is None:
            return
        for token in new[self._count :].tolist():
            self._transcript.add(token)
        self._tell(self.text)

    def _tell(self, text: str) -> None:
        if self._on_text is not None and len(text) > self._told:
            self._on_text(text[self._told :])
            self._told = len(text)

    def offsets(self) -> list[tuple[int, int]]:
        """The characters of `text` that each token covers."""
        leading = len(self.raw) - len(self.raw.lstrip())
        length = len(self.text)
        return [
            (min(length, max(0, start - leading)), min(length, max(0, end - leading)))
            for start, end in self._transcript.offsets()
        ]
