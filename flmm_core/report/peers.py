"""Published figures of other systems, beside ours where the data are the same.

Figures of different protocols cannot be compared, so each row names its protocol and notes if it
is not that of our rows.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any

OURS = {"ciou": "ciou", "average_recall": "miou"}
"""Published score -> the score of ours that equals it."""
TITLES = {"ciou": "cIoU", "average_recall": "average recall"}
Column = tuple[str, str]
"""Source label and published score."""


@dataclass(frozen=True)
class Peer:
    """One system, published or ours.

    Attributes:
        system: Its name.
        paper: Where the figures were published.
        protocol: The protocol of the figures.
        vlm_frozen: Whether the VLM kept its weights.
        figures: Fractions of 1; None if not published.
        note: Why it cannot be compared with ours, or empty.
        ours: Whether it was measured here.
    """

    system: str
    paper: str
    protocol: str
    vlm_frozen: bool
    figures: Mapping[Column, float | None]
    note: str = ""
    ours: bool = False


@cache
def _file() -> dict[str, Any]:
    text = resources.files("flmm_core.report").joinpath("peers.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def load_peers() -> list[Peer]:
    """The published figures in `peers.json`."""
    peers = []
    for record in _file()["systems"]:
        figures = {
            (source, score): value / 100
            for score in OURS
            for source, value in record.get(score, {}).items()
        }
        facts = {key: value for key, value in record.items() if key not in OURS}
        peers.append(Peer(**facts, figures=figures))
    return peers


def beside_ours(ours: Sequence[Peer], phrases: Mapping[tuple[str, str], int]) -> list[Peer]:
    """Published figures on the sources of a benchmark, ours first; empty if there are none.

    A folder in RefCOCO's format need not hold RefCOCO: a row of ours notes if it has another
    number of phrases than the data set. All rows have figures for the same columns, in one order.

    Args:
        ours: With a figure for each of `OURS` and each source.
        phrases: How many were measured, by system and source label.
    """
    here = {column for one in ours for column in one.figures}
    peers = load_peers()
    published = dict.fromkeys(column for peer in peers for column in peer.figures)
    columns = [column for column in published if column in here]
    shown = [one for one in (*ours, *peers) if any(column in one.figures for column in columns)]
    protocols = sorted({one.protocol for one in shown if one.ours})
    rows = []
    for one in shown:
        note = ""
        if one.ours:
            notes = []
            for source in dict.fromkeys(source for source, _ in columns):
                whole = _file()["phrases"].get(source, {}).get(one.protocol)
                count = phrases.get((one.system, source), whole)
                if whole is not None and count != whole:
                    notes.append(f"{source} has {count} phrases here, not the data set's {whole}")
            note = "; ".join(notes) + (": a part of it, or other data" if notes else "")
        elif protocols != [one.protocol]:
            other = " and ".join(name for name in protocols if name != one.protocol)
            note = f"measured under {one.protocol}: not comparable with our rows under {other}"
        figures = {column: one.figures.get(column) for column in columns}
        rows.append(replace(one, figures=figures, note=note))
    return rows
