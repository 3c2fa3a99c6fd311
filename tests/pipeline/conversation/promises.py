"""What ranges of phrases promise."""

from __future__ import annotations

from collections.abc import Sequence

from flmm_core.pipeline.conversation.phrases.base import Range


def check_promises(text: str, ranges: Sequence[Range]) -> None:
    """In order, apart, within the text, not empty, no spaces at the edges."""
    end = 0
    for start, stop in ranges:
        assert end <= start < stop <= len(text)
        assert text[start:stop] == text[start:stop].strip()
        end = stop
