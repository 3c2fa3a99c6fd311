"""`flmm serve`: grounding and conversation over HTTP (extra `serve`).

    server.py   one uvicorn process: time limits of connections, signals, exit code
    app.py      `create_app`: routes and what all of them share
    reading.py  the body of a request, within limits      images.py, fetch.py  the image in it
    worker.py   one thread owns the models; what waits is grounded in one batch
    ground.py   POST /v1/ground                           chat.py  POST /v1/chat/completions
    status.py   /healthz, /metrics                        reference.py  /docs

A router of one's own reaches the models by `service(request)`, as these do, and is passed to
`create_app(routers=[...])`. Importing this package loads none of it.
"""

from __future__ import annotations

from importlib.util import find_spec

from flmm_core.errors import MissingExtraError

NEEDED = {
    "fastapi": "fastapi",
    "uvicorn": "uvicorn",
    "python_multipart": "python-multipart",
    "prometheus_client": "prometheus-client",
    "httpx": "httpx",
}
"""Module -> distribution of the extra `serve`."""


def require_extra(asked: str = "The server needs packages that are not installed.") -> None:
    """`MissingExtraError` unless the extra `serve` is installed."""
    missing = [package for module, package in NEEDED.items() if find_spec(module) is None]
    if missing:
        raise MissingExtraError(
            asked,
            found=f"Missing: {', '.join(missing)}.",
            repair="Install them with pip install 'flmm[serve]'.",
        )
