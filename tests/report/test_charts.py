"""Charts show what they are given, within their frame."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from itertools import product

import numpy as np
import pytest

from flmm_core.report.charts import WIDTH, Mark, Sign, frontier, marker, scatter
from flmm_core.report.scores import Estimate


def marks(seed: int, count: int) -> list[Mark]:
    rng = np.random.default_rng(seed)
    return [
        Mark(Sign(n), f"s{n}", Estimate(round(rng.random(), 1)), float(10 ** rng.uniform(-3, 1)))
        for n in range(count)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_the_frontier_is_what_nothing_beats(seed: int) -> None:
    shown = marks(seed, 12)

    def beaten(point: Mark) -> bool:
        return any(
            other.seconds <= point.seconds
            and (other.score.value or 0) >= (point.score.value or 0)
            and (other.seconds, other.score) != (point.seconds, point.score)
            for other in shown
        )

    expected = sorted((p.seconds, p.score.value or 0) for p in shown if not beaten(p))
    assert [(mark.seconds, mark.score.value or 0) for mark in frontier(shown)] == expected


@pytest.mark.parametrize("seed", range(5))
def test_points_stay_within_the_frame_and_in_order(seed: int) -> None:
    shown = marks(seed, 8)
    svg = ET.fromstring(scatter(shown, "a"))
    height = float(svg.attrib["viewBox"].split()[3])
    drawn = [e for e in svg.iter() if e.attrib.get("class", "").startswith("mark")]
    places = [
        [float(n) for n in re.findall(r"-?[\d.]+", mark.attrib["transform"])] for mark in drawn
    ]
    assert len(places) == 8
    assert all(0 < x < WIDTH and 0 < y < height for x, y in places)
    for (p, (x, y)), (q, (u, v)) in product(zip(shown, places, strict=True), repeat=2):
        assert (p.seconds < q.seconds) <= (x <= u)
        assert ((p.score.value or 0) < (q.score.value or 0)) <= (y >= v)
    for point in shown:
        assert point.label in svg.attrib["aria-label"]


def test_one_point_and_no_time_at_all_are_drawn() -> None:
    for seconds in (0.0, 1.0):
        svg = scatter([Mark(Sign(0), "a", Estimate(1.0, 1.0, 1.0), seconds)], "x")
        assert "nan" not in svg
        assert "inf" not in svg


def test_no_two_systems_look_alike() -> None:
    looks = {
        re.sub(r' transform="[^"]*"', "", marker(Sign(number, fill), 0, 0))
        for number, fill in product(range(42), range(4))
    }
    assert len(looks) == 42 * 4
