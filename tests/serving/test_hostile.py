"""Hostile requests: each is answered with a 4xx or a closed connection, and nothing is left behind.

FLMM_HOSTILE=2000 sends as many, each time with other random parts.
"""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from tests.models import picture
from tests.serving.hostile import Attack, attacks, launch, many
from tests.serving.running import address_of, data_url, process, stopped_with

COUNT = int(os.environ.get("FLMM_HOSTILE", "0"))
LIMITS = {
    "body_bytes": 2 << 20,
    "pixels": 1_000_000,
    "head_seconds": 1,
    "read_seconds": 1,
    "idle_seconds": 1,
    "batch_phrases": 16,
    "gather_seconds": 0,
}
ASKED = {"image": data_url(picture(48, 24)), "phrases": ["a red ring"]}


def gauge(client: httpx.Client, name: str) -> float:
    found = re.search(rf"^{name} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    assert found
    return float(found[1])


@pytest.mark.slow
@pytest.mark.multiprocess
def test_hostile_requests_are_refused_and_leave_nothing() -> None:
    with process(LIMITS, allow_urls=True) as (server, client):
        before = client.post("/v1/ground", json=ASKED).json()
        answers = launch_all(list(attacks(random.Random(0))), client)
        memory, files = server.memory_info().rss, server.num_fds()  # with all that is kept once
        answers += launch_all(list(many(COUNT, seed=1)), client)
        print(Counter(answer for _, answer in answers))
        assert [pair for pair in answers if not refused(*pair)] == []
        assert client.post("/v1/ground", json=ASKED).json() == before
        assert client.get("/healthz").json() == {"status": "ok"}
        for name in ("flmm_waiting_requests", "flmm_request_memory_bytes"):
            assert gauge(client, name) == 0
        assert server.memory_info().rss < memory + (64 << 20)
        assert server.num_fds() <= files + 2
        assert stopped_with(server, client, requests=3, phrases=16) == (0, {200})


def launch_all(sent: list[Attack], client: httpx.Client) -> list[tuple[Attack, int | str]]:
    with ThreadPoolExecutor(16) as threads:
        answers = threads.map(lambda each: launch(each, address_of(client)), sent)
        return list(zip(sent, answers, strict=True))


def refused(attack: Attack, answer: int | str) -> bool:
    """A 4xx or a clean close."""
    if isinstance(answer, int):
        return 400 <= answer < 500 or answer in attack.also
    return answer == "closed"
