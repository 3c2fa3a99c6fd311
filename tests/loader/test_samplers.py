"""Batches of samples that are alike: every sample once a pass, and the same after a stop."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.data.sources import open_source, open_sources
from flmm_core.loader.samplers import (
    BucketSampler,
    SharedSampler,
    StepSampler,
    image_batches,
    sample_extents,
)
from flmm_core.world import World


def made_up(total: int, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Extents as a photo collection has them."""
    rng = np.random.default_rng(seed)
    sizes = np.array([[480, 640], [640, 480], [427, 640], [1200, 1600], [500, 500]])
    return np.column_stack([sizes[rng.integers(0, 5, total)], rng.integers(5, 200, total)])


@pytest.mark.parametrize(("total", "batch_size"), [(403, 8), (64, 8), (7, 8), (8, 3), (1, 2)])
def test_every_pass_holds_every_sample_once(total: int, batch_size: int) -> None:
    steps = range(-(-4 * total // batch_size))
    batches = list(BucketSampler(made_up(total), batch_size, steps, seed=3))
    assert {len(batch) for batch in batches} == {batch_size}
    stream = [place for batch in batches for place in batch]
    for begin in range(0, 4 * total, total):
        assert sorted(stream[begin : begin + total]) == list(range(total))
    assert stream[:total] != stream[total : 2 * total] or total == 1


@pytest.mark.parametrize("begin", [1, 49, 50, 51, 130])
def test_a_resumed_order_goes_on_as_the_unbroken_one(begin: int) -> None:
    extents, steps = made_up(403), range(160)
    whole = list(BucketSampler(extents, 8, steps, seed=1))
    assert list(BucketSampler(extents, 8, steps[begin:], seed=1)) == whole[begin:]
    assert list(BucketSampler(extents, 8, steps, seed=2)) != whole


def test_batches_hold_what_is_alike() -> None:
    extents = made_up(4000)

    def unlike(sampler: StepSampler) -> tuple[float, float]:
        """How many sizes a batch has, and how far its captions' lengths are apart."""
        batches = list(sampler)
        sizes = [len({tuple(size) for size in extents[batch, :2]}) for batch in batches]
        lengths = [np.ptp(extents[batch, 2]) for batch in batches]
        return float(np.mean(sizes)), float(np.mean(lengths))

    plain = unlike(StepSampler(4000, 8, range(500), 0))
    bucketed = unlike(BucketSampler(extents, 8, range(500), 0))
    assert plain[0] > 3
    assert bucketed[0] < 1.2
    assert bucketed[1] < 0.2 * plain[1]


def test_buckets_are_mixed() -> None:
    """Neither does a pass go from small to large, nor do the same samples always meet."""
    sampler = BucketSampler(made_up(400), 8, range(100), seed=0)
    batches = list(sampler)
    areas = [int(sampler._size[batch].mean()) for batch in batches[:50]]
    assert areas not in (sorted(areas), sorted(areas, reverse=True))
    first, second = ({frozenset(batch) for batch in part} for part in (batches[:50], batches[50:]))
    assert len(first & second) < 5


@pytest.mark.parametrize("form", ["refcoco", "png", "grefcoco"])
@pytest.mark.parametrize("protocol", ["standard", "flmm-paper"])
def test_extents_are_those_of_the_samples(form: str, protocol: str, tmp_path: Path) -> None:
    written = FORMATS[form]
    written.write(tmp_path, draw_images(4, seed=2, split="val", extras=written.extras))
    source = f"{form}:{tmp_path}@val"
    samples = open_source(source, protocol)
    wanted = [[*sample.image_hw, len(sample.caption)] for sample in samples]
    assert sample_extents(samples).tolist() == wanted
    assert sample_extents(list(samples)).tolist() == wanted
    assert sample_extents(open_sources([source, source], protocol)).tolist() == 2 * wanted


@pytest.mark.parametrize("batch_size", [1, 2, 5, 16])
def test_batches_take_images_whole(batch_size: int, tmp_path: Path) -> None:
    """All samples once, in order; an image is cut only if it has too many, and no room is left."""
    FORMATS["refcoco"].write(tmp_path, draw_images(7, seed=2, split="val", sentences=2))
    source = f"refcoco:{tmp_path}@val"
    samples = open_sources([source, source], "standard")
    paths = [(place >= len(samples) // 2, s.image_path) for place, s in enumerate(samples)]
    sizes = Counter(paths)
    assert 2 < max(sizes.values()) < 16
    batches = image_batches(samples, len(samples), batch_size)
    assert [place for batch in batches for place in batch] == list(range(len(samples)))
    assert max(map(len, batches)) <= batch_size
    for batch, following in pairwise(batches):
        cut, room = paths[batch[-1]] == paths[following[0]], batch_size - len(batch)
        if cut:
            assert sizes[paths[batch[-1]]] > batch_size
        else:
            assert min(batch_size, sizes[paths[following[0]]]) > room
    assert image_batches(samples, 3, 2)[-1][-1] == 2
    assert image_batches(list(samples), 3, 2) == [[0, 1], [2]]


@pytest.mark.parametrize("sampler", [StepSampler, BucketSampler])
@pytest.mark.parametrize("processes", [1, 2, 3, 5])
@pytest.mark.parametrize("accumulate", [1, 2, 3])
def test_processes_share_each_step_whatever_their_number(
    sampler: Any, processes: int, accumulate: int
) -> None:
    extents, steps = made_up(23), range(3, 15)
    given = extents if sampler is BucketSampler else len(extents)
    whole = sampler(given, 4, steps, 1)
    shares = [
        list(SharedSampler(whole, World(rank, processes), accumulate)) for rank in range(processes)
    ]
    assert {len(share) for share in shares} == {len(steps) * accumulate}
    for step, batch in enumerate(whole):
        own = slice(step * accumulate, (step + 1) * accumulate)
        assert [index for share in shares for part in share[own] for index in part] == batch
        sizes = [sum(map(len, share[own])) for share in shares]
        assert max(sizes) - min(sizes) <= 1
