from __future__ import annotations

import json
from itertools import product

import numpy as np
import pytest

from flmm_core.errors import DataError
from flmm_core.metrics import (
    GeneralisedScores,
    MaskScores,
    PictureSums,
    ReasonScores,
    bootstrap,
    compare,
)

Counts = list[tuple[int, int]]


def pictures(*masks: Counts) -> PictureSums:
    """One picture for each list of (intersection, union)."""
    sums = PictureSums()
    for number, counts in enumerate(masks):
        sums.add_counts(f"{number:03d}", *map(list, zip(*counts, strict=True)))
    return sums


def some(seed: int, count: int, skill: float = 0.6) -> PictureSums:
    """Pictures of two masks each, whose IoU is about `skill`."""
    rng = np.random.default_rng(seed)
    unions = rng.integers(50, 500, (count, 2))
    shares = np.clip(skill + 0.2 * rng.normal(size=(count, 1)) * np.ones(2), 0, 1)
    return pictures(
        *[
            list(zip(i, u, strict=True))
            for i, u in zip((unions * shares).astype(int), unions, strict=True)
        ]
    )


def scores_of(drawn: list[Counts]) -> tuple[float, float]:
    scores = MaskScores()
    for counts in drawn:
        scores.add_counts(*map(list, zip(*counts, strict=True)))
    return scores.ciou, scores.miou


def test_the_interval_is_that_of_all_draws_of_three_pictures() -> None:
    """All 27 draws with replacement, each as likely: the quantiles of that law."""
    masks: list[Counts] = [[(1, 10), (2, 20)], [(5, 10)], [(90, 100), (0, 0)]]
    law = np.array([scores_of(list(draw)) for draw in product(masks, repeat=3)])
    # Levels whose ends lie well within one step of the law, so that chance cannot move them.
    for level in (0.5, 0.7, 0.95):
        found = bootstrap(pictures(*masks), draws=20_000, level=level, seed=1)
        for column, name in enumerate(("ciou", "miou")):
            sorted_law = np.sort(law[:, column])
            for end, at in (("low", (1 - level) / 2), ("high", (1 + level) / 2)):
                near = [sorted_law[min(int((at + e) * 27), 26)] for e in (-0.02, 0.02)]
                assert near[0] - 1e-9 <= getattr(found[name], end) <= near[1] + 1e-9
            assert found[name].value == scores_of(masks)[column]


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    population = some(0, 4000).table()
    true = population[:, 2].sum() / population[:, 3].sum()
    held = 0
    for seed in range(200):
        interval = bootstrap(some(1000 + seed, 60), draws=300, level=0.9, seed=seed)["miou"]
        held += interval.low <= true <= interval.high
    assert 0.82 <= held / 200 <= 0.97


def test_pictures_are_drawn_and_not_masks() -> None:
    """A picture of many equal masks is one draw: its interval is no narrower for them."""
    few = bootstrap(pictures([(1, 10)], [(9, 10)]), seed=2)["miou"]
    many = bootstrap(pictures([(1, 10)] * 50, [(9, 10)] * 50), seed=2)["miou"]
    assert (few.low, few.high) == pytest.approx((many.low, many.high))


def test_one_picture_or_none() -> None:
    alone = bootstrap(pictures([(1, 2), (1, 4)]))
    assert alone["ciou"].to_dict() == pytest.approx(
        {"value": 2 / 6, "low": 2 / 6, "high": 2 / 6, "level": 0.95}
    )
    empty = {"value": None, "low": None, "high": None, "level": 0.95}
    assert bootstrap(PictureSums())["miou"].to_dict() == empty


def test_a_seed_repeats_and_another_differs() -> None:
    sums = some(3, 50)
    assert bootstrap(sums, seed=4) == bootstrap(sums, seed=4)
    assert bootstrap(sums, seed=4) != bootstrap(sums, seed=5)
    other = some(4, 50)
    assert compare(sums, other, draws=100, seed=4) == compare(sums, other, draws=100, seed=4)


def test_the_order_of_the_pictures_changes_nothing() -> None:
    sums = some(5, 40)
    turned = PictureSums(dict(reversed(sums.pictures.items())))
    assert bootstrap(sums) == bootstrap(turned)


