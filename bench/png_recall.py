"""How long average recall takes over a validation set of panoptic narrative grounding.

python -m bench.png_recall
python -m bench.png_recall --published    # beside the loop over all thresholds
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence

import numpy as np

from flmm_core.evaluation.metrics import SUBSETS, RecallScores


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the best of some repeats, in seconds, as JSON."""
    parser = argparse.ArgumentParser(description="Time average recall of random masks.")
    parser.add_argument("--masks", type=int, default=15_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--published", action="store_true", help="also visit every threshold")
    options = parser.parse_args(arguments)
    rng = np.random.default_rng(0)
    unions = rng.integers(1, 640 * 480, options.masks)
    intersections = (unions * rng.random(options.masks)).astype(np.int64)
    things, plurals = rng.random((2, options.masks)) < 0.5

    def scored() -> float:
        scores = RecallScores()
        scores.add_counts(intersections, unions, things, plurals)
        return next(scores.average_recall(name) for name in SUBSETS)

    scored()  # The thresholds are made once.
    timed = [_timed(scored) for _ in range(options.repeats)]
    result = {
        "masks": options.masks,
        "seconds": min(seconds for seconds, _ in timed),
        "average_recall": timed[0][1],
    }
    if options.published:
        seconds, recall = _timed(lambda: _every_threshold(intersections / unions))
        result |= {"published_seconds": seconds, "published_average_recall": recall}
    print(json.dumps(result))


def _every_threshold(ious: np.ndarray) -> float:
    """The definition, one threshold after the other, of one subset."""
    thresholds = np.arange(0, 1, 1e-5)
    recall = [np.count_nonzero(ious >= threshold) / len(ious) for threshold in thresholds[:-1]]
    return float((np.diff(thresholds) * recall).sum())


def _timed(work: Callable[[], float]) -> tuple[float, float]:
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


if __name__ == "__main__":
    main()
