"""Published figures of other systems, beside ours where the data are the same.

Numbers of different protocols cannot be compared, so each row names its own, and a row whose
protocol is not that of our rows says so.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

OURS = {"ciou": "ciou", "average_recall": "miou"}
"""A published score -> ours that equals it."""
TITLES = {"ciou": "cIoU", "average_recall": "average recall"}


@dataclass(frozen=True)
class Peer:
    """One published system.

    Attributes:
        system: Its name.
        paper: Where the figures were published.
        protocol: What they were measured under.
        vlm_frozen: Whether the VLM kept its weights.
        figures: Fractions of 1 by (source label, published score).
    """

    system: str
    paper: str
    protocol: str
    vlm_frozen: bool
    figures: dict[tuple[str, str], float]


@dataclass(frozen=True)
class Measured:
    """One of our systems.

    Attributes:
        system: Its label.
        protocol: What it was measured under.
        figures: As in `Peer`.
        phrases: By source label, how many were measured.
    """

    system: str
    protocol: str
    figures: dict[tuple[str, str], float | None]
    phrases: dict[str, int]


@dataclass(frozen=True)
class PublishedRow:
    """A row of the table of published figures.

    Attributes:
        system: Its name.
        paper: Where it was published; "this benchmark" for ours.
        protocol: What it was measured under.
        vlm_frozen: Whether the VLM kept its weights.
        figures: Fractions of 1, one for each of the table's columns, None if not published.
        note: What keeps it from being compared with ours, or empty.
        ours: Whether it was measured here.
    """

    system: str
    paper: str
    protocol: str
    vlm_frozen: bool
    figures: tuple[float | None, ...]
    note: str = ""
    ours: bool = False


@dataclass(frozen=True)
class Published:
    """Our rows and the published ones on the data of a benchmark.

    Attributes:
        columns: (source label, published score) of each column.
        rows: Ours first.
    """

    columns: tuple[tuple[str, str], ...]
    rows: tuple[PublishedRow, ...]


@cache
def load_peers() -> tuple[Peer, ...]:
    """All published figures that ship with the package (`peers.json`)."""
    return tuple(_peer(record) for record in _file()["systems"])


def _sizes() -> dict[str, dict[str, int]]:
    """Phrases of a whole data set by source label and protocol."""
    sizes: dict[str, dict[str, int]] = _file()["phrases"]
    return sizes


@cache
def _file() -> dict[str, Any]:
    text = resources.files("flmm_core.report").joinpath("peers.json").read_text(encoding="utf-8")
    content: dict[str, Any] = json.loads(text)
    return content


def _peer(record: dict[str, Any]) -> Peer:
    figures = {
        (source, score): value / 100
        for score in OURS
        for source, value in record.get(score, {}).items()
    }
    return Peer(
        record["system"], record["paper"], record["protocol"], record["vlm_frozen"], figures
    )


def beside_ours(ours: Sequence[Measured]) -> Published | None:
    """Published figures on the sources that a benchmark has, or None if there are none.

    A folder in RefCOCO's format need not hold RefCOCO: a row of ours that has another number of
    phrases than the data set says so.
    """
    here = {column for row in ours for column in row.figures}
    known = dict.fromkeys(column for peer in load_peers() for column in peer.figures)
    columns = tuple(column for column in known if column in here)
    if not columns:
        return None
    rows = [
        PublishedRow(
            mine.system,
            "this benchmark",
            mine.protocol,
            True,
            _pick(mine.figures, columns),
            note=_other_data(mine, columns),
            ours=True,
        )
        for mine in ours
        if any(column in mine.figures for column in columns)
    ]
    protocols = sorted({row.protocol for row in rows})
    rows += [
        PublishedRow(
            peer.system,
            peer.paper,
            peer.protocol,
            peer.vlm_frozen,
            _pick(peer.figures, columns),
            note=_note(peer.protocol, protocols),
        )
        for peer in load_peers()
        if any(column in peer.figures for column in columns)
    ]
    return Published(columns, tuple(rows))


def _other_data(row: Measured, columns: Sequence[tuple[str, str]]) -> str:
    notes = []
    for source in dict.fromkeys(source for source, _ in columns):
        whole = _sizes().get(source, {}).get(row.protocol)
        here = row.phrases.get(source)
        if here is not None and whole is not None and here != whole:
            notes.append(f"{source} has {here} phrases here, not the data set's {whole}")
    return "; ".join(notes) + (": a part of it, or other data" if notes else "")


def _pick(
    figures: dict[tuple[str, str], Any], columns: Sequence[tuple[str, str]]
) -> tuple[float | None, ...]:
    return tuple(figures.get(column) for column in columns)


def _note(protocol: str, ours: Sequence[str]) -> str:
    if list(ours) == [protocol]:
        return ""
    other = " and ".join(name for name in ours if name != protocol)
    return f"measured under {protocol}: not comparable with our rows under {other}"
