"""Charts as inline SVG: no library, no script, colours from the page's style sheet.

Each is about as wide as a telephone, so that its text stays readable there; wider pages put
several side by side. A backbone has a colour and a shape, so that neither is needed alone; its
methods differ in how the shape is filled. All text is escaped: `Markup.format` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from markupsafe import Markup

from flmm_core.report.scores import Score
from flmm_core.report.slices import Reliability, Slicing
from flmm_core.report.table import interval, percent

WIDTH = 340
COLOURS, FILLS = 7, 4
LEFT, RIGHT, TOP, BOTTOM = 34, 10, 12, 34
"""Margins around a plot."""


@dataclass(frozen=True)
class Sign:
    """How a system is drawn.

    Attributes:
        number: Of its backbone: the colour and the shape.
        fill: Of its method: solid, hollow, half, dashed.
    """

    number: int
    fill: int = 0

    @property
    def colour(self) -> str:
        """The style sheet's class for lines."""
        return f"s{self.number % COLOURS}"

    @property
    def look(self) -> str:
        """The style sheet's classes for areas."""
        return f"{self.colour} f{self.fill % FILLS}"


@dataclass(frozen=True)
class Bar:
    """One system's score on a source.

    Attributes:
        sign: How it is drawn.
        label: Its name.
        score: What is drawn.
    """

    sign: Sign
    label: str
    score: Score


@dataclass(frozen=True)
class Point:
    """One cell's cost and quality.

    Attributes:
        sign: How it is drawn.
        label: Its name.
        seconds: A phrase.
        score: How good.
    """

    sign: Sign
    label: str
    seconds: float
    score: Score


def marker(sign: Sign, x: float, y: float, size: float = 5, title: str = "") -> Markup:
    """A sign at a place, with a tooltip."""
    s = size
    shapes = (
        f"M{-s},0a{s},{s} 0 1,0 {2 * s},0a{s},{s} 0 1,0 {-2 * s},0z",
        f"M{-s * 0.9},{-s * 0.9}h{s * 1.8}v{s * 1.8}h{-s * 1.8}z",
        f"M0,{-s * 1.2}L{s * 1.1},{s * 0.85}H{-s * 1.1}z",
        f"M0,{-s * 1.3}L{s * 1.3},0L0,{s * 1.3}L{-s * 1.3},0z",
        f"M0,{s * 1.2}L{s * 1.1},{-s * 0.85}H{-s * 1.1}z",
        f"M{-s * 1.2},{-s * 1.1}h{s * 2.4}L{-s * 1.2},{s * 1.1}h{s * 2.4}z",
    )
    form = '<path class="mark {}" transform="translate({:.1f},{:.1f})" d="{}">{}</path>'
    shape = shapes[sign.number % len(shapes)]
    return Markup(form).format(sign.look, x, y, shape, _title(title))


def bars(entries: Sequence[Bar], name: str) -> Markup:
    """A horizontal bar a system, from 0 to 100 %, its interval as a whisker."""
    step, plot = 40, WIDTH - 56
    bottom = step * len(entries) + 2
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_line("grid", plot * share, 4, plot * share, bottom))
        anchor = "middle" if share else "start"
        parts.append(_text(percent(share, 0), plot * share, bottom + 14, "tick", anchor))
    for row, entry in enumerate(entries):
        y = row * step
        width = plot * (entry.score.value or 0)
        parts.append(_text(entry.label, 0, y + 14, "label"))
        form = '<rect class="bar {}" x="0" y="{}" width="{:.1f}" height="13" rx="2">{}</rect>'
        said = _said(entry.label, entry.score)
        parts.append(Markup(form).format(entry.sign.look, y + 20, width, _title(said)))
        parts += _whisker_across(entry.score, plot, y + 26.5)
        parts.append(_text(percent(entry.score.value), WIDTH, y + 31, "value", "end"))
    described = "; ".join(_said(entry.label, entry.score) for entry in entries)
    return _svg(f"{name}, cIoU in percent: {described}.", bottom + 18, parts)


