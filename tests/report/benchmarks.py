"""Benchmark folders made of random discs, so that a report can be checked without a model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data.rle import encode
from flmm_core.evaluation.benchmark_folder import (
    MEASUREMENTS,
    BenchmarkFacts,
    MeasurementFacts,
    write_facts,
)
from flmm_core.evaluation.phrase_rows import ITEMS, PhraseRow, Rle, write_rows
from flmm_core.report.measurements import Measurement, load_measurement

SIZE = (48, 64)
WORDS = ("the", "small", "red", "ring", "left", "of", "a", "star", "below", "it")
Mask = NDArray[np.bool_]


def disc(row: float, column: float, radius: float, size: tuple[int, int] = SIZE) -> Mask:
    """(H, W) bool, all false for a radius of 0."""
    rows, columns = np.ogrid[: size[0], : size[1]]
    return np.asarray((rows - row) ** 2 + (columns - column) ** 2 < radius**2)


def rle(mask: Mask) -> Rle:
    code = encode(mask)
    return Rle(size=(code["size"][0], code["size"][1]), counts=code["counts"].decode())


def make_row(name: str, picture: str, truth: Mask, predicted: Mask, **rest: Any) -> PhraseRow:
    """A row whose counts are those of two masks."""
    coarse = int((truth & predicted).sum() * 3 // 4)
    facts: dict[str, Any] = {
        "phrase": "a red ring",
        "coarse_intersection": coarse,
        "coarse_union": int((truth | predicted).sum()) + 2,
        "score": 0.5,
        "seconds": 0.25,
    }
    return PhraseRow(
        item=name,
        picture=picture,
        size=truth.shape,
        segmentation=rle(predicted),
        truth_segmentation=rle(truth),
        intersection=int((truth & predicted).sum()),
        union=int((truth | predicted).sum()),
        predicted=int(predicted.sum()),
        truth=int(truth.sum()),
        **(facts | rest),
    )


def random_rows(
    seed: int, skill: float, pictures: int = 12, *, absent: float = 0.0
) -> Iterator[PhraseRow]:
    """Rows of one measurement; truths depend on the seed, predictions on the skill too."""
    rng = np.random.default_rng(seed)
    for picture in range(pictures):
        for phrase in range(int(rng.integers(1, 5))):
            row, column = rng.uniform(4, SIZE[0] - 4), rng.uniform(4, SIZE[1] - 4)
            radius = 0.0 if rng.random() < absent else rng.uniform(2, 18)
            shift = rng.normal(0, 1, 2) * (1 - skill) * 20
            grown = radius * rng.uniform(0.4 + 0.5 * skill, 1.6 - 0.5 * skill)
            truth = disc(row, column, radius)
            words = rng.choice(WORDS, int(rng.integers(1, 10)))
            kind, rivals = rng.choice(["plain", "relation"]), int(rng.integers(0, 5))
            predicted = disc(row + shift[0], column + shift[1], grown)
            right = bool(2 * (truth & predicted).sum() >= (truth | predicted).sum())
            yield make_row(
                f"{picture}#{phrase}",
                f"{picture}.png",
                truth,
                predicted,
                phrase=" ".join(words),
                slice=str(kind),
                tags=("plural",) if phrase % 2 else (),
                distractors=rivals,
                score=float(rng.uniform(0, 1)),
                probability=float(np.clip(0.2 + 0.6 * right + rng.normal(0, 0.1), 0, 1)),
                box_iou=float(rng.uniform(0, 1)) if radius else None,
                point_in_mask=bool(rng.random() < skill) if radius else None,
                seconds=float(rng.uniform(0.1, 0.3)),
            )


def facts(**given: Any) -> BenchmarkFacts:
    return BenchmarkFacts(
        **{
            "created": "2026-01-02T03:04:05+00:00",
            "command": ["flmm", "benchmark", "--backbone", "alpha"],
            "versions": {"flmm": "0.1.0", "torch": "2.9"},
            "machine": "x86_64, 2 cores",
            "seed": 0,
            "protocol": "standard",
            "prompt": "Please give me a description of the image.",
        }
        | given
    )


def measurement_facts(backbone: str, source: str, **given: Any) -> MeasurementFacts:
    return MeasurementFacts(
        **{
            "backbone": backbone,
            "model": "tiny",
            "head": f"heads/{backbone}",
            "head_sha256": "ab" * 32,
            "source": source,
            "protocol": "standard",
            "dtype": "float32",
            "device": "cpu",
            "steps": 800,
            "trainable_parameters": 1_234_567,
        }
        | given
    )


def write_measurement(folder: Path, facts_: MeasurementFacts, rows: Sequence[PhraseRow]) -> Path:
    write_rows(folder / ITEMS, rows)
    write_facts(folder, facts_)
    return folder


def measured(folder: Path, rows: Sequence[PhraseRow], **given: str) -> Measurement:
    """Written and read back."""
    about = measurement_facts("alpha", "shapes@test", **given)
    return load_measurement(write_measurement(folder, about, rows))


def write_benchmark(
    folder: Path,
    skills: dict[str, float],
    sources: Sequence[str] = ("shapes@test", "refcoco:/data@val"),
    *,
    pictures: int = 12,
    absent: float = 0.0,
    **given: Any,
) -> Path:
    """A benchmark of discs: a backbone with its skill (0..1) on each source, with images."""
    write_facts(folder, facts())
    shown = folder / "pictures"
    shown.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(9)
    for number in range(pictures):
        pixels = rng.integers(0, 256, (*SIZE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(shown / f"{number}.png")
    for number, source in enumerate(sources):
        for backbone, skill in skills.items():
            name = f"{backbone}--{source}".replace("/", "_").replace(":", "_")
            rows = list(random_rows(number, skill, pictures, absent=absent))
            about = measurement_facts(backbone, source, pictures=str(shown), **given)
            write_measurement(folder / MEASUREMENTS / name, about, rows)
    return folder
