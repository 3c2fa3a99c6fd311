"""How fast images are read and prepared, how long a model waits for them, what buckets save.

python -m bench.loading
python -m bench.loading --backbone llava_next --workers 0 1 2 4 --device cuda

Images of the sizes that COCO's have are drawn and written as JPEG. Runs with so many workers
alternate, so that a disturbance meets all of them; figures are medians.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from flmm_core.data import rle
from flmm_core.data.sample import Phrase, Sample
from flmm_core.loader.dataset import ExampleDataset, StepSampler, fixed_batches, read_batches
from flmm_core.loader.samplers import BucketSampler, sample_extents
from flmm_core.loader.throughput import Rates, Throughput
from flmm_core.loader.workers import usable_cpus
from flmm_core.pipeline.head_folder import Grounder, Recipe
from flmm_core.segment import Segment

SIZES = ((480, 640), (640, 480), (427, 640), (640, 427), (375, 500), (500, 333), (612, 612))
"""Height and width; the first two are half of all, as in COCO."""
SHARES = (0.38, 0.12, 0.17, 0.09, 0.1, 0.07, 0.07)
WORDS = ("left", "right", "small", "large", "red", "dark", "wooden", "near", "behind", "person")


def make_samples(folder: Path, count: int, pictures: int, seed: int = 0) -> list[Sample]:
    """Samples of one to six phrases of one to eight words, on images of coarse noise."""
    rng, samples = np.random.default_rng(seed), []
    for number in range(count):
        path = folder / f"{number % pictures:05}.jpg"
        if number < pictures:
            height, width = SIZES[int(rng.choice(len(SIZES), p=SHARES))]
            coarse = rng.integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
            Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).save(path)
        else:
            height, width = samples[number - pictures].image_hw
        mask = np.zeros((height, width), dtype=bool)
        mask[: height // 2, : width // 2] = True
        encoded = rle.encode(mask)
        segments: list[Segment] = []
        phrases: list[Phrase] = []
        for place in range(int(rng.integers(1, 7))):
            text = " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))
            segments += [Segment(text, place), Segment(".")]
            phrases.append(Phrase(text, encoded))
        samples.append(Sample(path.stem, path, (height, width), tuple(segments), tuple(phrases)))
    return samples


def read(grounder: Grounder, samples: Sequence[Sample], batches: Any, workers: int) -> Rates:
    """Read and prepare, and compute nothing."""
    throughput = Throughput()
    for batch, _ in throughput.waiting(
        read_batches(ExampleDataset(samples, grounder), batches, workers=workers)
    ):
        if batch is not None:
            throughput.count(batch.samples)
    return throughput.rates()


@torch.no_grad()
def ground(grounder: Grounder, samples: Sequence[Sample], batches: Any, workers: int) -> Rates:
    """Read, prepare, and put through the flow."""
    throughput = Throughput()
    for batch, _ in throughput.waiting(
        read_batches(ExampleDataset(samples, grounder), batches, workers=workers)
    ):
        if batch is not None:
            masks = [grounding.masks for grounding in grounder(batch.inputs)]
            del masks
            throughput.count(batch.samples)
    if grounder.device.type == "cuda":
        torch.cuda.synchronize(grounder.device)
    return throughput.rates()


def padding(grounder: Grounder, samples: Sequence[Sample], batch_size: int) -> dict[str, Any]:
    """How much of the sequences is padding, and how many grids meet in a batch, in either order."""
    dataset = ExampleDataset(samples, grounder)
    lengths, grids = [], []
    for index in range(len(samples)):
        inputs = dataset.example(index).inputs.backbone
        lengths.append(len(inputs.tensors["input_ids"]))
        grids.append(tuple(view.token_index.shape for view in inputs.views))
    order = batch_size, range(len(samples) // batch_size), 0
    samplers = {
        "as_they_come": StepSampler(len(samples), *order),
        "buckets": BucketSampler(sample_extents(samples), *order),
    }
    found: dict[str, Any] = {"samples": len(samples)}
    for name, sampler in samplers.items():
        tokens = [[lengths[index] for index in batch] for batch in sampler]
        places = sum(len(batch) * max(batch) for batch in tokens)
        shapes = [len({grids[index] for index in batch}) for batch in sampler]
        found[name] = {
            "share_of_padding": 1 - sum(map(sum, tokens)) / places,
            "grids_in_a_batch": statistics.mean(shapes),
        }
    return found


def measure(
    *,
    backbone: str = "qwen",
    model: str = "tiny",
    refiner: str = "sam:tiny",
    device: str = "auto",
    pictures: int = 256,
    captions: int = 1600,
    batch_size: int = 8,
    workers: Sequence[int] = (0, 1, 2),
    repeats: int = 3,
) -> dict[str, Any]:
    """The whole measurement, ready for JSON.

    Args:
        backbone: Whose images and captions are prepared.
        model: An alias, a hub id or a folder.
        refiner: As `flmm train --refiner` takes it, of those that need no file.
        device: Where the model runs.
        images: How many are drawn.
        captions: So many samples of them are put into buckets.
        batch_size: Samples that go together.
        workers: Numbers of processes to compare.
        repeats: Runs of each.
    """
    recipe = Recipe(backbone, model, refiner=refiner)
    grounder = Grounder.build(recipe, device=device).eval()
    with tempfile.TemporaryDirectory() as name:
        samples = make_samples(Path(name), max(pictures, captions), pictures)
        batches = fixed_batches(pictures, batch_size)
        runs: dict[str, dict[int, list[Rates]]] = {}
        for job in (read, ground):
            job(grounder, samples, batches[:2], 0)  # warm
            found = runs[job.__name__] = {number: [] for number in workers}
            for _ in range(repeats):
                for number in workers:
                    found[number].append(job(grounder, samples, batches, number))
        saved = padding(grounder, samples, batch_size)
    return {
        "backbone": backbone,
        "model": model,
        "device": str(grounder.device),
        "cpus": usable_cpus(),
        "threads": torch.get_num_threads(),
        "machine": platform.processor() or platform.machine(),
        "torch": torch.__version__,
        "pictures": pictures,
        "batch_size": batch_size,
        **{job: _by_workers(found) for job, found in runs.items()},
        "padding": saved,
    }


def _by_workers(found: dict[int, list[Rates]]) -> dict[str, dict[str, float]]:
    """Medians by number of workers, and the ratio to the first number run by run."""
    first = next(iter(found.values()))
    return {
        str(number): {
            "pictures_per_second": statistics.median(r.pictures_per_second for r in rates),
            "share_waiting_for_data": statistics.median(r.share_waiting for r in rates),
            "times_as_fast": statistics.median(
                a.seconds / b.seconds for a, b in zip(first, rates, strict=True)
            ),
        }
        for number, rates in found.items()
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the measurement as JSON."""
    parser = argparse.ArgumentParser(description="Measure reading and preparing.")
    parser.add_argument("--backbone", default="qwen")
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--captions", type=int, default=1600)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args(arguments)
    print(json.dumps(measure(**vars(options)), indent=2))


if __name__ == "__main__":
    main()