def scatter(points: Sequence[Point], name: str) -> Markup:
    """Seconds a phrase (logarithmic) against cIoU; the upper left is best."""
    height = 240
    bottom = height - BOTTOM
    logs = [math.log10(max(point.seconds, 1e-6)) for point in points]
    low, high = min(logs) - 0.2, max(logs) + 0.2
    tops = [point.score.high or point.score.value or 0 for point in points]
    lows = [point.score.low or point.score.value or 0 for point in points]
    floor, roof = _range(min(lows), max(tops))

    def place_x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * (value - low) / (high - low)

    def place_y(value: float) -> float:
        return bottom - (bottom - TOP) * (value - floor) / (roof - floor)

    parts = _y_axis(floor, roof, place_y)
    for tick in _log_ticks(low, high):
        x = place_x(math.log10(tick))
        parts.append(_line("grid", x, TOP, x, bottom))
        parts.append(_text(f"{tick:g}", x, bottom + 14, "tick", "middle"))
    parts.append(_text("seconds a phrase", WIDTH - RIGHT, height - 4, "axis", "end"))
    for (x0, y0), (x1, y1) in pairwise(frontier(points)):
        ends = place_x(math.log10(max(x0, 1e-6))), place_x(math.log10(max(x1, 1e-6)))
        parts.append(_line("frontier", ends[0], place_y(y0), ends[1], place_y(y1)))
    for point, x_log in zip(points, logs, strict=True):
        if point.score.value is None:
            continue
        x = place_x(x_log)
        parts += _whisker_up(point.score, x, place_y, point.sign)
        said = f"{_said(point.label, point.score)}, {point.seconds:.3g} s a phrase"
        parts.append(marker(point.sign, x, place_y(point.score.value), 6, said))
    described = "; ".join(
        f"{_said(point.label, point.score)} at {point.seconds:.3g} s" for point in points
    )
    return _svg(f"{name}, cIoU against seconds a phrase: {described}.", height, parts)


def frontier(points: Sequence[Point]) -> list[tuple[float, float]]:
    """(seconds, score) of the points that none is both cheaper and better than, cheapest first."""
    best: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda p: (p.seconds, -(p.score.value or 0))):
        value = point.score.value or 0
        if not best or value > best[-1][1]:
            best.append((point.seconds, value))
    return best


def slices(series: Sequence[tuple[Sign, str, Slicing]], name: str) -> Markup:
    """mIoU of each group with its interval; a series a system, side by side in each group."""
    groups = list(dict.fromkeys(part.name for _, _, slicing in series for part in slicing.slices))
    most = {
        group: max(
            part.scores.phrases
            for _, _, slicing in series
            for part in slicing.slices
            if part.name == group
        )
        for group in groups
    }
    turned = any(len(group) > 9 for group in groups) or len(groups) > 6
    height = 276 if turned else 216
    bottom = height - (88 if turned else 38)
    step = (WIDTH - LEFT - RIGHT) / len(groups)

    def place_y(value: float) -> float:
        return bottom - (bottom - TOP) * value

    parts = _y_axis(0, 1, place_y)
    for number, group in enumerate(groups):
        x = LEFT + step * (number + 0.5)
        shown = group if len(group) <= 14 else f"{group[:13]}…"
        if turned:
            parts.append(
                Markup(
                    '<text class="tick" text-anchor="end" '
                    'transform="translate({:.1f},{}) rotate(-38)">{}</text>'
                ).format(x + 4, bottom + 13, shown)
            )
        else:
            parts.append(_text(shown, x, bottom + 15, "tick", "middle"))
            parts.append(_text(f"n {most[group]}", x, bottom + 29, "count", "middle"))
    described = []
    for place, (sign, label, slicing) in enumerate(series):
        by_name = {part.name: part.scores for part in slicing.slices}
        offset = step * 0.7 * ((place + 0.5) / len(series) - 0.5)
        for group, scores in by_name.items():
            score = scores["miou"]
            x = LEFT + step * (groups.index(group) + 0.5) + offset
            said = f"{_said(label, score)}, {group}, {scores.phrases} phrases"
            parts += _whisker_up(score, x, place_y, sign)
            parts.append(marker(sign, x, place_y(score.value or 0), 4.5, said))
        figures = ", ".join(f"{g} {percent(s['miou'].value)}" for g, s in by_name.items())
        described.append(f"{label}: {figures}")
    return _svg(f"{name}, mIoU in percent: {'; '.join(described)}.", height, parts)


