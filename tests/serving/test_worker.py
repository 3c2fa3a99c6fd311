"""Requests wait in a bounded queue, share forwards, and are told when it takes too long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from flmm_core.errors import RunError
from flmm_core.pipeline.grounder import Grounder, Prepared
from flmm_core.pipeline.observer import Observer
from flmm_core.serving.limits import Limits
from tests.flows import assemble, weighed
from tests.models import picture
from tests.serving.running import data_url, running
from tests.serving.test_ground import iou

Patch = pytest.MonkeyPatch


class Gate:
    """Holds the model before each batch until it is opened; `batches` are those that came."""

    def __init__(self, monkeypatch: Patch) -> None:
        self.batches: list[int] = []
        self.open = threading.Event()
        original = Grounder.ground_prepared

        def gated(own: Grounder, asked: Sequence[Prepared], **options: Any) -> Any:
            self.batches.append(len(asked))
            assert self.open.wait(20)
            return original(own, asked, **options)

        monkeypatch.setattr(Grounder, "ground_prepared", gated)

    def wait_for(self, batches: int) -> None:
        until(lambda: len(self.batches) >= batches)


def until(true: Callable[[], bool]) -> None:
    for _ in range(2000):
        if true():
            return
        time.sleep(0.005)
    raise AssertionError("it never came")


@pytest.fixture
def gate(monkeypatch: Patch) -> Gate:
    return Gate(monkeypatch)


def body(seed: int = 0, *phrases: str) -> dict[str, Any]:
    """Images of different shapes."""
    image = picture(48, 24 + 24 * (seed % 2), seed)
    return {"image": data_url(image), "phrases": phrases or ["a red ring"]}


@contextmanager
def asking(client: httpx.Client, bodies: Sequence[dict[str, Any]]) -> Iterator[list[Any]]:
    """Futures of the answers to requests that are sent at once."""
    with ThreadPoolExecutor(len(bodies)) as threads:
        yield [threads.submit(client.post, "/v1/ground", json=each) for each in bodies]


def waiting(client: httpx.Client) -> int:
    lines = client.get("/metrics").text.splitlines()
    return int(float(next(x for x in lines if x.startswith("flmm_waiting_requests ")).split()[1]))


@pytest.mark.parametrize("pooling", [{"pool": "mean"}, {"pool": "max"}, {"ends": 2}])
def test_what_waits_is_grounded_in_one_forward_and_gives_the_same_masks(
    grounder: Grounder, gate: Gate, monkeypatch: Patch, pooling: dict[str, Any]
) -> None:
    grounder = weighed(assemble(grounder.backbone, **pooling))
    forwards: list[int] = []
    observe = Observer.observe
    monkeypatch.setattr(
        Observer, "observe", lambda own, b, **o: (forwards.append(len(b)), observe(own, b, **o))[1]
    )
    bodies = [body(0), *(body(seed, "the star", "a cat") for seed in range(1, 7))]
    limits = Limits(batch_phrases=8, gather_seconds=0)
    with running(grounder, limits) as client:
        with asking(client, bodies[:1]) as first:
            gate.wait_for(1)
            with asking(client, bodies[1:]) as others:
                until(lambda: waiting(client) == 6)
                gate.open.set()
        answers = [each.result().json() for each in (*first, *others)]
    assert gate.batches == [1, 4, 2]
    assert forwards == [1, 8, 4]
    for asked, answer in zip(bodies, answers, strict=True):
        seed = bodies.index(asked)
        image = picture(48, 24 + 24 * (seed % 2), seed)
        alone = grounder.ground(image, asked["phrases"]).to_coco()
        for record, wanted in zip(answer["found"], alone, strict=True):
            assert iou(record, wanted["segmentation"]) > 0.99
            assert record["score"] == pytest.approx(wanted["score"], abs=1e-3)


def test_a_full_queue_answers_429_and_when_to_come_back(grounder: Grounder, gate: Gate) -> None:
    limits = Limits(queue=3, batch_phrases=1, gather_seconds=0)
    with running(grounder, limits) as client, asking(client, [body()]) as first:
        gate.wait_for(1)
        with asking(client, [body(1)] * 3) as others:
            until(lambda: waiting(client) == 3)
            answer = client.post("/v1/ground", json=body(2))
            gate.open.set()
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["type"] == "rate_limit_error"
        assert {each.result().status_code for each in (*first, *others)} == {200}
        assert client.post("/v1/ground", json=body(2)).status_code == 200


def test_too_long_a_wait_is_503_and_too_long_a_run_504(grounder: Grounder, gate: Gate) -> None:
    limits = Limits(wait_seconds=0.2, run_seconds=0.4, gather_seconds=0)
    with running(grounder, limits) as client, asking(client, [body()]) as first:
        gate.wait_for(1)
        answer = client.post("/v1/ground", json=body(1))
        assert answer.status_code == 503
        assert int(answer.headers["retry-after"]) >= 1
        assert first[0].result().status_code == 504
        gate.open.set()
        assert client.post("/v1/ground", json=body(1)).status_code == 200
        assert len(gate.batches) == 2  # what had waited too long was not grounded


def test_a_request_whose_client_is_gone_is_not_grounded(grounder: Grounder, gate: Gate) -> None:
    with running(grounder, Limits(gather_seconds=0)) as client, asking(client, [body()]) as first:
        gate.wait_for(1)
        gone = httpx.Client(base_url=client.base_url)
        with pytest.raises(httpx.ReadTimeout):
            gone.post("/v1/ground", json=body(1), timeout=httpx.Timeout(5, read=0.2))
        gone.close()
        time.sleep(0.1)
        gate.open.set()
        assert first[0].result().status_code == 200
        assert client.post("/v1/ground", json=body(2)).status_code == 200
    assert gate.batches == [1, 1]


def test_one_bad_request_of_a_batch_fails_alone(
    grounder: Grounder, gate: Gate, monkeypatch: Patch
) -> None:
    observe = Observer.observe

    def failing(own: Observer, batch: Any, **options: Any) -> Any:
        if any(sample.image_hw == (24, 24) for sample in batch.backbone.samples):
            raise RunError("Values are not finite.")
        return observe(own, batch, **options)

    monkeypatch.setattr(Observer, "observe", failing)
    bad = {"image": data_url(picture(24, 24)), "phrases": ["a cat"]}
    with running(grounder, Limits(gather_seconds=0)) as client:
        with asking(client, [body()]) as first:
            gate.wait_for(1)
            with asking(client, [body(1), bad, body(2)]) as others:
                until(lambda: waiting(client) == 3)
                gate.open.set()
        assert [each.result().status_code for each in (*first, *others)] == [200, 200, 500, 200]
        assert others[1].result().json()["error"]["message"] == "Values are not finite."


def test_an_unexpected_error_is_500_without_its_text_and_the_server_goes_on(
    grounder: Grounder, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    with running(grounder) as client:
        with monkeypatch.context() as patch:
            patch.setattr(Observer, "observe", lambda *a, **o: 1 / 0)
            answer = client.post("/v1/ground", json=body())
            patch.setattr(Observer, "prepare", lambda *a, **o: {}["secret"])
            other = client.post("/v1/ground", json=body())
        assert answer.status_code == other.status_code == 500
        assert answer.json()["error"]["type"] == "server_error"
        for text in (answer.text, other.text):
            assert "division" not in text
            assert "secret" not in text
            assert "Traceback" not in text
        assert "ZeroDivisionError" in caplog.text
        assert client.post("/v1/ground", json=body()).status_code == 200


def test_the_memory_of_requests_is_bounded(grounder: Grounder, gate: Gate) -> None:
    large = {"image": data_url(picture(400, 400)), "phrases": ["a cat"]}
    size = len(large["image"])
    limits = Limits(memory_bytes=size * 3 + 400 * 400 * 6, gather_seconds=0)
    with running(grounder, limits) as client, asking(client, [large]) as first:
        gate.wait_for(1)
        assert client.post("/v1/ground", json=large).status_code == 429
        gate.open.set()
        assert first[0].result().status_code == 200
        assert client.post("/v1/ground", json=large).status_code == 200
    with running(grounder, Limits(memory_bytes=size // 2)) as client:
        assert client.post("/v1/ground", json=large).status_code == 413
