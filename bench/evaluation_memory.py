"""How memory grows while many samples are measured, written and put in order: it should not.

python -m bench.evaluation_memory
python -m bench.evaluation_memory --samples 50000 --every 5000
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image

from flmm_core.benchmark.rows import RowFiles, SampleRows
from flmm_core.data import rle
from flmm_core.data.protocols import LazySamples
from flmm_core.data.sample import Phrase, Sample
from flmm_core.evaluation.evaluate import Evaluation, measure_batches
from flmm_core.evaluation.phrase_rows import Item, write_items
from flmm_core.loader.dataset import fixed_batches
from flmm_core.pipeline.grounder import GrounderInputs
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.pipeline.types import WHOLE_PICTURE, AttentionMaps, Grounding
from flmm_core.segment import Segment

SIZE = (120, 160)


class Discs(LazySamples):
    """Samples whose truth is a disc somewhere; made when asked for."""

    def __init__(self, count: int, picture: Path) -> None:
        self.count, self.picture = count, picture

    def __len__(self) -> int:
        return self.count

    def _make(self, index: int) -> Sample:
        phrase = Phrase("the disc", rle.encode(disc(index)))
        segments = (Segment("the disc", 0), Segment("."))
        return Sample(f"disc {index}", self.picture, SIZE, segments, (phrase,))


class DiscFlow:
    """Answers with another disc, from the number in the sample's name; remembers nothing."""

    confidence = None
    device = torch.device("cpu")

    def prepare(
        self, image: Image.Image, segments: Sequence[Segment], *, name: str, like: Any = None
    ) -> GrounderInputs:
        return GrounderInputs(cast(Any, int(name.split()[1])), None, SIZE)

    def collate(self, samples: Sequence[GrounderInputs]) -> list[Any]:
        return [sample.backbone for sample in samples]

    def __call__(self, numbers: Sequence[int]) -> tuple[Grounding, ...]:
        maps = AttentionMaps(torch.ones(1, 1, 2, 2) / 4, WHOLE_PICTURE)
        logits = [torch.from_numpy(disc(number + 1))[None].float() * 8 - 4 for number in numbers]
        return tuple(Grounding(one[:, ::4, ::4], one, maps) for one in logits)


def disc(number: int) -> Any:
    """(H, W) bool."""
    row, column, radius = np.random.default_rng(number).uniform((20, 20, 5), (100, 140, 40))
    rows, columns = np.ogrid[: SIZE[0], : SIZE[1]]
    return (rows - row) ** 2 + (columns - column) ** 2 < radius**2


def peak() -> float:
    """The most memory that this process has held so far, in MiB."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(most / (1 << 20 if sys.platform == "darwin" else 1 << 10), 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the peak after every so many samples, and after the rows are in order, as JSON."""
    parser = argparse.ArgumentParser(description="Measure the memory of an evaluation.")
    parser.add_argument("--samples", type=int, default=20_000)
    parser.add_argument("--every", type=int, default=2_000)
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Image.new("RGB", SIZE[::-1]).save(folder / "picture.png")
        samples = Discs(options.samples, folder / "picture.png")
        files, curve, scores = RowFiles(folder, options.samples), [], Evaluation()
        batches = fixed_batches(options.samples, 16)
        flow = cast(Grounder, DiscFlow())
        with files.path(0, 1).open("ab") as file:
            for batch in measure_batches(flow, samples, batches):
                for one in batch:
                    file.write(SampleRows(sample=one.index, rows=one.rows).to_line())
                    if one.index % options.every == options.every - 1:
                        curve.append({"samples": one.index + 1, "peak_mib": peak()})
        files.scan()

        def rows() -> Iterator[Item]:
            for sample in files.in_order():
                scores.add(sample.rows)
                yield from sample.rows

        write_items(folder, rows())
        result = {
            "samples": scores.samples,
            "measured": curve,
            "in_order": {"peak_mib": peak()},
            "items_mib": round((folder / "items.jsonl").stat().st_size / (1 << 20), 1),
        }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