def calibration(series: Sequence[tuple[Sign, str, Reliability]], name: str) -> Markup:
    """Stated probability against the share that is right; the diagonal is honest."""
    height = 330
    bottom = height - BOTTOM

    def place_x(value: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * value

    def place_y(value: float) -> float:
        return bottom - (bottom - TOP) * value

    parts = _y_axis(0, 1, place_y)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        parts.append(_text(percent(tick, 0), place_x(tick), bottom + 14, "tick", "middle"))
    parts.append(_line("diagonal", place_x(0), place_y(0), place_x(1), place_y(1)))
    parts.append(_text("stated probability, %", WIDTH - RIGHT, height - 4, "axis", "end"))
    described = []
    for sign, label, found in series:
        bins = np.flatnonzero(found.counts).tolist()
        places = [(place_x(found.stated[k]), place_y(found.right[k])) for k in bins]
        for (x0, y0), (x1, y1) in pairwise(places):
            parts.append(_line(f"curve {sign.colour}", x0, y0, x1, y1))
        most = max(found.counts)
        for k, (x, y) in zip(bins, places, strict=True):
            said = (
                f"{label}: stated {percent(found.stated[k])} %, right {percent(found.right[k])} % "
                f"of {found.counts[k]} phrases"
            )
            parts.append(marker(sign, x, y, 3 + 4 * math.sqrt(found.counts[k] / most), said))
        described.append(f"{label}: expected calibration error {percent(found.error)} %")
    return _svg(
        f"{name}, stated probability against share right. {'; '.join(described)}.", height, parts
    )


def _svg(description: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg viewBox="0 0 {} {}" role="img" aria-label="{}" xmlns="http://www.w3.org/2000/svg">{}</svg>'
    ).format(WIDTH, height, description, Markup("").join(parts))


def _title(text: str) -> Markup:
    return Markup("<title>{}</title>").format(text) if text else Markup("")


def _text(text: str, x: float, y: float, kind: str, anchor: str = "start") -> Markup:
    return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(
        kind, x, y, anchor, text
    )


def _line(kind: str, x0: float, y0: float, x1: float, y1: float) -> Markup:
    return Markup('<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>').format(
        kind, x0, y0, x1, y1
    )


def _whisker_across(score: Score, plot: float, y: float) -> list[Markup]:
    if score.low is None or score.high is None:
        return []
    x0, x1 = plot * score.low, plot * score.high
    return [
        _line("whisker", x0, y, x1, y),
        _line("whisker", x0, y - 4, x0, y + 4),
        _line("whisker", x1, y - 4, x1, y + 4),
    ]


def _whisker_up(
    score: Score, x: float, place_y: Callable[[float], float], sign: Sign
) -> list[Markup]:
    if score.low is None or score.high is None:
        return []
    return [_line(f"curve {sign.colour}", x, place_y(score.low), x, place_y(score.high))]


def _y_axis(floor: float, roof: float, place_y: Callable[[float], float]) -> list[Markup]:
    parts = []
    for step in range(5):
        value = floor + (roof - floor) * step / 4
        y = place_y(value)
        parts.append(_line("grid", LEFT, y, WIDTH - RIGHT, y))
        parts.append(_text(percent(value, 0), LEFT - 6, y + 4, "tick", "end"))
    return parts


def _range(low: float, high: float) -> tuple[float, float]:
    """The values' range, enlarged to fifths of the whole that four steps part evenly."""
    floor = max(0.0, math.floor(low * 5 - 0.2) / 5)
    roof = min(1.0, math.ceil(high * 5 + 0.2) / 5)
    return floor, max(roof, floor + 0.2)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten within the range; powers alone if these are many."""
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**p for p in powers for s in steps if low <= math.log10(s) + p <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: len(ticks) // 5]


def _said(label: str, score: Score) -> str:
    ends = interval(score)
    return f"{label} {percent(score.value)}" + (f" ({ends})" if ends else "")
