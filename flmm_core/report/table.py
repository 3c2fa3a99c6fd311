"""Everything that a report says in figures, computed once for all its formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from flmm_core.errors import DataError
from flmm_core.report.cells import Benchmark, Cell
from flmm_core.report.compare import Difference, compare_cells
from flmm_core.report.peers import OURS, Measured, Published, beside_ours
from flmm_core.report.scores import TITLES, Score, Scores, score_rows
from flmm_core.report.slices import Reliability, Slicing, reliability, slice_rows


@dataclass(frozen=True, eq=False)
class Row:
    """One cell in the table.

    Attributes:
        cell: The cell.
        system: Its system's label.
        source: Its source's label.
        scores: Of all its rows.
        slicings: Of its rows by size, words and so on.
        reliability: Of its probabilities, None without any.
        best: The label of the system with the highest cIoU on the same source and protocol.
        behind: cIoU against the best one; None for the best itself, and where the rows are not
            of the same phrases.
    """

    cell: Cell
    system: str
    source: str
    scores: Scores
    slicings: tuple[Slicing, ...]
    reliability: Reliability | None
    best: str
    behind: Difference | None

    @property
    def protocol(self) -> str:
        return self.cell.facts.protocol

    @property
    def is_best(self) -> bool:
        return self.best == self.system


@dataclass(frozen=True, eq=False)
class Report:
    """A benchmark with its figures.

    Attributes:
        benchmark: What was read.
        rows: A row a cell, by source, then from the highest cIoU to the lowest.
        published: Published figures on the same sources, None if there are none.
    """

    benchmark: Benchmark
    rows: tuple[Row, ...]
    published: Published | None

    @property
    def systems(self) -> dict[str, str]:
        """The systems' labels with their protocols, from the highest mean cIoU to the lowest."""
        return {rows[0].system: rows[0].protocol for rows in _by_rank(self.rows)}

    @property
    def shown(self) -> tuple[str, ...]:
        """The scores that at least one row has."""
        return tuple(
            name for name in TITLES if any(row.scores[name].value is not None for row in self.rows)
        )


def make_report(benchmark: Benchmark) -> Report:
    """Score every cell of a benchmark."""
    scores = {id(cell): score_rows(cell.columns) for cell in benchmark.cells}
    rows = []
    for source in benchmark.sources:
        for system in benchmark.systems:
            cell = benchmark.cell(system, source)
            if cell is None:
                continue
            rivals = [
                other
                for other in benchmark.cells
                if (other.facts.source, other.facts.protocol) == (source, system[3])
            ]
            best = max(rivals, key=lambda rival: _ciou(scores[id(rival)]))
            rows.append(
                Row(
                    cell=cell,
                    system=benchmark.systems[system],
                    source=benchmark.sources[source],
                    scores=scores[id(cell)],
                    slicings=slice_rows(cell.columns),
                    reliability=reliability(cell.columns),
                    best=benchmark.systems[best.system],
                    behind=_behind(best, cell),
                )
            )
    order = list(benchmark.sources.values())
    rows.sort(key=lambda row: (order.index(row.source), row.protocol, -_ciou(row.scores)))
    return Report(benchmark, tuple(rows), _published(rows))


def _ciou(scores: Scores) -> float:
    value = scores["ciou"].value
    return -1.0 if value is None else value


def _behind(best: Cell, cell: Cell) -> Difference | None:
    if best is cell or not len(cell.columns):
        return None
    try:
        return compare_cells(best, cell).scores["ciou"]
    except DataError:
        return None


def _by_rank(rows: Sequence[Row]) -> list[list[Row]]:
    """The rows of each system, from the highest mean cIoU to the lowest."""
    by_system: dict[str, list[Row]] = {}
    for row in rows:
        by_system.setdefault(row.system, []).append(row)
    return sorted(
        by_system.values(), key=lambda own: -sum(_ciou(row.scores) for row in own) / len(own)
    )


def _published(rows: Sequence[Row]) -> Published | None:
    ours = [
        Measured(
            own[0].system,
            own[0].protocol,
            {
                (row.cell.facts.label, published): row.scores[score].value
                for row in own
                for published, score in OURS.items()
            },
            {row.cell.facts.label: row.scores.phrases for row in own},
        )
        for own in _by_rank(rows)
    ]
    return beside_ours(ours)


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction of 1 in percent, "–" for None."""
    return "–" if value is None else f"{100 * value:.{digits}f}"


def interval(score: Score) -> str:
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
