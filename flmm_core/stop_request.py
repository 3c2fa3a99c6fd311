"""Ctrl-C and SIGTERM that wait for the end of a step, so that what was learned can be saved."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class StopRequest:
    """While it is entered, the first Ctrl-C or SIGTERM only sets `asked`; a second one stops.

    Outside the main thread, where Python handles no signals, nothing is changed.

    Attributes:
        asked: Whether somebody wants an end.
        at_once: Set it where nothing would be lost: then the first one stops, too.
    """

    def __init__(self) -> None:
        self.asked = False
        self.at_once = False
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked or self.at_once:
            raise KeyboardInterrupt
        self.asked = True
