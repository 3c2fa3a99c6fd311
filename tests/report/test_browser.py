"""The page in a real browser: it fits a telephone and a desk, and its script runs."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import pytest

from flmm_core.report.measurements import load_benchmark
from flmm_core.report.page import render_page
from flmm_core.report.table import make_report
from tests.browser import browser
from tests.report.benchmarks import write_benchmark

# Chromium's window is never narrower than 500 pixels; a frame can be.
PROBE = """<!doctype html><body style="margin:0"><pre id="found"></pre>
<iframe id="page" src="page.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const box = element => element.getBoundingClientRect();
  const outside = [...page.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll, nav, svg, .switch input, .switch legend") && box(e).width > 0
      && box(e).right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  const table = page.querySelector("table.sortable");
  const head = [...table.tHead.rows[0].cells].find(cell => cell.textContent === "cIoU");
  const values = () => [...table.tBodies[0].rows].map(
    row => +row.cells[head.cellIndex].dataset.value);
  head.firstChild.click();
  const falling = values(), sort = head.getAttribute("aria-sort");
  head.firstChild.click();
  const shown = name => page.defaultView.getComputedStyle(page.getElementById(name)).display;
  page.querySelector("label[for=show-2]").click();
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth, needed: root.scrollWidth, outside, falling, sort, rising: values(),
    matrices: [shown("matrix-1"), shown("matrix-2")],
    broken: [...page.images].filter(i => i.complete && !i.naturalWidth).length,
    images: page.images.length,
  });
});
</script>"""


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("browser")
    skills = {"alpha": 0.4, "a_backbone_with_a_rather_long_name": 0.9, "gamma": 0.7}
    sources = ("shapes@test", "shapes@hard", "refcoco:/data@val", "refcoco+:/data@testA")
    report = make_report(load_benchmark(write_benchmark(folder / "b", skills, sources)))
    (folder / "page.html").write_text(render_page(report), encoding="utf-8")
    return folder


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_fits_and_its_script_runs(page: Path, width: int, tmp_path: Path) -> None:
    probe = page / f"probe-{width}.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)), encoding="utf-8")
    run = subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path}", "--allow-file-access-from-files", "--hide-scrollbars",
            "--enable-logging=stderr", "--virtual-time-budget=5000", "--window-size=1500,1000",
            "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert [line for line in run.stderr.splitlines() if "CONSOLE" in line] == []
    text = re.search(r'<pre id="found">(.+?)</pre>', run.stdout, re.DOTALL)
    assert text is not None, run.stderr[-2000:]
    found = json.loads(unescape(text[1]))
    assert found["width"] == width
    assert found["needed"] <= width
    assert found["outside"] == []
    assert found["falling"] == sorted(found["falling"], reverse=True)
    assert found["rising"] == sorted(found["falling"])
    assert found["sort"] == "descending"
    assert len(found["falling"]) == 12
    assert found["matrices"] == ["none", "block"]
    assert (found["images"] > 0, found["broken"]) == (True, 0)


def test_a_missing_browser_fails_in_ci_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="CI has no browser"):
        browser()
    monkeypatch.delenv("CI")
    with pytest.raises(pytest.skip.Exception, match="no browser"):
        browser()
