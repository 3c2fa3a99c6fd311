"""The cells of a benchmark in memory: numbers as columns, masks left on disk."""

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
from flmm_core.evaluation.phrase_rows import (
    ITEMS,
    BenchmarkFacts,
    CellFacts,
    Item,
    cell_folders,
    read_benchmark,
    read_cell,
    read_items,
)

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

UNFINISHED_HINT = "Run `flmm benchmark` with this folder as --output to the end."


@dataclass(frozen=True, eq=False)
class Columns:
    """The rows of one cell, M of them; what is null there is nan here, or -1 for a count.

    Attributes:
        items: The unique names.
        images: (M,) the number of each row's image, in the order of their names, so that no
            figure depends on the order of the rows.
        slices: The data set's part of each row.
        tags: The further parts of each row.
        words: (M,) number of words of each phrase.
        counts: (M, 6) intersection, union, predicted, truth, coarse intersection, coarse union.
        area: (M,) pixels of the image.
        distractors: (M,) other objects of its category.
        ignored: (M,) pixels that do not count.
        values: (M, 5) score, probability, box IoU, point in mask, seconds.
    """

    items: tuple[str, ...]
    pictures: Ints
    slices: tuple[str, ...]
    tags: tuple[tuple[str, ...], ...]
    words: Ints
    counts: Ints
    area: Ints
    distractors: Ints
    ignored: Ints
    values: Floats

    def __len__(self) -> int:
        return len(self.items)

    @property
    def intersection(self) -> Ints:
        return self.counts[:, 0]

    @property
    def union(self) -> Ints:
        return self.counts[:, 1]

    @property
    def predicted(self) -> Ints:
        return self.counts[:, 2]

    @property
    def truth(self) -> Ints:
        return self.counts[:, 3]

    @property
    def score(self) -> Floats:
        return self.values[:, 0]

    @property
    def probability(self) -> Floats:
        return self.values[:, 1]

    @property
    def seconds(self) -> Floats:
        return self.values[:, 4]

    @cached_property
    def iou(self) -> Floats:
        """(M,) each phrase's IoU; 0/0 counts as 0."""
        return self.intersection / np.maximum(self.union, 1)


@dataclass(frozen=True, eq=False)
class Cell:
    """One finished cell.

    Attributes:
        folder: Where it lies.
        facts: What gave it.
        columns: Its rows.
    """

    folder: Path
    facts: CellFacts
    columns: Columns

    @property
    def system(self) -> tuple[str, str, str, str]:
        """What is the same along a row of the table: backbone, model, method, protocol."""
        facts = self.facts
        return facts.backbone, facts.model, facts.method, facts.protocol

    @property
    def seconds_per_phrase(self) -> float | None:
        """As the cell says; else the mean over its rows."""
        if self.facts.seconds_per_phrase is not None or not len(self.columns):
            return self.facts.seconds_per_phrase
        return float(self.columns.seconds.mean())


@dataclass(frozen=True, eq=False)
class Benchmark:
    """A benchmark folder.

    Attributes:
        folder: Where it lies.
        facts: What it ran on.
        cells: The finished ones.
        unfinished: Names of cells that are begun and not finished.
    """

    folder: Path
    facts: BenchmarkFacts
    cells: tuple[Cell, ...]
    unfinished: tuple[str, ...]

    @cached_property
    def systems(self) -> dict[tuple[str, str, str, str], str]:
        """Each system's label: its backbone, and what else is needed to tell it from the others."""
        systems = list(dict.fromkeys(cell.system for cell in self.cells))
        several_protocols = len({system[3] for system in systems}) > 1
        models = Counter(backbone for backbone, _ in {system[:2] for system in systems})
        plain = {system[2] for system in systems} == {"head"}
        labels = {}
        for system in systems:
            backbone, model, method, protocol = system
            parts = [backbone]
            parts += [model.rstrip("/").rsplit("/", 1)[-1]] * (models[backbone] > 1)
            parts += [method] * (not plain)
            parts += [protocol] * several_protocols
            labels[system] = " · ".join(parts)
        counts = Counter(labels.values())
        return {
            system: label if counts[label] == 1 else f"{label} · {system[1]}"
            for system, label in labels.items()
        }

    @cached_property
    def sources(self) -> dict[str, str]:
        """Each source's label; the whole text where two would have the same."""
        texts = dict.fromkeys(cell.facts.source for cell in self.cells)
        labels = {cell.facts.source: cell.facts.label for cell in self.cells}
        counts = Counter(labels.values())
        return {text: labels[text] if counts[labels[text]] == 1 else text for text in texts}

    def cell(self, system: tuple[str, str, str, str], source: str) -> Cell | None:
        """The cell of a system on a source, if it is finished."""
        for cell in self.cells:
            if cell.system == system and cell.facts.source == source:
                return cell
        return None


