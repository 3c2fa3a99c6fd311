"""A real server over loopback: in a thread of this process, or as a process of its own."""

from __future__ import annotations

import base64
import io
import json
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import psutil
from PIL import Image

from flmm_core.serving.app import create_app
from flmm_core.serving.limits import Limits
from flmm_core.serving.server import Server, listen, serve, url_of


@contextmanager
def running(grounders: Any, limits: Limits | None = None, **options: Any) -> Iterator[httpx.Client]:
    """A client of a server that runs meanwhile."""
    limits = limits or Limits()
    app = create_app(grounders, limits=limits, **options)
    started = threading.Event()
    with listen("127.0.0.1", 0) as listening:
        server = Server(app, limits, started=started.set)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            assert started.wait(10)
            with httpx.Client(base_url=url_of(listening), timeout=30) as client:
                yield client
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


def encoded(image: Image.Image, kind: str = "png") -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind)
    return file.getvalue()


def data_url(image: Image.Image) -> str:
    return "data:image/png;base64," + base64.b64encode(encoded(image)).decode()


def address_of(client: httpx.Client) -> tuple[str, int]:
    """For raw sockets."""
    parts = urlsplit(str(client.base_url))
    return str(parts.hostname), int(parts.port or 0)


@contextmanager
def process(
    limits: dict[str, Any], **options: Any
) -> Iterator[tuple[psutil.Process, httpx.Client]]:
    """A process that serves a toy model, and a client of it; a signal may end it meanwhile."""
    given = json.dumps([limits, options])
    command = [sys.executable, "-m", "tests.serving.running", given]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True
    ) as running_process:
        try:
            assert running_process.stdout
            url = running_process.stdout.readline().strip()
            with httpx.Client(base_url=url, timeout=60) as client:
                yield psutil.Process(running_process.pid), client
        finally:
            running_process.terminate()
            running_process.wait(60)


def stopped_with(
    server: psutil.Process, client: httpx.Client, *, requests: int, phrases: int
) -> tuple[int, set[int]]:
    """Send SIGTERM while so many requests run or wait: the exit code, and their statuses."""
    image = data_url(Image.new("RGB", (48, 48)))

    def ask(_: int) -> int:
        body = {"image": image, "phrases": ["a star"] * phrases}
        return client.post("/v1/ground", json=body).status_code

    with ThreadPoolExecutor(requests) as threads:
        answers = [threads.submit(ask, each) for each in range(requests)]
        while "flmm_waiting_requests 0.0" in client.get("/metrics").text:
            time.sleep(0.01)
        server.send_signal(signal.SIGTERM)
        return server.wait(30), {each.result() for each in answers}


def main() -> int:
    """Serve a toy model with limits and options given as JSON; prints the URL."""
    from tests.flows import assemble
    from tests.models import build

    limits, options = json.loads(sys.argv[1])
    listening = listen("127.0.0.1", 0)
    app = create_app(assemble(build("qwen")), limits=Limits(**limits), **options)
    started = partial(print, url_of(listening), flush=True)
    return serve(app, listening, Limits(**limits), started=started)


if __name__ == "__main__":
    sys.exit(main())
