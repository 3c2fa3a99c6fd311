"""One uvicorn process: time limits of connections, signals, exit code."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from flmm_core.errors import RunError, UsageError
from flmm_core.serving.limits import Limits
from flmm_core.serving.refusals import RefusalError

INTERRUPTED = 130
LOCAL_NAMES = "localhost", "127.0.0.1", "[::1]", "["
"""Names of this machine; the last is what earlier versions of Starlette make of `[::1]:8000`."""
SIGNALS = signal.SIGINT, signal.SIGTERM


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    Raises:
        UsageError: The host has no address.
        RunError: The port is taken or may not be used.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"The host '{host}' has no address.", found=f"{error}.", repair="Check --host."
        ) from error
    family, _, _, _, address = found[0]
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        raise RunError(
            f"The server cannot listen at {host}, port {port}.",
            found=f"{error.strerror}.",
            repair="Give another --port or --host.",
        ) from error


def is_local(listening: socket.socket) -> bool:
    """Whether only this machine can reach a socket."""
    return ipaddress.ip_address(listening.getsockname()[0].partition("%")[0]).is_loopback


def url_of(listening: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host, port = listening.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    app: FastAPI,
    listening: socket.socket,
    limits: Limits,
    *,
    started: Callable[[], None] = lambda: None,
) -> int:
    """Serve in this process until a signal; returns the exit code, see `Server`."""
    server = Server(app, limits, started=started)
    server.run(sockets=[listening])
    if app.state.service.worker.busy:
        # The model cannot be interrupted, and must not run while the interpreter is taken down.
        sys.stderr.flush()
        sys.stdout.flush()
        os._exit(1)
    return server.code


class Server(uvicorn.Server):
    """Serves until SIGTERM or Ctrl-C, then lets running requests finish.

    Attributes:
        code: The exit code: 0 after SIGTERM, 130 after Ctrl-C, 1 if running requests were cut off.
    """

    def __init__(
        self, app: FastAPI, limits: Limits, *, started: Callable[[], None] = lambda: None
    ) -> None:
        """`started` is called as soon as connections are accepted."""
        config = uvicorn.Config(
            app,
            http=_connection(limits),
            ws="none",
            loop="asyncio",
            lifespan="on",
            access_log=False,  # the log holds nothing of a request
            log_config=None,
            log_level="error",  # not a line for each request that is not HTTP
            server_header=False,
            timeout_keep_alive=math.ceil(limits.idle_seconds),
            timeout_graceful_shutdown=math.ceil(limits.stop_seconds),
            limit_concurrency=limits.connections,
            proxy_headers=False,
        )
        super().__init__(config)
        self.code = 0
        self._app = app
        self._say_started = started

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._say_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit or self._app.state.cut_off:
            self.code = 1

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        # uvicorn's own raises the signal again at the end, which hides the exit code.
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if sig == signal.SIGINT:
            self.code = INTERRUPTED
        super().handle_exit(sig, frame)


def _connection(limits: Limits) -> type[H11Protocol]:
    """uvicorn's protocol, which waits for nobody for ever: neither to send nor to receive."""

    class Connection(H11Protocol):
        late: asyncio.TimerHandle | None = None
        """Runs while a head, or what is left of a refused body, is expected."""
        deaf: asyncio.TimerHandle | None = None
        """Runs while the client receives nothing."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            idle = self.cycle is None or self.cycle.response_complete
            if idle and self.late is None:
                self._expect()
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._cancel_late()

        def on_response_complete(self) -> None:
            # What the client still sends of its body is thrown away, for a while: a connection
            # that is closed at once may lose the answer on its way.
            if self.conn.their_state is h11.SEND_BODY:
                self._expect()
            if self.transport.is_closing():
                self._end()
            super().on_response_complete()

        def timeout_keep_alive_handler(self) -> None:
            super().timeout_keep_alive_handler()
            self._end()

        def pause_writing(self) -> None:
            super().pause_writing()
            self._end()

        def resume_writing(self) -> None:
            if not self.transport.is_closing():
                self._cancel_deaf()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._cancel_late()
            self._cancel_deaf()
            super().connection_lost(exc)

        def send_400_response(self, msg: str) -> None:
            try:
                self._send_error(RefusalError(400, msg))
            except h11.LocalProtocolError:  # in the middle of an answer
                self.transport.close()
            self._end()

        def _expect(self) -> None:
            self._cancel_late()
            self.late = self.loop.call_later(limits.head_seconds, self._too_late)

        def _cancel_late(self) -> None:
            if self.late is not None:
                self.late.cancel()
                self.late = None

        def _too_late(self) -> None:
            self.late = None
            if self.transport.is_closing():
                return
            try:
                if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                    self._send_error(RefusalError(408, "The head of the request is late."))
            except h11.LocalProtocolError:
                pass
            self.transport.close()
            self._end()

        def _end(self) -> None:
            """Give the client time to receive what is written already."""
            if self.deaf is None:
                self.deaf = self.loop.call_later(limits.read_seconds, self.transport.abort)

        def _cancel_deaf(self) -> None:
            if self.deaf is not None:
                self.deaf.cancel()
                self.deaf = None

        def _send_error(self, refusal: RefusalError) -> None:
            body = json.dumps(refusal.body()).encode()
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            answer = h11.Response(status_code=refusal.status, headers=headers)
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
            self.transport.close()

    return Connection
