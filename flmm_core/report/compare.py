"""Two measurements on the same phrases: how far apart, and whether by chance."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from flmm_core.errors import DataError, UsageError
from flmm_core.evaluation.benchmark_folder import BENCHMARK, RESULT
from flmm_core.evaluation.scores import titles
from flmm_core.report.measurements import Measurement, load_benchmark, load_measurement
from flmm_core.report.scores import image_sums, or_none
from flmm_core.report.statistics import bootstrap_intervals, paired_test


@dataclass(frozen=True)
class Difference:
    """One score of two measurements on the phrases that both have; fractions of 1.

    Attributes:
        difference: Second minus first.
        low: Lower end of the difference's 95 % interval; None with fewer than two images.
        high: Upper end.
        p: Two-sided, by exchanging the measurements image by image.
    """

    first: float
    second: float
    difference: float
    low: float | None
    high: float | None
    p: float


@dataclass(frozen=True)
class Comparison:
    """The folders of two measurements, side by side on the phrases that both have.

    Attributes:
        source: The label of the second's source.
        only_first: Items that the second lacks.
        only_second: Items that the first lacks.
        scores: The scores that both have, by name.
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


@dataclass(frozen=True)
class FolderComparison:
    """Two folders side by side.

    Attributes:
        pairs: Measurements of the same system and source, or the two that were given.
        only_first: Names of measurements that the second lacks; `only_second` likewise.
    """

    pairs: tuple[Comparison, ...]
    only_first: tuple[str, ...] = ()
    only_second: tuple[str, ...] = ()


def compare_measurements(
    first: Measurement, second: Measurement, *, common: bool = False
) -> Comparison:
    """Compare two measurements phrase by phrase; differences are second minus first.

    `common` takes the phrases that both have, instead of refusing when one lacks some.

    Raises:
        UsageError: Their protocols differ.
        DataError: One lacks phrases of the other, they share none, or their truths for a phrase
            differ.
    """
    pair = f"{first.folder} and {second.folder}"
    protocol, other = first.facts.protocol, second.facts.protocol
    if protocol != other:
        raise UsageError(
            f"{pair} cannot be compared.",
            found=f"The first was measured under the protocol '{protocol}', the second under "
            f"'{other}'.",
            repair="Measure both under one protocol.",
        )
    mine, theirs = (
        {item: place for place, item in enumerate(one.columns.items)} for one in (first, second)
    )
    only_first = tuple(item for item in mine if item not in theirs)
    only_second = tuple(item for item in theirs if item not in mine)
    shared = [item for item in theirs if item in mine]
    if (only_first or only_second) and not common:
        raise DataError(
            f"{pair} were not measured on the same phrases.",
            found=f"{_lacking(second, only_first)} {_lacking(first, only_second)} "
            f"Both have {len(shared)}.",
            repair="Measure both on the same data, or compare what both have with --common.",
        )
    if not shared:
        raise DataError(
            f"{pair} have no phrase in common.",
            found=f"They were measured on {first.facts.source} and {second.facts.source}.",
            repair="Compare two measurements on one data source.",
        )
    a, b = first.columns, second.columns
    in_a, in_b = (np.array([places[item] for item in shared]) for places in (mine, theirs))
    differ = (a.truth[in_a] != b.truth[in_b]) | (a.area[in_a] != b.area[in_b])
    if differ.any():
        raise DataError(
            f"{pair} have different truths for the same phrases.",
            found=f"{int(differ.sum())} of {len(shared)}, first '{shared[int(differ.argmax())]}'.",
            repair="The data set changed in between; measure both on the same version.",
        )
    _, images = np.unique(b.pictures[in_b], return_inverse=True)
    (sums_a, shown_a), (sums_b, shown_b) = image_sums(a, in_a, images), image_sums(b, in_b, images)
    values_a, values_b = (top.sum(0) / np.maximum(low.sum(0), 1) for top, low in (sums_a, sums_b))
    ends = bootstrap_intervals(sums_b, minus=sums_a)
    p_values = np.nan_to_num(paired_test(sums_a, sums_b), nan=1.0)
    return Comparison(
        first=str(first.folder),
        second=str(second.folder),
        source=second.facts.label,
        protocol=protocol,
        phrases=len(shared),
        pictures=int(images.max()) + 1,
        only_first=only_first,
        only_second=only_second,
        scores={
            name: Difference(
                first=float(values_a[k]),
                second=float(values_b[k]),
                difference=float(values_b[k] - values_a[k]),
                low=or_none(ends[k, 0]),
                high=or_none(ends[k, 1]),
                p=float(p_values[k]),
            )
            for k, name in enumerate(titles())
            if shown_a[k] and shown_b[k]
        },
    )


def compare_folders(first: Path, second: Path, *, common: bool = False) -> FolderComparison:
    """Compare two measurements' folders, or two benchmark folders pair by pair.

    Pairs have the same backbone, model, method, protocol and source; any two measurements can be
    compared by giving their folders.

    Raises:
        UsageError: The folders are of different kinds, or hold no pair.
        DataError: As `load_benchmark`, `load_measurement` and `compare_measurements`.
    """
    kind, other = _kind(first), _kind(second)
    if kind != other:
        raise UsageError(
            f"{first} and {second} cannot be compared.",
            found=f"The first is a {kind}, the second a {other}.",
            repair="Give two benchmark folders, or two folders in their 'cells'.",
        )
    if kind == "measurement":
        loaded = load_measurement(first), load_measurement(second)
        return FolderComparison((compare_measurements(*loaded, common=common),))
    left, right = (
        {(*one.system, folder.sources[one.facts.source]): one for one in folder.measurements}
        for folder in (load_benchmark(first), load_benchmark(second))
    )
    keys = [key for key in left if key in right]
    if not keys:
        raise UsageError(
            f"The benchmarks {first} and {second} have no measurement in common.",
            found=f"The first has {_names(left.values())}; the second {_names(right.values())}.",
            repair="Give the folders of two measurements to compare any two.",
        )
    return FolderComparison(
        tuple(compare_measurements(left[key], right[key], common=common) for key in keys),
        tuple(one.folder.name for key, one in left.items() if key not in right),
        tuple(one.folder.name for key, one in right.items() if key not in left),
    )


def _kind(folder: Path) -> str:
    for name, kind in ((RESULT, "measurement"), (BENCHMARK, "benchmark")):
        if (folder / name).is_file():
            return kind
    raise DataError(
        f"The folder {folder} is neither a benchmark nor a measurement.",
        found=f"It has neither '{BENCHMARK}' nor '{RESULT}'.",
        repair="Give the folder that `flmm benchmark` wrote, or a finished one in its 'cells'.",
    )


def some_of(items: Sequence[str]) -> str:
    """The first few, as a list in a sentence."""
    return ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")


def _lacking(one: Measurement, items: Sequence[str]) -> str:
    return f"{one.folder} lacks " + (f"{len(items)}: {some_of(items)}." if items else "none.")


def _names(measurements: Iterable[Measurement]) -> str:
    return ", ".join(f"{one.folder.name} ({one.facts.protocol})" for one in measurements)
