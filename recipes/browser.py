"""Drives a real browser over its DevTools protocol, through pipes."""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-extensions", "--remote-debugging-pipe",
)  # fmt: skip
KEYS = {"Enter": 13, "Escape": 27, "Tab": 9, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40}
PATIENCE = 30.0
"""Seconds that a page may take to come to a state."""


def find_browser() -> str | None:
    """The path of the first installed browser."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Page:
    """A tab of a running browser.

    Attributes:
        requests: The URL of everything that was asked for, also of what was refused.
        complaints: Errors and warnings in the console since a page was opened.
    """

    def __init__(self, writing: int, reading: int) -> None:
        self.writing, self.reading = writing, reading
        self.rest, self.number, self.session = b"", 0, ""
        self.requests: list[str] = []
        self.complaints: list[str] = []
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "DOM"):
            self.send(f"{domain}.enable")

    def send(self, method: str, **params: Any) -> Any:
        """Give a command, and return its result."""
        self.number += 1
        command = {"id": self.number, "method": method, "params": params}
        if self.session:
            command["sessionId"] = self.session
        os.write(self.writing, json.dumps(command).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reading], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            self.rest += os.read(self.reading, 1 << 20)
        message, self.rest = self.rest.split(b"\0", 1)
        told: dict[str, Any] = json.loads(message)
        params = told.get("params", {})
        match told.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Runtime.consoleAPICalled" if params["type"] in ("error", "warning", "assert"):
                self.complaints.append(json.dumps(params["args"]))
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(params["exceptionDetails"]))
            case "Log.entryAdded" if params["entry"]["level"] in ("error", "warning"):
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url')}")
        return told

    def open(self, url: str, width: int = 1400, height: int = 1000, **features: str) -> Self:
        """Load a page in a window of a size; `features` are media features with _ for -."""
        media = [{"name": key.replace("_", "-"), "value": v} for key, v in features.items()]
        self.send("Emulation.setEmulatedMedia", features=media)
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width, height=height, deviceScaleFactor=1, mobile=width < 600,
        )  # fmt: skip
        self.complaints.clear()
        self.send("Page.navigate", url=url)
        return self

    def run(self, script: str) -> Any:
        """The value of an expression in the page; it may be a promise."""
        found = self.send(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def until(self, script: str, seconds: float = PATIENCE) -> Any:
        """Wait until an expression is true, and return its value."""
        end = time.monotonic() + seconds
        while not (value := self.run(script)):
            assert time.monotonic() < end, f"never true: {script}\n{self.complaints}"
            time.sleep(0.02)
        return value

    def place(self, selector: str, x: float = 0.5, y: float = 0.5) -> dict[str, float]:
        """A place in an element, scrolled into view, in fractions of its size."""
        box = self.run(
            f"(e => {{ e.scrollIntoView({{block: 'nearest'}}); const b = e.getBoundingClientRect();"
            f" return [b.left, b.top, b.width, b.height]; }})(document.querySelector("
            f"{json.dumps(selector)}))"
        )
        return {"x": box[0] + x * box[2], "y": box[1] + y * box[3]}

    def move(self, selector: str, x: float = 0.5, y: float = 0.5) -> dict[str, float]:
        """Move the mouse onto an element."""
        place = self.place(selector, x, y)
        self.send("Input.dispatchMouseEvent", type="mouseMoved", **place)
        return place

    def click(self, selector: str, x: float = 0.5, y: float = 0.5) -> None:
        """Click an element with the left button."""
        place = self.move(selector, x, y)
        for kind in ("mousePressed", "mouseReleased"):
            self.send("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)

    def type(self, text: str) -> None:
        """Enter text where the focus is."""
        self.send("Input.insertText", text=text)

    def press(self, key: str, modifiers: int = 0) -> None:
        """Press a key of `KEYS`; modifier 8 is Shift."""
        code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ({"type": "keyDown", **text}, {"type": "keyUp"}):
            self.send("Input.dispatchKeyEvent", modifiers=modifiers, **kind, **code)

    def upload(self, selector: str, *files: Path) -> None:
        """Choose files in an <input type=file>."""
        root = self.send("DOM.getDocument")["root"]["nodeId"]
        node = self.send("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.send("DOM.setFileInputFiles", nodeId=node, files=[str(file) for file in files])

    def save_downloads(self, folder: Path) -> Callable[[str], Path]:
        """Let downloads go to a folder; the function returned waits for one by its name."""
        self.send("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(folder))

        def wait(name: str) -> Path:
            end = time.monotonic() + PATIENCE
            while not (folder / name).exists():
                assert time.monotonic() < end, f"{name} did not come: {list(folder.iterdir())}"
                self.run("0")
                time.sleep(0.02)
            return folder / name

        return wait

    def screenshot(self, *, whole: bool = False) -> bytes:
        """PNG of the window, or of the whole page."""
        taken = self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        return base64.b64decode(taken["data"])


@contextmanager
def opened(program: str | None = None) -> Iterator[Page]:
    """A browser with one tab and a profile of its own; by default the first that is installed."""
    program = program or find_browser()
    if program is None:
        raise SystemExit(f"There is no browser: none of {', '.join(NAMES)} is on the PATH.")
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()

    def pipes() -> None:  # in the child: the browser reads 3 and writes 4
        copies = os.dup(to_browser), os.dup(from_browser)
        os.dup2(copies[0], 3)
        os.dup2(copies[1], 4)

    with tempfile.TemporaryDirectory(prefix="flmm-browser-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [program, *FLAGS, f"--user-data-dir={profile}"],
            pass_fds=(3, 4), preexec_fn=pipes, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        try:
            yield Page(writing, reading)
        finally:
            os.close(writing)  # it ends when its pipe does
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            os.close(reading)
