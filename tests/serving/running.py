"""A real server over loopback, in a thread of this process."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from PIL import Image

from flmm_core.serving.app import create_app
from flmm_core.serving.limits import Limits
from flmm_core.serving.server import Server, listen, url_of


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
