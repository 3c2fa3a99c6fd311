"""The measurements of a benchmark in memory: numbers as columns, masks left on disk."""

from __future__ import annotations

import math
import sys
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from flmm_core.errors import DataError
from flmm_core.evaluation import scores
from flmm_core.evaluation.benchmark_folder import (
    BenchmarkFacts,
    MeasurementFacts,
    measurement_folders,
    read_benchmark,
    read_measurement,
)
from flmm_core.evaluation.phrase_rows import ITEMS, PhraseRow, read_rows

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


class Columns:
    """The rows of one measurement, M of them, and their terms of the K scores of reports.

    Kept are numbers and the rows' names, not their masks.

    Attributes:
        pictures: (M,) number of each row's image, in the order of the images' names, so that no
            figure depends on the order of the rows.
        terms: (M, K, 2) numerator and denominator; nan if the row does not count.
        shows: (M, K) whether the row is one that `Score.where` asks for.
        truth: (M,) pixels of the true mask.
        area: (M,) pixels of the image.
        words: (M,) number of words in the phrase.
        distractors: (M,) other objects of its category; -1 if unknown.
        iou: (M,) 0/0 counts as 0.
        probability: (M,) nan if there is none, or if the mask was withheld ("not there").
    """

    def __init__(self, rows: Iterable[PhraseRow], protocol: str = "standard") -> None:
        table = [scores.SCORES[name] for name in scores.titles()]
        terms_of = [score.terms_in(protocol) for score in table]
        self.items: list[str] = []
        self.slices: list[str] = []
        self.tags: list[tuple[str, ...]] = []
        pictures, shows, terms, numbers = [], bytearray(), array("d"), array("d")
        for row in rows:
            self.items.append(row.item)
            self.slices.append(sys.intern(row.slice))
            self.tags.append(tuple(sys.intern(tag) for tag in row.tags))
            pictures.append(sys.intern(row.picture))
            for score, of_row in zip(table, terms_of, strict=True):
                terms.extend(of_row(row) or (math.nan, math.nan))
                shows.append(score.where(row))
            likely = row.probability if row.there else None
            numbers.extend(
                (
                    row.truth,
                    row.size[0] * row.size[1],
                    len(row.phrase.split()),
                    -1 if row.distractors is None else row.distractors,
                    row.intersection / max(row.union, 1),
                    row.score,
                    math.nan if likely is None else likely,
                    row.seconds,
                )
            )
        shape = len(self), len(table)
        self.pictures: Ints = np.unique(pictures, return_inverse=True)[1]
        self.terms: Floats = np.frombuffer(terms).reshape(*shape, 2)
        self.shows: Bools = np.frombuffer(shows, np.bool_).reshape(shape)
        figures: Floats = np.frombuffer(numbers).reshape(-1, 8).T
        self.truth, self.area, self.words, self.distractors = figures[:4]
        self.iou, self.score, self.probability, self.seconds = figures[4:]

    def __len__(self) -> int:
        return len(self.items)


@dataclass(frozen=True, eq=False)
class Measurement:
    """One finished measurement: what produced it, and its rows."""

    folder: Path
    facts: MeasurementFacts
    columns: Columns

    @property
    def system(self) -> tuple[str, str, str, str]:
        """What is the same along a row of the table: backbone, model, method, protocol."""
        facts = self.facts
        return facts.backbone, facts.model, facts.method, facts.protocol

    @property
    def seconds_per_phrase(self) -> float | None:
        """As `result.json` says; else the mean over the rows."""
        if self.facts.seconds_per_phrase is not None or not len(self.columns):
            return self.facts.seconds_per_phrase
        return float(self.columns.seconds.mean())


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A benchmark folder: its finished measurements, and the names of the others."""

    folder: Path
    facts: BenchmarkFacts
    measurements: tuple[Measurement, ...]
    unfinished: tuple[str, ...]

    @cached_property
    def systems(self) -> dict[tuple[str, str, str, str], str]:
        """Each system's label: its backbone, and whatever else distinguishes it."""
        systems = list(dict.fromkeys(one.system for one in self.measurements))
        models = Counter(backbone for backbone, _ in {system[:2] for system in systems})
        _, _, methods, protocols = map(set, zip(*systems, strict=True))
        labels = {}
        for system in systems:
            backbone, model, method, protocol = system
            parts = (
                backbone,
                model.rstrip("/").rsplit("/", 1)[-1] if models[backbone] > 1 else "",
                method if methods != {"head"} else "",
                protocol if len(protocols) > 1 else "",
            )
            labels[system] = " · ".join(filter(None, parts))
        counts = Counter(labels.values())
        return {
            system: label if counts[label] == 1 else f"{label} · {system[1]}"
            for system, label in labels.items()
        }

    @cached_property
    def sources(self) -> dict[str, str]:
        """Each source's label; the whole text if two have the same label."""
        labels = {one.facts.source: one.facts.label for one in self.measurements}
        counts = Counter(labels.values())
        return {text: label if counts[label] == 1 else text for text, label in labels.items()}


def load_measurement(folder: Path) -> Measurement:
    """Read a measurement's folder.

    Raises:
        DataError: A file is missing or broken.
    """
    facts = read_measurement(folder)
    return Measurement(folder, facts, Columns(read_rows(folder / ITEMS), facts.protocol))


def load_benchmark(folder: Path) -> Benchmark:
    """Read a benchmark folder; of unfinished measurements only the names.

    Raises:
        DataError: A file is missing or broken, no measurement is finished, or two are the same.
    """
    facts = read_benchmark(folder)
    finished, unfinished = measurement_folders(folder)
    if not finished:
        raise DataError(
            f"The benchmark {folder} has no finished measurement.",
            found=f"Unfinished: {', '.join(path.name for path in unfinished) or 'none'}.",
            repair="Run `flmm benchmark` with this folder as --output to the end.",
        )
    measurements = tuple(load_measurement(path) for path in finished)
    seen: dict[tuple[object, ...], Measurement] = {}
    for one in measurements:
        twin = seen.setdefault((one.system, one.facts.source), one)
        if twin is not one:
            raise DataError(
                f"{twin.folder.name} and {one.folder.name} in {folder} are the same measurement.",
                found=f"Both are {', '.join(one.system)} on {one.facts.source}.",
                repair="Remove one of them.",
            )
    return Benchmark(folder, facts, measurements, tuple(path.name for path in unfinished))
