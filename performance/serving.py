"""`flmm serve` over loopback: requests per second of one client and of many, memory, answers.

The server is a process of its own; the clients share the machine with it.
"""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from flmm_core.data.drawn.writing import draw_images
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import HeadInfo
from performance.tables import table

COLUMNS = (
    "| model | clients | 200 | 429 | other | requests/s | of one client's | phrases a batch "
    "| CPU ms a request | MiB: begin, middle, end |"
)
SIZES: dict[str, tuple[tuple[str, ...], int, float]] = {
    "tiny": (("qwen",), 8, 1.5),
    "medium": (("qwen", "deepseek_vl", "llava_next"), 64, 60),
}
"""Models, clients and seconds."""
IMAGES = 64


@dataclass(frozen=True)
class Serving:
    """What so many clients, each asking again as soon as it is answered, saw for some seconds.

    Attributes:
        statuses: How many answers of each status there were.
        batch: Phrases in a forward, on average.
        cpu: Seconds of the server's processors per answer 200.
        mebibytes: The server's resident memory at the beginning, in the middle and at the end.
    """

    model: str
    clients: int
    seconds: float
    statuses: dict[int, int]
    batch: float
    cpu: float
    mebibytes: tuple[float, float, float]

    @property
    def rate(self) -> float:
        """Answers 200 per second."""
        return self.statuses.get(200, 0) / self.seconds


def measure(size: str, repeats: int, until: float) -> tuple[list[Serving], str]:
    """The figures, and their table."""
    models, clients, seconds = SIZES[size]
    rows: list[Serving] = []
    lines = []
    for model in models:
        if time.monotonic() > until:
            break
        with (
            tempfile.TemporaryDirectory() as folder,
            served(fresh_head(model, Path(folder))) as (
                process,
                url,
            ),
        ):
            payloads = requests_of(url)
            asyncio.run(ask(url, payloads, 4, min(3, seconds)))  # warm up
            one = load(model, process, url, payloads, 1, min(15, seconds))
            many = load(model, process, url, payloads, clients, seconds)
        for row in (one, many):
            rows.append(row)
            lines.append(_line(row, one.rate))
    return rows, table(COLUMNS, lines)


def _line(row: Serving, alone: float) -> Sequence[object]:
    other = sum(count for status, count in row.statuses.items() if status not in (200, 429))
    return (
        row.model,
        row.clients,
        row.statuses.get(200, 0),
        row.statuses.get(429, 0),
        other,
        f"{row.rate:.1f}",
        f"{row.rate / alone:.2f}",
        f"{row.batch:.1f}",
        f"{1000 * row.cpu:.0f}",
        ", ".join(f"{each:.0f}" for each in row.mebibytes),
    )


def fresh_head(backbone: str, folder: Path, **how: Any) -> Path:
    """A head with fresh weights, which takes as long as a trained one; `how` as for `Recipe`."""
    recipe = Recipe(backbone, **how)
    observer, head = build_flow(recipe)
    return Grounder(observer, head, HeadInfo(recipe, observer.vlm)).save_pretrained(folder / "head")


@contextmanager
def served(head: Path, *options: str) -> Iterator[tuple[psutil.Process, str]]:
    """A process `flmm serve` and its URL; it must end with exit code 0 on SIGTERM."""
    command = [sys.executable, "-m", "flmm_core", "serve", "--head", str(head), "--port", "0"]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        found = re.search(r"at (http://\S+)", process.stdout.readline())
        if found is None:
            raise RuntimeError("the server did not start")
        yield psutil.Process(process.pid), found[1]
    finally:
        process.terminate()
        code = process.wait(60)
    if code != 0:
        raise RuntimeError(f"the server ended with {code}")


def requests_of(url: str) -> list[bytes]:
    """Whole HTTP requests, each with an image of its own and the phrase of one of its objects."""
    payloads = []
    for number, drawn in enumerate(draw_images(IMAGES, seed=11, kinds=("plain",))):
        with tempfile.NamedTemporaryFile(suffix=".png") as file:
            drawn.image.save(file.name)
            data = Path(file.name).read_bytes()
        phrase = drawn.objects[0].sentences[0]
        edge = f"edge-{number}"
        body = (
            f'--{edge}\r\nContent-Disposition: form-data; name="phrases"\r\n\r\n{phrase}\r\n'
            f'--{edge}\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
        ).encode() + data + f"\r\n--{edge}--\r\n".encode()  # fmt: skip
        head = (
            f"POST /v1/ground HTTP/1.1\r\nHost: {urlsplit(url).netloc}\r\n"
            f"Content-Type: multipart/form-data; boundary={edge}\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        payloads.append(head.encode() + body)
    return payloads


async def ask(url: str, payloads: Sequence[bytes], clients: int, seconds: float) -> Counter[int]:
    """Statuses of the answers to so many clients; 0 is a connection that broke."""
    host, port = urlsplit(url).hostname, urlsplit(url).port
    until = time.monotonic() + seconds
    statuses: Counter[int] = Counter()

    async def client(number: int) -> None:
        reader, writer = await asyncio.open_connection(host, port)
        turn = number
        while time.monotonic() < until:
            try:
                writer.write(payloads[turn % len(payloads)])
                status, retry = await _answer(reader)
                statuses[status] += 1
            except (OSError, asyncio.IncompleteReadError):
                statuses[0] += 1
                reader, writer = await asyncio.open_connection(host, port)
                continue
            turn += clients
            if retry:
                await asyncio.sleep(min(retry, max(0, until - time.monotonic())))
        writer.close()

    await asyncio.gather(*map(client, range(clients)))
    return statuses


async def _answer(reader: asyncio.StreamReader) -> tuple[int, float]:
    """The status of a whole answer, and after how many seconds to come back."""
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
    length = re.search(r"\r\ncontent-length: (\d+)", head)
    await reader.readexactly(int(length[1]) if length else 0)
    retry = re.search(r"\r\nretry-after: (\d+)", head)
    return int(head.split()[1]), float(retry[1]) if retry else 0


def load(
    model: str,
    process: psutil.Process,
    url: str,
    payloads: Sequence[bytes],
    clients: int,
    seconds: float,
) -> Serving:
    """Measure so many clients."""

    async def run() -> tuple[Counter[int], list[float]]:
        memory = [_mebibytes(process)]

        async def watch() -> None:
            for _ in range(2):
                await asyncio.sleep(seconds / 2)
                memory.append(_mebibytes(process))

        statuses, _ = await asyncio.gather(ask(url, payloads, clients, seconds), watch())
        return statuses, memory

    before, cpu = asyncio.run(_metrics(url)), _cpu(process)
    start = time.monotonic()
    statuses, memory = asyncio.run(run())
    seconds = time.monotonic() - start
    after = asyncio.run(_metrics(url))
    batches = after["flmm_batch_phrases_count"] - before["flmm_batch_phrases_count"]
    phrases = after["flmm_batch_phrases_sum"] - before["flmm_batch_phrases_sum"]
    return Serving(
        model,
        clients,
        seconds,
        dict(sorted(statuses.items())),
        phrases / max(1, batches),
        (_cpu(process) - cpu) / max(1, statuses[200]),
        (memory[0], memory[1], memory[2]),
    )


async def _metrics(url: str) -> dict[str, float]:
    """The values at /metrics that have no labels."""
    reader, writer = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", text, re.MULTILINE)}


def _mebibytes(process: psutil.Process) -> float:
    return float(process.memory_info().rss) / (1 << 20)


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)