def test_the_tables_of_draws_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing a few at a time gives the numbers of drawing all at once."""
    first, second = some(6, 30), some(7, 30)
    at_once = bootstrap(first, draws=50), compare(first, second, draws=50)
    monkeypatch.setattr("flmm_core.metrics.resampling._CELLS", 100)
    assert repr((bootstrap(first, draws=50), compare(first, second, draws=50))) == repr(at_once)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_p_value_is_the_share_of_all_exchanges(count: int) -> None:
    """All 2^n ways to exchange the pictures' results, scored by the definition."""
    rng = np.random.default_rng(count)
    masks = [
        [
            [(int(rng.integers(0, u + 1)), int(u)) for u in rng.integers(1, 30, 2)]
            for _ in range(count)
        ]
        for _ in range(2)
    ]
    observed = np.subtract(scores_of(masks[1]), scores_of(masks[0]))
    all_ways = []
    for exchange in product([0, 1], repeat=count):
        sides = [[masks[(side + e) % 2][n] for n, e in enumerate(exchange)] for side in (0, 1)]
        all_ways.append(np.subtract(scores_of(sides[1]), scores_of(sides[0])))
    exact = (np.abs(all_ways) >= np.abs(observed) - 1e-12).mean(axis=0)
    found = compare(pictures(*masks[0]), pictures(*masks[1]), draws=10_000, seed=3)
    for column, name in enumerate(("ciou", "miou")):
        assert found[name].difference.value == pytest.approx(observed[column], abs=1e-12)
        assert found[name].p_value == pytest.approx(exact[column], abs=0.02)


def test_a_system_does_not_differ_from_itself() -> None:
    found = compare(some(8, 20), some(8, 20), draws=200)["ciou"]
    assert found.p_value == 1
    assert (found.difference.value, found.difference.low, found.difference.high) == (0, 0, 0)


def test_a_clear_difference_is_found_and_is_never_certain() -> None:
    worse, better = some(9, 40, 0.4), some(10, 40, 0.7)
    for found in compare(worse, better, draws=999).values():
        assert found.p_value == 1 / 1000
        assert found.difference.low > 0
        assert found.second - found.first == found.difference.value
    assert json.loads(json.dumps(compare(worse, better, draws=9)["ciou"].to_dict()))["draws"] == 9


def test_chance_differences_are_found_as_rarely_as_they_should() -> None:
    """Two systems of equal skill: p <= 0.1 in about a tenth of the data sets."""
    small = [
        compare(some(2 * seed + 500, 25), some(2 * seed + 501, 25), draws=199, seed=seed)["miou"]
        for seed in range(200)
    ]
    assert 0.04 <= np.mean([found.p_value <= 0.1 for found in small]) <= 0.17


def test_each_kind_of_score_keeps_its_rules_for_empty_masks() -> None:
    reason, generalised, sums = ReasonScores(), GeneralisedScores(), PictureSums()
    reason.add_counts([0], [0])
    generalised.add_counts([0], [7], no_target=[True], says_none=[True])
    sums.add("a", reason)
    sums.add("b", generalised)
    sums.add("c", MaskScores())  # nothing was scored, so there is nothing to draw
    assert sums.table().tolist() == [[0, 0, 1, 1], [0, 0, 1, 1]]
    assert bootstrap(sums)["miou"].low == 1


def test_only_results_of_the_same_data_are_compared() -> None:
    with pytest.raises(DataError) as missing:
        compare(pictures([(1, 2)], [(1, 2)]), pictures([(1, 2)]))
    assert str(missing.value) == (
        "Cannot compare 2 pictures with 1.\n"
        "'001' has 1 masks in the first and 0 in the second.\n"
        "Compare results of the same data, protocol and limit."
    )
    with pytest.raises(DataError, match="'000' has 1 masks in the first and 2 in the second"):
        compare(pictures([(1, 2)]), pictures([(1, 2), (1, 2)]))
    with pytest.raises(DataError, match="Cannot compare 0 pictures with 0"):
        compare(PictureSums(), PictureSums())
