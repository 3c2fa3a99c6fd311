"""The tables of each kind of case."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bench import arithmetic
from bench.cases import BARE, ORIGINAL, OURS, CaseSpec
from bench.refining import ALONE, ORIGINAL_BEHIND, OURS_BEHIND
from bench.report import mib, seconds, table
from bench.sentences import APART, ONE, SEVERAL, VLM_ONE, VLM_SEVERAL
from bench.side_by_side import Measured


@dataclass(frozen=True)
class Row:
    """A case with what was measured."""

    spec: CaseSpec
    found: dict[str, Measured]
    ceilings: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """For the JSON file."""
        ways = {way: measured.to_dict() for way, measured in self.found.items()}
        return {"case": self.spec.to_dict(), "ways": ways, "ceilings": self.ceilings}

    def time(self, way: str) -> str:
        measured = self.found.get(way)
        if measured is None:
            return ""
        return "out of memory" if measured.failed else seconds(measured.median)

    def ratio(self, upper: str, lower: str) -> str:
        """How many times as long one takes as another."""
        both = [self.found.get(way) for way in (upper, lower)]
        if any(one is None or one.failed for one in both):
            return ""
        return f"{self.found[upper].median / self.found[lower].median:.2f}"

    @property
    def name(self) -> str:
        return f"{self.spec.model} {self.spec.dtype}"


def recording(rows: Sequence[Row]) -> str:
    """Time, memory and arithmetic of recording."""
    times = [
        [
            row.name,
            str(row.found[OURS].said["tokens"]),
            row.time(BARE),
            row.time(OURS),
            row.time(ORIGINAL),
            row.ratio(OURS, BARE),
            row.ratio(ORIGINAL, OURS),
            f"{row.spec.phrases / row.found[OURS].median:.2f}",
        ]
        for row in rows
    ]
    first = ["model", "S", "bare, s", "ours, s", "original-way, s", "ours / bare", "times as fast"]
    first.append("ours, phrases/s")
    memory, must = [], []
    for row in rows:
        said = row.found[OURS].said
        least = arithmetic.recording(said, row.spec.dtype)
        bare = row.found[BARE].peak_bytes
        ours = row.found[OURS].peak_bytes - bare
        theirs = row.found[ORIGINAL]
        extra = theirs.peak_bytes - bare
        memory.append(
            [
                row.name,
                str(said["tokens"]),
                mib(bare),
                mib(said["returned_bytes"]),
                mib(ours),
                f"{ours / said['returned_bytes']:.2f}",
                "out of memory" if theirs.failed else mib(extra),
                mib(least.eager_bytes),
                "" if theirs.failed or ours <= 0 else f"{extra / ours:.0f}",
            ]
        )
        pace = least.forward_flops / row.found[BARE].median
        must.append(
            [
                row.name,
                str(said["tokens"]),
                f"{least.forward_flops / 1e9:,.0f}",
                f"{least.row_flops / 1e9:,.2f}",
                mib(least.forward_bytes),
                mib(least.row_bytes),
                f"{pace / 1e9:,.0f}",
                f"{row.ceilings['matmul_flops'] / 1e9:,.0f}",
                f"{100 * pace / row.ceilings['matmul_flops']:.0f} %",
                f"{1e3 * least.row_bytes / row.ceilings['copy_bytes']:.1f}",
                f"{1e3 * (row.found[OURS].median - row.found[BARE].median):.1f}",
            ]
        )
    second = [
        "model",
        "S",
        "bare",
        "returned",
        "ours",
        "ours / returned",
        "original-way",
        "it must keep",
        "times as much",
    ]
    third = [
        "model",
        "S",
        "forward, GFLOP",
        "rows, GFLOP",
        "weights, MiB",
        "keys and result, MiB",
        "bare, GFLOP/s",
        "matmul, GFLOP/s",
        "share",
        "rows at copy speed, ms",
        "ours - bare, ms",
    ]
    return "\n\n".join(
        [
            table(first, times),
            "Peak memory in MiB: of `bare` above the loaded model, then above `bare`.",
            table(second, memory),
            "What must be, against what was measured.",
            table(third, must),
        ]
    )


def training(rows: Sequence[Row]) -> str:
    """Time and memory of a step."""
    lines = [
        [
            row.name,
            str(row.found[OURS].said["tokens"]),
            f"{row.spec.pictures} × {row.spec.phrases}",
            row.time(OURS),
            row.time(ORIGINAL),
            row.ratio(ORIGINAL, OURS),
            mib(row.found[OURS].peak_bytes),
            mib(row.found[ORIGINAL].peak_bytes),
        ]
        for row in rows
    ]
    names = ["model", "S", "images × phrases", "ours, s", "original-way, s", "times as fast"]
    return table([*names, "ours, MiB", "original-way, MiB"], lines)


def sentences(rows: Sequence[Row]) -> str:
    """Time of several sentences about an image."""
    lines = [
        [
            row.name,
            str(row.found[SEVERAL].said["tokens"]),
            str(row.spec.phrases),
            row.time(ONE),
            row.time(SEVERAL),
            row.time(APART),
            row.ratio(SEVERAL, ONE),
            row.ratio(VLM_SEVERAL, VLM_ONE),
            row.ratio(APART, SEVERAL),
        ]
        for row in rows
    ]
    names = ["model", "S", "sentences", "one, s", "several, s", "each with its prompt, s"]
    return table([*names, "several / one", "the same, VLM alone", "times as fast"], lines)


def refining(rows: Sequence[Row]) -> str:
    """Time of the masks of one image."""
    lines = [
        [
            f"{row.spec.model} {row.spec.dtype}",
            str(row.spec.phrases),
            row.time(OURS),
            row.time(ORIGINAL),
            row.time(ALONE),
            row.ratio(ORIGINAL, OURS),
            row.ratio(ALONE, OURS),
            row.time(OURS_BEHIND),
            row.time(ORIGINAL_BEHIND),
            row.ratio(ORIGINAL_BEHIND, OURS_BEHIND),
        ]
        for row in rows
    ]
    names = ["SAM", "masks", "ours, s", "one decoded at a time, s", "one call a mask, s"]
    names += ["times as fast", "times as fast as one call a mask"]
    names += ["behind the encoder: ours, s", "one at a time, s", "times as fast"]
    return table(names, lines)
