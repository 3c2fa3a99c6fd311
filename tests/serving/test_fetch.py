"""Images from URLs: only with --allow-urls, and never from the server's own network.

`PUBLIC` is an address of this machine that the tests declare public.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import httpx
import pytest

from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving import fetch
from flmm_core.serving.limits import Limits
from tests.models import picture
from tests.serving.running import encoded, running

PUBLIC = "127.0.0.2"
PNG = encoded(picture(48, 24))
Patch = pytest.MonkeyPatch


class Elsewhere(BaseHTTPRequestHandler):
    """A web site; `hosts` are the Host headers that it got."""

    hosts: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.hosts.append(self.headers["Host"])
        name = self.path.strip("/")
        body, more = PNG, {}
        if name.startswith("to="):
            more = {"Location": name.removeprefix("to=")}
        elif name == "large":
            body = PNG + b"\0" * (2 << 20)
        elif name == "zipped":
            more = {"Content-Encoding": "gzip"}
        elif name == "text":
            body = b"<html>"
        self.send_response(302 if "Location" in more else 404 if name == "missing" else 200)
        for key, value in {"Content-Length": str(len(body)), **more}.items():
            self.send_header(key, value)
        self.end_headers()
        try:
            for start in range(0, len(body), 64 if name == "slow" else 1 << 20):
                self.wfile.write(body[start:][: 64 if name == "slow" else 1 << 20])
                time.sleep(0.2 if name == "slow" else 0)
        except ConnectionError:
            pass

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def port() -> Iterator[int]:
    """A web site at the same port of the public and of a private address."""
    with (
        ThreadingHTTPServer((PUBLIC, 0), Elsewhere) as public,
        ThreadingHTTPServer(("127.0.0.1", public.server_port), Elsewhere) as private,
    ):
        for server in (public, private):
            threading.Thread(target=server.serve_forever, daemon=True).start()
        yield public.server_port
        public.shutdown()
        private.shutdown()


@pytest.fixture
def names(monkeypatch: Patch, port: int) -> dict[str, list[str]]:
    """The addresses of host names; a name that is asked for again has the next one."""
    known = {"site.test": [PUBLIC], "two.test": [f"{PUBLIC} 127.0.0.1"]}
    known["rebinding.test"] = [PUBLIC, "127.0.0.1"]
    original, really_public = socket.getaddrinfo, fetch.is_public

    def resolve(host: Any, *args: Any, **options: Any) -> Any:
        if host in known:
            found = known[host].pop(0) if len(known[host]) > 1 else known[host][0]
            host = found.split()
        else:
            host = [host]
        return [each for one in host for each in original(one, *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    monkeypatch.setattr(fetch, "PORTS", {"http": port, "https": port})
    monkeypatch.setattr(fetch, "is_public", lambda a: str(a) == PUBLIC or really_public(a))
    Elsewhere.hosts.clear()
    return known


@pytest.fixture(scope="module")
def client(grounder: Grounder) -> Iterator[httpx.Client]:
    limits = Limits(body_bytes=1 << 20, read_seconds=1)
    with running(grounder, limits, allow_urls=True) as client:
        yield client


def ask(client: httpx.Client, url: str) -> httpx.Response:
    return client.post("/v1/ground", json={"image": url, "phrases": ["a star"]})


@pytest.mark.parametrize(
    "path", ["a.png", "to=/a.png", "to=http://site.test/a.png", "to=http://rebinding.test/a.png"]
)
def test_an_image_is_fetched_from_the_address_that_was_checked(
    names: dict[str, list[str]], client: httpx.Client, path: str
) -> None:
    answer = ask(client, f"http://site.test/{path}")
    assert answer.status_code == 200, answer.text
    assert answer.json()["width"] == 48
    assert Elsewhere.hosts[0] == "site.test"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("http://127.0.0.1/a.png", "not on the public internet"),
        ("http://localhost/a.png", "not on the public internet"),
        ("http://two.test/a.png", "not on the public internet"),
        ("http://site.test/to=http://127.0.0.1/a.png", "not on the public internet"),
        ("http://site.test/to=http://rebinding.test/to=http://rebinding.test/a", "not on the"),
        ("http://site.test/to=file:///etc/passwd", "Only http and https"),
        ("http://site.test/to=http://site.test:22/", "Only http and https at their usual ports"),
        ("http://site.test/to=/to=/to=/to=/to=/a.png", "redirects more than 3 times"),
        ("http://site.test/large", "It has more than 1 MiB"),
        ("http://site.test/slow", "did not arrive within 1 seconds"),
        ("http://site.test/missing", "The answer is 404"),
        ("http://site.test/zipped", "The answer is compressed"),
        ("https://site.test/a.png", "Fetching it ended with ConnectError"),
        ("http://nobody.invalid/a.png", "Its host has no address"),
        ("http://site.test/text", "no format that can be read"),
    ],
)
def test_what_is_not_public_or_not_an_image_is_refused(
    names: dict[str, list[str]], client: httpx.Client, url: str, why: str
) -> None:
    answer = ask(client, url)
    assert answer.status_code == 400
    assert why in answer.json()["error"]["message"]
    assert answer.json()["error"]["param"] == "image"
    assert "127.0.0.1" not in Elsewhere.hosts


@pytest.mark.parametrize(
    ("address", "public"),
    [
        *dict.fromkeys(["8.8.8.8", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"], True)
        .items(),
        *dict.fromkeys(
            ["127.0.0.1", "127.8.9.1", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1",
             "169.254.169.254", "100.64.0.1", "224.0.0.1", "255.255.255.255", "192.0.2.1",
             "198.18.0.1", "::", "::1", "fe80::1", "fe80::1%1", "fc00::1", "fd00:ec2::254",
             "ff02::1", "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1",
             "2002:7f00:1::", "2001:db8::1", "2001:0:7f00:1::"], False,
        ).items(),
    ],
)  # fmt: skip
def test_addresses_of_private_networks_are_known(address: str, public: bool) -> None:
    assert fetch.is_public(ipaddress.ip_address(address)) is public


def test_without_permission_nothing_is_looked_up(grounder: Grounder, monkeypatch: Patch) -> None:
    async def never(*args: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(fetch, "fetch", never)
    with running(grounder) as client:
        answer = ask(client, "http://site.test/a.png")
    assert answer.status_code == 400
    assert "--allow-urls" in answer.json()["error"]["message"]


def test_the_name_is_resolved_once_a_request(names: dict[str, list[str]]) -> None:
    url = httpx.URL("http://rebinding.test/a.png")
    assert asyncio.run(fetch.public_address(url)) == PUBLIC
    assert names["rebinding.test"] == ["127.0.0.1"]
