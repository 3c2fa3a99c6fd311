"""docs/serve.md: its examples run, its limits are those of the server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from flmm_core.cli.serve import command
from flmm_core.serving.limits import Limits
from tests.models import picture
from tests.serving.running import data_url

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text()
GROUND, CHAT, _ = re.findall(r"```python\n(.*?)```", PAGE, re.S)


def test_the_examples_run(
    client: httpx.Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(48, 24).save("photo.jpg")
    assert len([line for line in GROUND.splitlines() if line]) == 4
    url = str(client.base_url)
    exec(GROUND.replace("http://127.0.0.1:8000", url), {})
    assert "'phrase': 'red ring'" in capfd.readouterr().out
    short = CHAT.replace("http://127.0.0.1:8000", url).replace('"qwen", ', '"flmm", max_tokens=4, ')
    exec(short.replace("data:image/png;base64,...", data_url(picture(48, 24))), {})
    assert capfd.readouterr().out.rstrip().endswith("]")


def test_the_limits_are_the_servers() -> None:
    limits = Limits()
    for said in (
        f"{limits.body_bytes >> 20} MiB, counted",
        f"{limits.pixels / 1e6:g} megapixels,",
        f"| {limits.memory_bytes >> 30} GiB |",
        f"| {limits.queue}, or fewer if they would wait for too long | `--queue`",
        f"| {limits.wait_seconds:g} s | `--wait`",
        f"| {limits.run_seconds:g} s | `--timeout`",
        f"| {limits.phrases}, each of at most {limits.phrase_letters} characters",
        f"| {limits.images} | |",
        f"| {limits.text_letters:,} characters |",
        f"| {limits.read_seconds:g} s, {limits.head_seconds:g} s |",
        f"| {limits.connections} | |",
        f"at most {limits.new_tokens}, which is the default",
        f"within {limits.stop_seconds:g} s, and exits",
    ):
        assert said in PAGE
    options = {name for each in command.params for name in each.opts}
    for option in set(re.findall(r"`(--[a-z-]+)", PAGE)):
        assert option in options


def test_the_routes_are_the_servers(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    routes = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        for method in methods
    }
    assert (
        set(re.findall(r"^\| `([A-Z]+ /\S+)` ", PAGE, re.M)) | {"GET /v1/models/{name}"} == routes
    )
