"""Two cells on the same phrases: how far apart, and whether chance could do it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.phrase_rows import BENCHMARK, RESULT
from flmm_core.report.cells import Benchmark, Cell, Ints, load_benchmark, load_cell
from flmm_core.report.scores import TITLES, ratio_parts
from flmm_core.report.statistics import bootstrap_difference, paired_test, ratios, sum_by_cluster

COMPARED = ("ciou", "miou")
NAMED = 5
"""Missing items that a message names."""


@dataclass(frozen=True)
class Difference:
    """One score of two cells on the phrases that both have; fractions of 1.

    Attributes:
        first: Of the first cell.
        second: Of the second.
        difference: Second minus first.
        low: Lower end of the difference's 95 % interval, None with fewer than two images.
        high: Upper end.
        p: Two-sided, by exchanging the cells image by image.
    """

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class Comparison:
    """Two cells side by side.

    Attributes:
        first: Name of the first cell.
        second: Name of the second.
        source: The label of the second's source.
        protocol: Of both.
        phrases: How many both have.
        images: How many images these come from.
        only_first: Items that the second lacks.
        only_second: Items that the first lacks.
        scores: By name: cIoU and mIoU.
    """

    first: str
    second: str
    source: str
    protocol: str
    phrases: int
    pictures: int
    only_first: tuple[str, ...]
    only_second: tuple[str, ...]
    scores: dict[str, Difference]

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_cells(first: Cell, second: Cell, *, common: bool = False) -> Comparison:
    """Compare two cells phrase by phrase.

    Args:
        first: What is compared with.
        second: What is compared.
        common: Take the phrases that both have, instead of refusing when one lacks some.

    Raises:
        UsageError: Their protocols differ.
        DataError: One has phrases that the other lacks, none are shared, or the same phrase has
            another truth.
    """
    _check_protocols(first, second)
    places = {item: place for place, item in enumerate(first.columns.items)}
    there = set(second.columns.items)
    only_first = tuple(item for item in first.columns.items if item not in there)
    only_second = tuple(item for item in second.columns.items if item not in places)
    shared = [item for item in second.columns.items if item in places]
    if (only_first or only_second) and not common:
        raise DataError(
            f"{_name(first)} and {_name(second)} were not measured on the same phrases.",
            found=f"{_lacking(second, only_first)} {_lacking(first, only_second)} "
            f"Both have {len(shared)}.",
            repair="Measure both on the same data, or compare what both have with --common.",
        )
    if not shared:
        raise DataError(
            f"{_name(first)} and {_name(second)} have no phrase in common.",
            found=f"They were measured on {first.facts.source} and {second.facts.source}.",
            repair="Compare two cells of one data source.",
        )
    chosen = np.array([places[item] for item in shared])
    places = {item: place for place, item in enumerate(second.columns.items)}
    rows = chosen, np.array([places[item] for item in shared])
    _check_truth(first, second, rows, shared)
    _, pictures = np.unique(second.columns.pictures[rows[1]], return_inverse=True)
    sums = [
        tuple(sum_by_cluster(pictures, part[:, :2]) for part in ratio_parts(cell.columns, taken))
        for cell, taken in zip((first, second), rows, strict=True)
    ]
    a, b = (sums[0][0], sums[0][1]), (sums[1][0], sums[1][1])
    values = [np.nan_to_num(ratios(part[0].sum(0), part[1].sum(0))) for part in (a, b)]
    ends, p_values = bootstrap_difference(a, b), paired_test(a, b)
    assert tuple(TITLES)[:2] == COMPARED
    scores = {
        name: Difference(
            first=float(values[0][k]),
            second=float(values[1][k]),
            difference=float(values[1][k] - values[0][k]),
            low=None if np.isnan(ends[k, 0]) else float(ends[k, 0]),
            high=None if np.isnan(ends[k, 1]) else float(ends[k, 1]),
            p=1.0 if np.isnan(p_values[k]) else float(p_values[k]),
        )
        for k, name in enumerate(COMPARED)
    }
    return Comparison(
        first=_name(first),
        second=_name(second),
        source=second.facts.label,
        protocol=second.facts.protocol,
        phrases=len(shared),
        pictures=int(pictures.max()) + 1,
        only_first=only_first,
        only_second=only_second,
        scores=scores,
    )


@dataclass(frozen=True)
class FolderComparison:
    """Two folders side by side.

    Attributes:
        pairs: Cells of the same system and source, or the two cells that were given.
        only_first: Cells that the second folder lacks.
        only_second: Cells that the first folder lacks.
    """

    pairs: tuple[Comparison, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return asdict(self)


def compare_folders(first: Path, second: Path, *, common: bool = False) -> FolderComparison:
    """Compare two cells' folders, or two benchmark folders cell by cell.

    Cells of benchmarks are paired by backbone, model, method, protocol and source; any two cells
    can be compared by giving their folders.

    Raises:
        UsageError: The folders are of different kinds, or hold no pair.
        DataError: See `load_benchmark`, `load_cell` and `compare_cells`.
    """
    kinds = [_kind(folder) for folder in (first, second)]
    if kinds[0] != kinds[1]:
        raise UsageError(
            f"{first} and {second} cannot be compared.",
            found=f"The first is a {kinds[0]}, the second a {kinds[1]}.",
            repair="Give two benchmark folders, or two folders in their 'cells'.",
        )
    if kinds[0] == "cell":
        pair = compare_cells(load_cell(first), load_cell(second), common=common)
        return FolderComparison((pair,))
    left, right = _by_key(load_benchmark(first)), _by_key(load_benchmark(second))
    keys = [key for key in left if key in right]
    if not keys:
        raise UsageError(
            f"The benchmarks {first} and {second} have no cell in common.",
            found=f"The first has {_names(left.values())}; the second {_names(right.values())}.",
            repair="Give the two cells' folders to compare them whatever their names.",
        )
    return FolderComparison(
        tuple(compare_cells(left[key], right[key], common=common) for key in keys),
        tuple(_short(cell) for key, cell in left.items() if key not in right),
        tuple(_short(cell) for key, cell in right.items() if key not in left),
    )


def _kind(folder: Path) -> str:
    for name, kind in ((RESULT, "cell"), (BENCHMARK, "benchmark")):
        if (folder / name).is_file():
            return kind
    raise DataError(
        f"The folder {folder} is neither a benchmark nor one of its cells.",
        found=f"It has neither '{BENCHMARK}' nor '{RESULT}'.",
        repair="Give the folder that `flmm benchmark` wrote, or a finished one in its 'cells'.",
    )


def _by_key(benchmark: Benchmark) -> dict[tuple[str, ...], Cell]:
    return {(*cell.system, benchmark.sources[cell.facts.source]): cell for cell in benchmark.cells}


def _check_protocols(first: Cell, second: Cell) -> None:
    protocols = [cell.facts.protocol for cell in (first, second)]
    if protocols[0] != protocols[1]:
        raise UsageError(
            f"{_name(first)} and {_name(second)} cannot be compared.",
            found=f"The first was measured under the protocol '{protocols[0]}', the second under "
            f"'{protocols[1]}'.",
            repair="Measure both under one protocol.",
        )


def _check_truth(first: Cell, second: Cell, rows: tuple[Ints, Ints], shared: Sequence[str]) -> None:
    differ = (first.columns.truth[rows[0]] != second.columns.truth[rows[1]]) | (
        first.columns.area[rows[0]] != second.columns.area[rows[1]]
    )
    if differ.any():
        raise DataError(
            f"{_name(first)} and {_name(second)} have different truths for the same phrases.",
            found=f"{int(differ.sum())} of {len(shared)}, first '{shared[int(differ.argmax())]}'.",
            repair="The data set has changed in between; measure both on the same.",
        )


def _lacking(cell: Cell, items: Sequence[str]) -> str:
    if not items:
        return f"{_name(cell)} lacks none."
    shown = ", ".join(items[:NAMED]) + (", ..." if len(items) > NAMED else "")
    return f"{_name(cell)} lacks {len(items)}: {shown}."


def _name(cell: Cell) -> str:
    return str(cell.folder)


def _short(cell: Cell) -> str:
    return cell.folder.name


def _names(cells: Iterable[Cell]) -> str:
    return ", ".join(f"{_short(cell)} ({cell.facts.protocol})" for cell in cells)
