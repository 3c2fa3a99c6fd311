"""Aligns the utterances of a narrative with its caption, which holds the spaces between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from flmm_core.data.sample import Segment, caption_text


def align(pieces: Sequence[Segment], caption: str) -> list[Segment] | None:
    """The pieces with what stands between them in the caption: spaces and punctuation.

    Utterances are spelled with the spaces around them or without. What a whole caption needs
    besides, or spells with other spaces, is added as pieces that are read in that mode only.

    Returns:
        None if the words of the pieces are not those of the caption.
    """
    if caption_text(pieces) == caption:
        return list(pieces)
    aligned: list[Segment] = []
    done = 0
    for piece in pieces:
        words = r"\s*".join(re.escape(letter) for letter in piece.text if not letter.isspace())
        if not words:
            aligned.append(replace(piece, only="pieces"))
            continue
        found = re.compile(rf"([\W_]*?)({words})").match(caption, done)
        if found is None:
            return None
        gap, spelled = found.groups()
        aligned += [Segment(gap, only="whole")] if gap else []
        if spelled == piece.text:
            aligned.append(piece)
        else:
            aligned.append(replace(piece, only="pieces"))
            aligned.append(replace(piece, text=spelled, only="whole"))
        done = found.end()
    rest = caption[done:].rstrip()
    if re.search(r"\w", rest):
        return None
    return [*aligned, Segment(rest, only="whole")] if rest else aligned
