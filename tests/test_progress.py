"""Progress: plain lines with the time left, a bar on a terminal, silence by default."""

from __future__ import annotations

import io
import signal

import pytest
import rich.console

from flmm_core.progress import LineProgress, Progress, StopRequest, TerminalProgress


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
