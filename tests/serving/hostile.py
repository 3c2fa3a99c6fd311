"""Requests that a server must survive: each is answered with a 4xx, or the connection is closed.

Everything goes through raw sockets, as no HTTP client would send most of it.
"""

from __future__ import annotations

import base64
import itertools
import random
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.serving import hostile_requests as requests
from tests.serving.hostile_requests import body_of, form, head, post

PATIENCE = 20.0
"""Seconds after which a server that says nothing is stuck."""
Address = tuple[str, int]


@dataclass(frozen=True)
class Attack:
    """What is sent, and how.

    Attributes:
        pieces: Sent one after the other, with `pause` seconds between them.
        then: "wait" for the answer, "half" close the sending side first, "reset" the connection,
            or never receive anything ("deaf").
    """

    name: str
    pieces: tuple[bytes, ...]
    pause: float = 0
    then: str = "wait"
    also: tuple[int, ...] = field(default=())


def launch(attack: Attack, address: Address) -> int | str:
    """The status of the answer, or "closed"; "stuck" if neither comes."""
    with socket.create_connection(address, timeout=PATIENCE) as connection:
        if attack.then == "deaf":
            return _deaf(connection, attack.pieces)
        try:
            for number, piece in enumerate(attack.pieces):
                if number and attack.pause and _spoken(connection, attack.pause):
                    break
                connection.sendall(piece)
            if attack.then == "half":
                connection.shutdown(socket.SHUT_WR)
            if attack.then == "reset":
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return "closed"
        except ConnectionError:
            pass  # it may have answered before it closed
        return _status(connection)


def _deaf(connection: socket.socket, pieces: tuple[bytes, ...]) -> str:
    """Ask and ask without receiving, until the server ends it."""
    end = time.monotonic() + PATIENCE
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.settimeout(0.2)
    for piece in itertools.cycle(pieces):
        try:
            connection.sendall(piece)
        except TimeoutError:
            pass
        except ConnectionError:
            return "closed"
        if time.monotonic() > end:
            break
    return "stuck"


def _spoken(connection: socket.socket, seconds: float) -> bool:
    connection.settimeout(seconds)
    try:
        connection.recv(1, socket.MSG_PEEK)
    except TimeoutError:
        return False
    finally:
        connection.settimeout(PATIENCE)
    return True


def _status(connection: socket.socket) -> int | str:
    answer = b""
    try:
        while b"\r\n" not in answer:
            part = connection.recv(4096)
            if not part:
                break
            answer += part
    except TimeoutError:
        return "stuck"
    except ConnectionError:
        pass
    if not answer:
        return "closed"
    return int(answer.split()[1]) if answer.startswith(b"HTTP/1.1 ") else repr(answer[:80])


def attacks(rng: random.Random) -> Iterator[Attack]:
    """One of each kind."""
    for name, body in requests.bodies(rng):
        yield Attack(f"body: {name}", (post(body),))
    for name, data in requests.images(rng):
        text = base64.b64encode(data).decode()
        yield Attack(f"image: {name}", (post(body_of(image=text)),))
        part = (f'name="image"; filename="{name}"', data)
        yield Attack(f"file: {name}", (form(part, ('name="phrases"', b"a star")),))
    for text in requests.sources(rng):
        yield Attack(f"source: {text[:60]!r}", (post(body_of(image=text)),))
    for request in requests.paths(rng):
        yield Attack(f"path: {request[:60]!r}", (request,))
    for name, request in requests.junk(rng):
        yield Attack(f"junk: {name}", (request,))
        yield Attack(f"junk, half closed: {name}", (request,), then="half")
    for name, request in requests.forms(rng):
        yield Attack(f"form: {name}", (request,))
    for name, body in requests.chats(rng):
        yield Attack(f"chat: {name}", (post(body, path="/v1/chat/completions"),))
    for name, pieces in requests.slow(rng):
        yield Attack(f"slow: {name}", pieces, pause=0.05)
        yield Attack(f"half closed: {name}", pieces[:3], then="half")
        yield Attack(f"reset: {name}", pieces[:2], then="reset")
    whole = post(body_of())
    yield Attack("half closed after all", (whole,), then="half", also=(200,))
    yield Attack("reset after all", (whole,), then="reset")
    yield Attack("receives nothing", (head("/openapi.json", "GET") * 100,), then="deaf")
    big = b"x" * (1 << 20)
    yield Attack(
        "a huge body", (head(content_type="application/json", content_length=1 << 40), *[big] * 8)
    )
    chunked = head(content_type="application/json", transfer_encoding="chunked")
    yield Attack("huge chunks", (chunked, *[b"100000\r\n" + big + b"\r\n"] * 16))
    yield Attack("a huge form", (form(('name="image"; filename="a"', big * 4)),))


def many(count: int, seed: int = 0) -> Iterator[Attack]:
    """So many attacks, each time with other random parts."""
    done = 0
    while True:
        for attack in attacks(random.Random(seed + done)):
            if done == count:
                return
            done += 1
            yield attack
