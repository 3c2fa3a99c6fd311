"""Charts as inline SVG: text stays text, colors come from the page's style sheet.

Each is about as wide as a phone, so that its text stays readable there; wider pages put several
side by side. A backbone has a color and a shape, so that neither is needed alone; its methods
differ in how the shape is filled. All text is escaped: `Markup.format` does it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import mean

from markupsafe import Markup

from flmm_core.evaluation.reliability import Reliability
from flmm_core.report.scores import Estimate, Slicing
from flmm_core.report.table import interval, percent

WIDTH = 340
COLORS, FILLS = 7, 4
LEFT, RIGHT, TOP = 34, 10, 12
"""Margins around a plot."""
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1)


@dataclass(frozen=True)
class Sign:
    """How a system is drawn: `number`, of its backbone, is the color and the shape."""

    number: int
    fill: int = 0

    @property
    def color(self) -> str:
        return f"s{self.number % COLORS}"


@dataclass(frozen=True)
class Mark:
    """One system's cIoU on a source, and its seconds per phrase."""

    sign: Sign
    label: str
    score: Estimate
    seconds: float


@dataclass(frozen=True)
class Chart:
    """A chart, its figures as a table where they stand nowhere else, and what is not drawn."""

    title: str
    svg: Markup
    table: Sequence[Sequence[str]] = ()
    note: str = ""
    legend: Sequence[tuple[Sign, str]] = ()


@dataclass(frozen=True)
class Curve:
    """A figure over the steps of a run: (step, value), in order."""

    sign: Sign
    label: str
    points: Sequence[tuple[int, float]]


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
    shape = shapes[sign.number % len(shapes)]
    look = f"{sign.color} f{sign.fill % FILLS}"
    tooltip = Markup("<title>{}</title>").format(title) if title else ""
    form = '<path class="mark {}" transform="translate({:.1f},{:.1f})" d="{}">{}</path>'
    return Markup(form).format(look, x, y, shape, tooltip)


def scatter(marks: Sequence[Mark], name: str) -> Markup:
    """Seconds per phrase (logarithmic) against cIoU; the upper left is best."""
    ends = [end for mark in marks for end in (mark.score.low, mark.score.value, mark.score.high)]
    known = [end for end in ends if end is not None] or [0.0]
    # Enlarged to fifths of the whole.
    floor = max(0.0, math.floor(min(known) * 5 - 0.2) / 5)
    roof = max(min(1.0, math.ceil(max(known) * 5 + 0.2) / 5), floor + 0.2)
    logs = {mark: math.log10(max(mark.seconds, 1e-6)) for mark in marks}
    low, high = min(logs.values()) - 0.2, max(logs.values()) + 0.2
    places = {mark: (log - low) / (high - low) for mark, log in logs.items()}
    plot = _Plot(240, 34, floor, roof, "seconds per phrase")
    for tick in _log_ticks(low, high):
        share = (math.log10(tick) - low) / (high - low)
        plot.line("grid", (share, floor), (share, roof))
        plot.tick(share, f"{tick:g}")
    plot.curve("frontier", [(places[mark], mark.score.value or 0) for mark in frontier(marks)])
    described = []
    for mark in marks:
        said, seconds = _said(mark.label, mark.score), f"{mark.seconds:.3g} s"
        plot.mark(mark.sign, places[mark], mark.score, 6, f"{said}, {seconds} per phrase")
        described.append(f"{said} at {seconds}")
    return plot.svg(f"{name}, cIoU against seconds per phrase: {'; '.join(described)}.")


def frontier(marks: Sequence[Mark]) -> list[Mark]:
    """Those that none is both cheaper and better than, cheapest first."""
    best: list[Mark] = []
    for mark in sorted(marks, key=lambda m: (m.seconds, -(m.score.value or 0))):
        if not best or (mark.score.value or 0) > (best[-1].score.value or 0):
            best.append(mark)
    return best


