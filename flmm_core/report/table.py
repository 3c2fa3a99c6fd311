"""The figures of a report, computed once for all its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from flmm_core.errors import DataError
from flmm_core.evaluation.reliability import Reliability
from flmm_core.evaluation.scores import titles
from flmm_core.report.compare import Difference, compare_measurements
from flmm_core.report.measurements import Benchmark, Measurement
from flmm_core.report.peers import OURS, Peer, beside_ours
from flmm_core.report.scores import Estimate, Scores, Slicing, reliability, score_rows, slice_rows


@dataclass(frozen=True, eq=False)
class ReportRow:
    """One measurement of a benchmark: a system on a data source.

    Attributes:
        reliability: Of the probabilities; None without any.
        best: Label of the system with the highest cIoU on the same source and protocol.
        behind: cIoU against the best; None for the best itself, and where the two were not
            measured on the same phrases.
    """

    measurement: Measurement
    system: str
    source: str
    scores: Scores
    slicings: tuple[Slicing, ...]
    reliability: Reliability | None
    best: str
    behind: Difference | None

    @property
    def protocol(self) -> str:
        return self.measurement.facts.protocol

    @property
    def is_best(self) -> bool:
        return self.best == self.system


@dataclass(frozen=True, eq=False)
class BenchmarkReport:
    """A benchmark with its figures.

    Attributes:
        rows: By source and protocol, then from the highest cIoU to the lowest.
        published: Our systems and published ones on the same sources; empty if there are none.
    """

    benchmark: Benchmark
    rows: tuple[ReportRow, ...]
    published: list[Peer]

    @property
    def systems(self) -> dict[str, str]:
        """The systems' labels with their protocols, from the highest mean cIoU to the lowest."""
        return {rows[0].system: rows[0].protocol for rows in _by_rank(self.rows)}

    @property
    def shown(self) -> tuple[str, ...]:
        """The scores that at least one row has."""
        return tuple(
            name
            for name in titles()
            if any(row.scores[name].value is not None for row in self.rows)
        )


def make_report(benchmark: Benchmark) -> BenchmarkReport:
    """Score every measurement of a benchmark."""
    scores = {one: score_rows(one.columns) for one in benchmark.measurements}
    order = list(benchmark.sources)
    ranked = sorted(
        scores,
        key=lambda one: (order.index(one.facts.source), one.facts.protocol, -_ciou(scores[one])),
    )
    rows = []
    for _, group in groupby(ranked, key=lambda one: (one.facts.source, one.facts.protocol)):
        best, *others = group
        rows += [
            ReportRow(
                measurement=one,
                system=benchmark.systems[one.system],
                source=benchmark.sources[one.facts.source],
                scores=scores[one],
                slicings=slice_rows(one.columns),
                reliability=reliability(one.columns),
                best=benchmark.systems[best.system],
                behind=_behind(best, one),
            )
            for one in (best, *others)
        ]
    ours = []
    for own in _by_rank(rows):
        figures = {
            (row.measurement.facts.label, published): row.scores[score].value
            for row in own
            for published, score in OURS.items()
        }
        protocol = own[0].protocol
        ours.append(Peer(own[0].system, "this benchmark", protocol, True, figures, ours=True))
    phrases = {(row.system, row.measurement.facts.label): row.scores.phrases for row in rows}
    return BenchmarkReport(benchmark, tuple(rows), beside_ours(ours, phrases))


def _ciou(scores: Scores) -> float:
    value = scores["ciou"].value
    return -1.0 if value is None else value


def _behind(best: Measurement, other: Measurement) -> Difference | None:
    if best is other or not len(other.columns):
        return None
    try:
        return compare_measurements(best, other).scores["ciou"]
    except DataError:
        return None


def _by_rank(rows: Sequence[ReportRow]) -> list[list[ReportRow]]:
    """The rows of each system, from the highest mean cIoU to the lowest."""
    by_system: dict[str, list[ReportRow]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    return sorted(
        by_system.values(), key=lambda own: -sum(_ciou(row.scores) for row in own) / len(own)
    )


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 1 in percent, "–" for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(score: Estimate) -> str:
    """The 95 % interval in percent, empty if there is none."""
    if score.low is None or score.high is None:
        return ""
    return f"{percent(score.low)}–{percent(score.high)}"


def p_value(p: float) -> str:
    """As "0.012", or "< 0.001"."""
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def said_p(p: float) -> str:
    """As "p = 0.012", or "p < 0.001"."""
    return f"p {'' if p < 0.001 else '= '}{p_value(p)}"


def signed(value: float, digits: int = 1) -> str:
    """A difference of fractions in points, with its sign; the minus is a real one."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")