def load_cell(folder: Path) -> Cell:
    """Read a cell's folder.

    Raises:
        DataError: A file is missing or broken.
    """
    return Cell(folder, read_cell(folder), _columns(read_items(folder / ITEMS)))


def load_benchmark(folder: Path) -> Benchmark:
    """Read a benchmark folder; unfinished cells are only named.

    Raises:
        DataError: A file is missing or broken, no cell is finished, or two are the same.
    """
    facts = read_benchmark(folder)
    finished, unfinished = cell_folders(folder)
    if not finished:
        raise DataError(
            f"The benchmark {folder} has no finished cell.",
            found=f"Unfinished: {', '.join(path.name for path in unfinished) or 'none'}.",
            repair=UNFINISHED_HINT,
        )
    cells = tuple(load_cell(path) for path in finished)
    seen: dict[tuple[object, ...], Cell] = {}
    for cell in cells:
        twin = seen.setdefault((cell.system, cell.facts.source), cell)
        if twin is not cell:
            raise DataError(
                f"The cells {twin.folder.name} and {cell.folder.name} of {folder} are the same.",
                found=f"Both are {', '.join(cell.system)} on {cell.facts.source}.",
                repair="Remove one of them.",
            )
    return Benchmark(folder, facts, cells, tuple(path.name for path in unfinished))


def _columns(items: Iterable[Item]) -> Columns:
    names: list[str] = []
    slices: list[str] = []
    tags: list[tuple[str, ...]] = []
    places: dict[str, int] = {}
    numbers, values = array("q"), array("d")
    for item in items:
        names.append(item.item)
        slices.append(sys.intern(item.slice))
        tags.append(tuple(sys.intern(tag) for tag in item.tags))
        numbers.extend(
            (
                item.intersection,
                item.union,
                item.predicted,
                item.truth,
                -1 if item.coarse_intersection is None else item.coarse_intersection,
                -1 if item.coarse_union is None else item.coarse_union,
                places.setdefault(item.picture, len(places)),
                len(item.phrase.split()),
                item.size[0] * item.size[1],
                -1 if item.distractors is None else item.distractors,
                item.ignored,
            )
        )
        # A probability is one of the mask that was withheld, where the answer is "not there".
        likely = item.probability if item.there else None
        cells = (item.score, likely, item.box_iou, item.point_in_mask, item.seconds)
        values.extend(math.nan if value is None else float(value) for value in cells)
    table = np.frombuffer(numbers, dtype=np.int64).reshape(-1, 11)
    ranks = np.empty(len(places), dtype=np.int64)
    ranks[[places[name] for name in sorted(places)]] = np.arange(len(places))
    return Columns(
        items=tuple(names),
        pictures=ranks[table[:, 6]],
        slices=tuple(slices),
        tags=tuple(tags),
        words=table[:, 7],
        counts=table[:, :6],
        area=table[:, 8],
        distractors=table[:, 9],
        ignored=table[:, 10],
        values=np.frombuffer(values, dtype=np.float64).reshape(-1, 5),
    )
