"""Progress: plain lines with the time left, a bar on a terminal, silence by default."""

from __future__ import annotations

import io
import signal

import pytest
import rich.console
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len

from flmm_core.loader.throughput import Rates
from flmm_core.progress import LineProgress, Progress, StopRequest, TerminalProgress, fitted


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_lines_come_every_few_seconds_with_the_time_left() -> None:
    lines: list[str] = []
    clock = Clock()
    progress = LineProgress(lines.append, every=10, clock=clock)
    progress.say("Starting.")
    with progress.stage("Training", total=100, done=20) as stage:
        for _ in range(80):
            clock.now += 2
            stage.advance(loss=0.12345)
    assert lines[:3] == [
        "Starting.",
        "Training: 25/100, 0:02:30 left, loss 0.1235",
        "Training: 30/100, 0:02:20 left, loss 0.1235",
    ]
    assert lines[-1] == "Training: 100/100 in 0:02:40, loss 0.1235"
    assert len(lines) == 1 + 15 + 1


def test_hours_are_shown_when_there_are_any() -> None:
    lines: list[str] = []
    clock = Clock()
    with LineProgress(lines.append, clock=clock).stage("Long", total=2) as stage:
        clock.now = 3725
        stage.advance()
    assert lines == ["Long: 1/2, 1:02:05 left", "Long: 1/2 in 1:02:05"]


def test_a_terminal_gets_a_bar() -> None:
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=100)
    progress = TerminalProgress(console)
    with progress.stage("Training", total=3) as stage:
        stage.advance(3, loss=0.5)
        progress.say("half [bold]way")
    shown = screen.getvalue()
    assert "Training" in shown
    assert "3/3" in shown
    assert "loss 0.5" in shown
    assert "half [bold]way" in shown


RATES = st.builds(Rates, st.floats(0, 1e6), st.floats(0, 1e6), st.floats(0, 1))
STAGE = {
    "name": st.text(max_size=100) | st.just("refcoco:/data/" + "深い/" * 40 + "@val"),
    "total": st.integers(1, 10**9),
    "rates": RATES,
    "loss": st.floats(allow_nan=True, allow_infinity=True),
}


@settings(max_examples=40, deadline=None)
@given(**STAGE, seconds=st.floats(10, 1e6))
def test_a_line_of_a_log_has_at_most_80_columns(
    name: str, total: int, rates: Rates, loss: float, seconds: float
) -> None:
    lines: list[str] = []
    clock = Clock()
    with LineProgress(lines.append, clock=clock).stage(name, total + 1) as stage:
        clock.now = seconds
        stage.advance(total, loss=loss, **rates.figures())
        stage.advance(1, loss=loss, **rates.figures())
    assert len(lines) == 2
    for line in lines:
        assert cell_len(line) <= 80
        assert len(line.splitlines()) == 1
        assert f"/{total + 1}" in line


@settings(max_examples=15, deadline=None)
@given(**STAGE, width=st.integers(30, 120))
def test_a_bar_is_a_line_of_the_terminal(
    name: str, total: int, rates: Rates, loss: float, width: int
) -> None:
    screen = io.StringIO()
    console = rich.console.Console(file=screen, force_terminal=True, width=width)
    with TerminalProgress(console).stage(name, total + 1) as stage:
        stage.advance(total, loss=loss, **rates.figures())
    shown = rich.console.Console(file=io.StringIO(), width=10**6)
    last = shown.render_str(rich.text.Text.from_ansi(screen.getvalue()).plain).plain
    for line in last.splitlines():
        assert cell_len(line) <= width


@pytest.mark.parametrize(("done", "total"), [(305, 900), (99_999, 100_000)])
def test_a_training_line_has_room_for_what_matters(done: int, total: int) -> None:
    figures = [f"{key} {value}" for key, value in Rates(10.96, 38.64, 0.12).figures().items()]
    line = fitted("Training", f"{done}/{total}, 10:07:27 left", ["loss 0.6549", *figures])
    assert "loss 0.6549, images/s 11, waiting 12 %" in line


def test_a_long_name_loses_its_middle_and_the_count_stays() -> None:
    source = "refcoco:/data/of/the/department/of/images/coco/2014/annotations@val"
    line = fitted(source, "305/900, 0:07:27 left", ["cIoU 0.5"])
    assert line.startswith("refcoco:/data/of")
    assert line.endswith("annotations@val: 305/900, 0:07:27 left, cIoU 0.5")
    assert len(line) == 80


def test_the_base_is_silent() -> None:
    with Progress().stage("Training", total=3) as stage:
        stage.advance(1, loss=0.5)
    Progress().say("nothing")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_waits_for_the_work_and_the_second_does_not(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with StopRequest() as stop:
        signal.raise_signal(number)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
        with pytest.raises(KeyboardInterrupt), stop.immediate():
            raise AssertionError("work that is lost was begun after the request")
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_where_nothing_is_to_be_saved_the_first_signal_stops(number: signal.Signals) -> None:
    with StopRequest() as outer, outer.immediate():
        with StopRequest() as inner:
            signal.raise_signal(number)
            assert inner.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(number)
    with StopRequest() as stop:
        with pytest.raises(KeyboardInterrupt), stop.immediate():
            signal.raise_signal(number)
        signal.raise_signal(number)  # again one that waits
        assert stop.asked
