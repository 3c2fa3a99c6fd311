"""How fast images are read, how long a model waits for them, what buckets save in padding.

Images of the sizes that COCO's have are drawn and written as JPEG.
"""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.sample import Phrase, Sample
from flmm_core.evaluation.baselines import MaskMethod, head_method
from flmm_core.loader.dataset import ExampleDataset, FeatureSource, ObservedFeatures, read_batches
from flmm_core.loader.samplers import BucketSampler, StepSampler, fixed_batches, sample_extents
from flmm_core.loader.throughput import Rates, Throughput
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.segment import statements
from performance.tables import table

RATES = "| workers | read: images/s | waiting for data | whole flow: images/s | waiting for data |"
PADDING = "| batches | padding | grids per batch |"
BATCH = 8
COUNTS = {"tiny": (8, 160, (0,)), "medium": (256, 1600, (0, 1, 2))}
"""Images, samples for the buckets, and numbers of workers."""
SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (500, 333), (612, 612))
"""Height and width; the first two are half of all, as in COCO."""
SHARES = (0.38, 0.12, 0.17, 0.09, 0.1, 0.07, 0.07)
WORDS = ("left", "right", "small", "large", "red", "dark", "wooden", "near", "behind", "person")


@dataclass(frozen=True)
class Loading:
    """What was measured with a number of workers.

    Attributes:
        workers: DataLoader workers.
        read: Of each run that reads and prepares only.
        whole: Of each run through the whole flow.
    """

    workers: int
    read: tuple[Rates, ...]
    whole: tuple[Rates, ...]


@dataclass(frozen=True)
class Padding:
    """How well samples fit together.

    Attributes:
        order: "shuffled" or "buckets".
        share: Of all tokens, those that are padding.
        grids: Different grids in a batch, on average.
    """

    order: str
    share: float
    grids: float


def measure(size: str, repeats: int, until: float) -> tuple[list[Loading | Padding], str]:
    """The figures, and their tables."""
    images, captions, workers = COUNTS[size]
    observer, head = build_flow(Recipe("qwen"))
    source = ObservedFeatures(observer)
    method = head_method(source, head)
    with tempfile.TemporaryDirectory() as name:
        samples = make_samples(Path(name), captions, images)
        batches = fixed_batches(images, BATCH)
        for how in (None, method):
            go_through(source, how, samples, batches[:1], 0)  # warm up
        runs: dict[int, tuple[list[Rates], list[Rates]]] = {n: ([], []) for n in workers}
        for _ in range(repeats):
            for number in workers:  # in turns, so that all meet the same disturbances
                for how, rates in zip((None, method), runs[number], strict=True):
                    rates.append(go_through(source, how, samples, batches, number))
        padding = compare_orders(source, samples)
    loaded = [Loading(n, tuple(read), tuple(whole)) for n, (read, whole) in runs.items()]
    lines = [(each.workers, *_show(each.read), *_show(each.whole)) for each in loaded]
    orders = [(each.order, f"{100 * each.share:.1f} %", f"{each.grids:.2f}") for each in padding]
    return [*loaded, *padding], f"{table(RATES, lines)}\n\n{table(PADDING, orders)}"


def _show(rates: Sequence[Rates]) -> tuple[str, str]:
    return (
        f"{statistics.median(each.images_per_second for each in rates):.1f}",
        f"{100 * statistics.median(each.waiting for each in rates):.0f} %",
    )


def go_through(
    source: FeatureSource,
    method: MaskMethod | None,
    samples: Sequence[Sample],
    batches: Sequence[list[int]],
    workers: int,
) -> Rates:
    """Read and prepare; with a method, also compute the masks."""
    throughput = Throughput()
    reading = read_batches(ExampleDataset(samples, source), batches, workers=workers)
    for batch, _ in throughput.waiting(reading):
        if batch is not None:
            if method is not None:
                masks = [grounding.masks for grounding in method.ground(batch.inputs)]
                del masks
            throughput.count(batch.samples)
    if source.device.type == "cuda":
        torch.cuda.synchronize()
    return throughput.rates()


def compare_orders(source: FeatureSource, samples: Sequence[Sample]) -> list[Padding]:
    """Padding in batches of random order, and in batches of similar samples."""
    prepared = [source.prepare(sample).backbone for sample in samples]
    grids = [tuple(view.token_index.shape for view in each.views) for each in prepared]
    order: Any = BATCH, range(len(samples) // BATCH), 0
    samplers = {
        "shuffled": StepSampler(len(samples), *order),
        "buckets": BucketSampler(sample_extents(samples), *order),
    }
    found = []
    for name, sampler in samplers.items():
        tokens = [[len(prepared[index]) for index in batch] for batch in sampler]
        places = sum(len(batch) * max(batch) for batch in tokens)
        shapes = statistics.mean(len({grids[index] for index in batch}) for batch in sampler)
        found.append(Padding(name, 1 - sum(map(sum, tokens)) / places, shapes))
    return found


def make_samples(folder: Path, count: int, images: int, seed: int = 0) -> list[Sample]:
    """Samples of one to six phrases of one to eight words, on images of coarse noise."""
    rng = np.random.default_rng(seed)
    samples: list[Sample] = []
    for number in range(count):
        path = folder / f"{number % images:05}.jpg"
        if number < images:
            height, width = SIZES[int(rng.choice(len(SIZES), p=SHARES))]
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        else:
            height, width = samples[number - images].image_hw
        mask = np.zeros((height, width), dtype=bool)
        mask[: height // 2, : width // 2] = True
        encoded = rle.encode(mask)
        texts = [
            " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))
            for _ in range(int(rng.integers(1, 7)))
        ]
        phrases = tuple(Phrase(text, encoded) for text in texts)
        segments = tuple(statements(texts))
        samples.append(Sample(path.stem, path, (height, width), segments, phrases))
    return samples
