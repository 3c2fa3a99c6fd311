"""What encoding images for SAM in bfloat16 does to the scores of a trained head.

python -m bench.half_precision runs/qwen-... --data shapes@test
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

from flmm_core.data.sources import open_source
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.pipeline.refiners.sam import SamRefiner


def measure(head: str, data: str) -> dict[str, float]:
    """Refined cIoU both ways, and the difference in points."""
    grounder = Grounder.from_pretrained(head)
    if not isinstance(grounder.refiner, SamRefiner):
        raise SystemExit(f"'{head}' has no SAM behind it.")
    samples, found = open_source(data, "standard"), {}
    for name, half in (("float32", False), ("bfloat16", True)):
        grounder.refiner.half_precision = half
        found[name] = evaluate(grounder, samples, name=name).refined.ciou
    return {**found, "points": 100 * (found["bfloat16"] - found["float32"])}


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the figures as JSON."""
    parser = argparse.ArgumentParser(description="Score a head with SAM's encoder in bfloat16.")
    parser.add_argument("head")
    parser.add_argument("--data", default="shapes@test")
    options = parser.parse_args(arguments)
    print(json.dumps(measure(options.head, options.data), indent=2))


if __name__ == "__main__":
    main()
