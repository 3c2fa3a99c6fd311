"""The process and its connections: signals, time limits, tokens, what the pages and metrics say."""

from __future__ import annotations

import json
import re
import signal
import socket
import time
from pathlib import Path

import httpx
import pytest

from flmm_core.cli import main
from flmm_core.pipeline.grounder import Grounder
from flmm_core.serving.app import create_app
from flmm_core.serving.limits import Limits
from flmm_core.serving.server import LOCAL_NAMES, Server
from tests.models import picture
from tests.serving.hostile_requests import head
from tests.serving.running import address_of, data_url, process, running, stopped_with

BODY = {"image": data_url(picture(48, 24)), "phrases": ["a star"]}
Patch = pytest.MonkeyPatch
Capture = pytest.CaptureFixture[str]


@pytest.mark.multiprocess
def test_running_requests_are_cut_off_after_the_limit() -> None:
    """test_hostile.py shows that they are finished within it."""
    limits = {"gather_seconds": 0, "batch_phrases": 1, "stop_seconds": 0.2}
    with process(limits) as (server, client):
        assert stopped_with(server, client, requests=3, phrases=64) == (1, {503})


def test_ctrl_c_has_an_exit_code_of_its_own(grounder: Grounder) -> None:
    server = Server(create_app(grounder), Limits())
    server.handle_exit(signal.SIGINT, None)
    assert (server.should_exit, server.code) == (True, 130)


def test_a_body_that_is_refused_does_not_cut_off_the_answer(client: httpx.Client) -> None:
    limit = Limits().body_bytes
    with socket.create_connection(address_of(client)) as raw:
        raw.sendall(head(content_type="application/json", content_length=2 * limit))
        for _ in range(2 * limit >> 20):
            raw.sendall(b" " * (1 << 20))  # it is thrown away, and never a broken pipe
        answer = raw.recv(4096)
    assert answer.startswith(b"HTTP/1.1 413 ")
    body = json.loads(answer.partition(b"\r\n\r\n")[2])
    assert "the limit is 20 MiB" in body["error"]["message"]


@pytest.mark.parametrize(
    ("header", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer wrong"}, 401),
        ({"Authorization": "Basic word-of-honor"}, 401),
        ({"Authorization": "Bearer \xe9"}, 401),
        ({"Authorization": "Bearer word-of-honor"}, 200),
        ({"Authorization": "bearer word-of-honor"}, 200),
    ],
)
def test_a_token_guards_all_but_the_health_check(
    grounder: Grounder, header: dict[str, str], status: int
) -> None:
    headers = {key: value.encode("latin-1") for key, value in header.items()}
    with running(grounder, token="word-of-honor") as client:
        assert client.post("/v1/ground", json=BODY, headers=headers).status_code == status
        assert client.get("/metrics", headers=headers).status_code == status
        assert client.get("/healthz", headers=headers).status_code == 200
        assert client.get("/openapi.json").json()["security"] == [{"bearer": []}]


def test_pages_of_other_origins_may_not_use_it(client: httpx.Client) -> None:
    for site, status in (("cross-site", 403), ("same-site", 403), ("same-origin", 200)):
        answer = client.post("/v1/ground", json=BODY, headers={"Sec-Fetch-Site": site})
        assert answer.status_code == status


def test_a_name_that_a_web_page_made_up_is_not_answered() -> None:
    with running({}, only_hosts=LOCAL_NAMES) as client:
        for host, status in (
            ("localhost:8000", 200), ("127.0.0.1", 200), ("[::1]:8000", 200), ("page.test", 400),
            ("localhost.page.test:8000", 400),
        ):  # fmt: skip
            assert client.get("/v1/models", headers={"Host": host}).status_code == status


def test_several_heads_are_served_by_name(grounder: Grounder) -> None:
    with running({"rings": grounder, "stars": grounder}) as client:
        for model, named in ((None, "rings"), ("stars", "stars")):
            answer = client.post("/v1/ground", json=BODY | {"model": model}).json()
            assert answer["model"] == named
        answer = client.post("/v1/ground", json=BODY | {"model": "star"})
        assert answer.status_code == 404
        error = answer.json()["error"]
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "Did you mean 'stars'?" in error["message"]


def test_metrics_are_read_by_prometheus(client: httpx.Client) -> None:
    from prometheus_client.parser import text_string_to_metric_families

    assert client.post("/v1/ground", json=BODY).status_code == 200
    assert client.get(f"/{time.monotonic()}").status_code == 404
    text = client.get("/metrics").text
    families = {each.name: each for each in text_string_to_metric_families(text)}
    paths = {sample.labels["path"] for sample in families["flmm_requests"].samples}
    assert {"/v1/ground", "other"} <= paths
    assert len(paths) < 12  # no path of a client's own becomes one
    assert families["flmm_batch_phrases"].samples[-1].value >= 1
    assert families["flmm_request_memory_bytes"].samples[0].value == 0


def test_the_reference_page_shows_every_route_and_loads_nothing(client: httpx.Client) -> None:
    page, document = client.get("/docs"), client.get("/openapi.json").json()
    assert page.status_code == 200
    for path in document["paths"]:
        assert f" {path}</code>" in page.text
    assert not re.search(r"<script|<link|<img|src=|url\(|@import|https?://", page.text)
    assert "default-src 'none'" in page.headers["content-security-policy"]
    known = document["components"]["schemas"]
    for name in re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)):
        assert name in known


@pytest.mark.parametrize(
    ("options", "said", "code"),
    [
        (["--host", "0.0.0.0"], "Other machines can reach the server at 0.0.0.0", 2),
        (["--token-file", "none.txt"], "The token file 'none.txt' cannot be read.", 2),
        (["--token-file", "empty.txt"], "The token file 'empty.txt' holds no token.", 2),
        (["--host", "no.such.host.invalid"], "The host 'no.such.host.invalid' has no address.", 2),
        (["--head", "nowhere"], "Two heads are called 'nowhere'.", 2),
        ([], "'nowhere'", 3),
    ],
)
def test_what_cannot_be_served_is_told_before_anything_is_loaded(
    options: list[str], said: str, code: int, tmp_path: Path, monkeypatch: Patch, capsys: Capture
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("FLMM_TOKEN", raising=False)
    Path("empty.txt").write_text(" \n")
    assert main(["serve", "--head", "nowhere", "--port", "0", *options]) == code
    assert said in capsys.readouterr().err


def test_a_port_that_is_taken_is_told(capsys: Capture) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        assert main(["serve", "--head", "nowhere", "--port", port]) == 1
    assert f"cannot listen at 127.0.0.1, port {port}." in capsys.readouterr().err


def test_a_missing_package_is_told(monkeypatch: Patch, capsys: Capture) -> None:
    import flmm_core.serving as package

    monkeypatch.setitem(package.NEEDED, "no_such_module", "no-such-module")
    assert main(["serve", "--head", "nowhere"]) == 3
    assert "pip install 'flmm[serve]'" in capsys.readouterr().err