def slices(series: Sequence[tuple[Sign, str, Slicing]], name: str) -> Markup:
    """mIoU of each group with its interval; the systems side by side in each group."""
    most: dict[str, int] = {}
    for _, _, slicing in series:
        for group, scores in slicing.groups.items():
            most[group] = max(most.get(group, 0), scores.phrases)
    turned = any(len(group) > 9 for group in most) or len(most) > 6
    plot = _Plot(276, 88) if turned else _Plot(216, 38)
    centers = {group: (number + 0.5) / len(most) for number, group in enumerate(most)}
    for group, center in centers.items():
        shown = group if len(group) <= 14 else f"{group[:13]}…"
        plot.tick(center, shown, turned=turned)
        if not turned:
            plot.tick(center, f"n {most[group]}", "count", below=29)
    described = []
    for place, (sign, label, slicing) in enumerate(series):
        offset = 0.7 * ((place + 0.5) / len(series) - 0.5) / len(most)
        figures = []
        for group, scores in slicing.groups.items():
            score = scores["miou"]
            said = f"{_said(label, score)}, {group}, {scores.phrases} phrases"
            plot.mark(sign, centers[group] + offset, score, 4.5, said)
            figures.append(f"{group} {percent(score.value)}")
        described.append(f"{label}: {', '.join(figures)}")
    return plot.svg(f"{name}, mIoU in percent: {'; '.join(described)}.")


def calibration(series: Sequence[tuple[Sign, str, Reliability]], name: str) -> Markup:
    """Stated probability against the share that is right; the diagonal is honest."""
    plot = _Plot(330, 34, label="stated probability, %")
    for tick in QUARTERS:
        plot.tick(tick, percent(tick, 0))
    plot.line("diagonal", (0, 0), (1, 1))
    described = []
    for sign, label, found in series:
        bins = [
            (stated, right, count)
            for stated, right, count in zip(found.stated, found.right, found.counts, strict=True)
            if count
        ]
        plot.curve(f"curve {sign.color}", [(stated, right) for stated, right, _ in bins])
        for stated, right, count in bins:
            size = 3 + 4 * math.sqrt(count / max(found.counts))
            said = f"stated {percent(stated)} %, right {percent(right)} % of {count} phrases"
            plot.mark(sign, stated, Estimate(right), size, f"{label}: {said}")
        described.append(f"{label}: expected calibration error {percent(found.error)} %")
    return plot.svg(f"{name}, stated probability against share right. {'; '.join(described)}.")


def curves(
    shown: Sequence[Curve],
    name: str,
    *,
    best: int | None = None,
    say: Callable[[float], str] = lambda value: f"{value:.3g}",
) -> Markup:
    """Figures over the steps of a run, from 0 up; with few steps each is marked.

    Args:
        best: The step at which a vertical line stands.
        say: The text of a value.
    """
    steps = [step for curve in shown for step, _ in curve.points] or [0]
    first, last = min(steps), max(max(steps), min(steps) + 1)
    values = [value for curve in shown for _, value in curve.points if math.isfinite(value)]
    plot = _Plot(216, 34, 0.0, _round_up(max(values, default=1.0)), "step", say)

    def place(step: float) -> float:
        return (step - first) / (last - first)

    for share in (0, 0.5, 1):
        middle = round(first + share * (last - first))
        plot.tick(share, f"{middle / 1000:g}k" if middle >= 10_000 else str(middle))
    if best is not None:
        plot.line("diagonal", (place(best), 0), (place(best), plot.roof))
    described = []
    for curve in shown:
        points = _thinned([point for point in curve.points if math.isfinite(point[1])])
        if not points:
            continue
        plot.curve(f"curve {curve.sign.color}", [(place(step), value) for step, value in points])
        if len(points) <= 20:
            for step, value in points:
                said = f"{curve.label} {say(value)} after step {step:g}"
                large = 6 if step == best else 3.5
                plot.mark(curve.sign, place(step), Estimate(value), large, said)
        described.append(f"{curve.label} from {say(points[0][1])} to {say(points[-1][1])}")
    about = f"{name}, steps {first} to {last}: {'; '.join(described) or 'nothing yet'}."
    return plot.svg(about)


