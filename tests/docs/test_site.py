"""The site builds without a warning, links lead somewhere, figures of others are the shipped."""

from __future__ import annotations

import importlib.resources
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import yaml

import flmm_core
from flmm_core.cli import COMMANDS
from tests.docs.pages import ROOT, anchors, blocks, inline_code, links, pages

PEERS = json.loads((importlib.resources.files("flmm_core.report") / "peers.json").read_text())


def local_links() -> Iterator[tuple[str, str, str]]:
    for page in pages():
        for link in links(page):
            if not link.startswith(("http://", "https://", "mailto:")):
                path, _, anchor = link.partition("#")
                yield page, path, anchor


def test_links_and_anchors_lead_somewhere() -> None:
    """On GitHub and on the site; the build checks the site's own form of them."""
    count = 0
    for page, path, anchor in local_links():
        target = (ROOT / page).parent / path if path else ROOT / page
        if page.startswith(".github/"):  # shown below an issue or a pull request
            assert path.startswith("../blob/HEAD/"), f"{page}: {path}"
            target = ROOT / path.removeprefix("../blob/HEAD/")
        assert target.exists(), f"{page}: {path}"
        if anchor:
            name = target.resolve().relative_to(ROOT).as_posix()
            assert anchor in anchors(name), f"{page}: {path}#{anchor}"
        count += 1
    assert count > 80


def test_what_a_page_says_of_tests_exists() -> None:
    for page in pages():
        for text in inline_code(page):
            if re.fullmatch(r"tests/[\w/]+(\.py)?", text):
                here = (ROOT / page).parent  # of an example
                given = text in {block.file for block in blocks(page)}
                assert given or any((at / text).exists() for at in (ROOT, here)), f"{page}: {text}"


def test_every_page_is_in_the_menu() -> None:
    listed = {
        line.strip()
        for block in blocks("docs/index.md")
        if block.language == "{toctree}"
        for line in block.text.splitlines()
        if line.strip() and not line.startswith(":")
    }
    there = {Path(page).stem for page in pages() if page.startswith("docs/")}
    assert listed == there - {"index"}


def test_every_command_and_name_is_in_the_reference() -> None:
    commands = (ROOT / "docs" / "commands.md").read_text()
    assert re.findall(r":prog: flmm (.*)", commands) == list(COMMANDS)
    names = (ROOT / "docs" / "api.md").read_text()
    for name in set(flmm_core.__all__) - {"__version__"}:
        assert re.search(rf"^\.\. \S+:: {name}$", names, re.M), name


def test_the_citation_is_of_this_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert (citation["version"], citation["license"]) == (flmm_core.__version__, "Apache-2.0")
    assert citation["cff-version"] == "1.2.0"


def test_issue_forms_have_what_github_wants() -> None:
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.md"):
        _, head, _ = form.read_text().split("---\n", 2)
        assert {"name", "about"} <= yaml.safe_load(head).keys(), form


def test_figures_of_others_are_those_that_reports_show() -> None:
    page = (ROOT / "docs" / "comparison.md").read_text()
    for system in PEERS["systems"]:
        (row,) = re.findall(rf"^\| {re.escape(system['system'])} \| (.*)$", page, re.M)
        shown = [part.strip() for part in row.split("|")]
        wanted = []
        for data, splits in (
            ("refcoco", ("val", "testA", "testB")),
            ("refcoco+", ("val", "testA", "testB")),
            ("refcocog", ("val", "test")),
        ):
            figures = [system["ciou"].get(f"{data}@{split}", "–") for split in splits]
            wanted.append("–" if set(figures) == {"–"} else ", ".join(map(str, figures)))
        wanted += ["yes" if system["vlm_frozen"] else "no", f"`{system['protocol']}`"]
        assert shown[:5] == wanted


def test_numbers_of_phrases_are_those_that_reports_know() -> None:
    page = (ROOT / "docs" / "protocols.md").read_text()
    rows = re.findall(r"^\| RefCOCO.*? \| ([\d, ]+) \| ([\d, ]+) \|$", page, re.M)
    shown = [
        {"standard": int(one.replace(",", "")), "flmm-paper": int(other.replace(",", ""))}
        for standard, paper in rows
        for one, other in zip(standard.split(", "), paper.split(", "), strict=True)
    ]
    assert shown == list(PEERS["phrases"].values())


class Answers(BaseHTTPRequestHandler):
    """Of a site with one page."""

    def do_GET(self) -> None:
        self.send_response(200 if self.path == "/there" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.slow
def test_a_dead_address_fails_the_check_of_links(tmp_path: Path) -> None:
    """Also in a block of code, and where nothing answers, as without a network."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        here, nobody = f"http://127.0.0.1:{server.server_address[1]}", "http://127.0.0.1:9"
        page = f"# Links\n\n[one]({here}/there)\n\n```sh\ncurl -O {here}/gone\n```\n\n{nobody}/x.\n"
        (tmp_path / "docs").mkdir()
        (tmp_path / "docs/index.md").write_text(page)
        settings = "linkcheck_ignore=nothing", "linkcheck_retries=1", "html_static_path="
        options = [word for setting in settings for word in ("-D", setting)]
        command = [sys.executable, "-m", "sphinx", "-q", "-b", "linkcheck"]
        done = subprocess.run(
            [*command, "-c", str(ROOT / "docs"), *options, "docs", "links"],
            cwd=tmp_path, capture_output=True, text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:], str(ROOT)])},
        )  # fmt: skip
        server.shutdown()
    lines = (tmp_path / "links/output.json").read_text().splitlines()
    found = {each["uri"]: each["status"] for each in map(json.loads, lines)}
    assert found == {f"{here}/there": "working", f"{here}/gone": "broken", f"{nobody}/x": "broken"}
    assert done.returncode == 1


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-n", "-q"]
    done = subprocess.run(
        [*command, "docs", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path[1:], str(ROOT)])},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    for name in ("index", "commands", "api", "backbones"):
        assert (tmp_path / "site" / f"{name}.html").is_file()
    text = (tmp_path / "site" / "commands.html").read_text()
    for command_name in COMMANDS:
        assert f"<h2>flmm {command_name}<" in text
