"""Draw the image of the README: the stages of the flow on held-out scenes that score as most do.

python -m recipes.flow_picture runs/qwen-... docs/flow.png

The first phrase of `--samples` images, evenly spread over `shapes@test`, is grounded. The rows
shown are those whose coarse and refined IoU lie nearest to the means over all of them, each with a
shape and a color that no row above it has.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from flmm_core import Grounder
from flmm_core.data.images import read_image
from flmm_core.data.sources import open_sources
from flmm_core.evaluation.baselines import head_method
from flmm_core.loader.dataset import ExampleDataset, ObservedFeatures
from flmm_core.training.contact_sheet import draw_sheet, iou


def draw_flow(run: Path, output: Path, rows: int, count: int) -> None:
    """Ground the samples, choose the rows and write the image."""
    grounder = Grounder.from_pretrained(run)
    source, samples = ObservedFeatures(grounder.observer), open_sources(["shapes@test"])
    dataset, method = ExampleDataset(samples, source), head_method(source, grounder.head)
    places = list(range(0, len(samples), max(1, len(samples) // count)))[:count]
    found, scores = [], []
    for index in places:
        example = dataset.example(index)
        (grounding,) = method.ground(source.collate([example.inputs]))
        truth = example.truth
        assert truth is not None
        found.append((grounding, truth))
        scores.append(
            [iou(m[0] > 0, truth[0]) for m in (grounding.coarse_logits, grounding.logits)]
        )
    mean = np.mean(scores, axis=0)
    print(f"Mean IoU of {len(scores)}: coarse {mean[0]:.2f}, refined {mean[1]:.2f}")
    sheets: list[Image.Image] = []
    seen: set[str] = set()
    for place in np.abs(np.array(scores) - mean).sum(axis=1).argsort().tolist():
        sample, (grounding, truth) = samples[places[place]], found[place]
        color_and_shape = sample.phrases[0].text.split()[-2:]
        if len(sheets) == rows or seen.intersection(color_and_shape):
            continue
        seen.update(color_and_shape)
        sheet = draw_sheet(
            read_image(sample.image_path),
            [sample.phrases[0].text],
            grounding.maps,
            grounding.coarse_logits,
            grounding.logits,
            truth,
            grounder.head.mask_head.channel_weights(grounding.maps),
            titled=not sheets,
        )
        sheets.append(sheet)
    flow = Image.new("RGB", (sheets[0].width, sum(sheet.height for sheet in sheets)))
    top = 0
    for sheet in sheets:
        flow.paste(sheet, (0, top))
        top += sheet.height
    # Steps of 4 instead of 1, which nobody sees, make the file 40 % smaller.
    steps = [min(255, 4 * round(value / 4)) for value in range(256)] * 3
    flow.point(steps).save(output, optimize=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw the image of the README.")
    parser.add_argument("run", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--samples", type=int, default=60)
    arguments = parser.parse_args()
    draw_flow(arguments.run, arguments.output, arguments.rows, arguments.samples)