def _thinned(points: Sequence[tuple[int, float]], most: int = 200) -> Sequence[tuple[float, float]]:
    """The points, or the means of groups of neighbors if they are more than a chart can show."""
    group = -(-len(points) // most)
    if group < 2:
        return points
    return [
        (mean(step for step, _ in part), mean(value for _, value in part))
        for part in (points[start : start + group] for start in range(0, len(points), group))
    ]


def _round_up(value: float) -> float:
    """The next number whose quarters are short: 1, 2, 4, 6 or 8 times a power of ten."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(times * power for times in (1, 2, 4, 6, 8, 10, 20) if times * power >= value)


class _Plot:
    """A frame whose x goes from 0 to 1; y is a fraction of 1 in percent, unless `say` is given."""

    def __init__(
        self,
        height: int,
        below: int,
        floor: float = 0.0,
        roof: float = 1.0,
        label: str = "",
        say: Callable[[float], str] = lambda value: percent(value, 0),
    ) -> None:
        self.height, self.bottom = height, height - below
        self.floor, self.roof = floor, roof
        self.parts: list[Markup] = []
        for share in QUARTERS:
            value = floor + (roof - floor) * share
            self.line("grid", (0, value), (1, value))
            y = self.place(0, value)[1]
            self.text(say(value), LEFT - 6, y + 4, "tick", "end")
        if label:
            self.text(label, WIDTH - RIGHT, height - 4, "axis", "end")

    def place(self, x: float, y: float) -> tuple[float, float]:
        """In units of the SVG."""
        share = (y - self.floor) / (self.roof - self.floor)
        return LEFT + (WIDTH - LEFT - RIGHT) * x, self.bottom - (self.bottom - TOP) * share

    def line(self, kind: str, start: tuple[float, float], end: tuple[float, float]) -> None:
        form = '<line class="{}" x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}"/>'
        self.parts.append(Markup(form).format(kind, *self.place(*start), *self.place(*end)))

    def curve(self, kind: str, points: Sequence[tuple[float, float]]) -> None:
        for start, end in pairwise(points):
            self.line(kind, start, end)

    def text(self, text: str, x: float, y: float, kind: str, anchor: str, turn: str = "") -> None:
        form = '<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}"{}>{}</text>'
        self.parts.append(Markup(form).format(kind, x, y, anchor, turn, text))

    def tick(
        self, x: float, text: str, kind: str = "tick", below: int = 14, *, turned: bool = False
    ) -> None:
        place, y = self.place(x, 0)[0], self.bottom + below
        if turned:
            place, y = place + 4, self.bottom + 13
            turn = Markup(' transform="rotate(-38 {:.1f} {})"').format(place, y)
            self.text(text, place, y, kind, "end", turn)
        else:
            self.text(text, place, y, kind, "middle")

    def mark(self, sign: Sign, x: float, score: Estimate, size: float, title: str) -> None:
        """A marker at a score, on a whisker for its interval."""
        if score.value is None:
            return
        if score.low is not None and score.high is not None:
            self.line(f"curve {sign.color}", (x, score.low), (x, score.high))
        self.parts.append(marker(sign, *self.place(x, score.value), size, title))

    def svg(self, description: str) -> Markup:
        form = '<svg viewBox="0 0 {} {}" role="img" aria-label="{}">{}</svg>'
        parts = Markup("").join(self.parts)
        return Markup(form).format(WIDTH, self.height, description, parts)


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each power of ten within the range; fewer of each if these are many."""
    powers = range(math.floor(low) - 1, math.ceil(high) + 1)
    for steps in ((1, 2, 5), (1, 3), (1,)):
        ticks = [s * 10.0**p for p in powers for s in steps if low <= math.log10(s) + p <= high]
        if len(ticks) <= 6:
            return ticks
    return ticks[:: len(ticks) // 5]


def _said(label: str, score: Estimate) -> str:
    ends = interval(score)
    return f"{label} {percent(score.value)}" + (f" ({ends})" if ends else "")
