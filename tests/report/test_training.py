"""The page of a run: whole, self-contained, true, and also of a run that is not finished."""

from __future__ import annotations

import json
import re
import subprocess
import xml.etree.ElementTree as ET
from html import unescape
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.cli import main
from flmm_core.report.charts import WIDTH, Curve, Sign, curves
from flmm_core.report.training import write_training_page
from tests.cached import Runs
from tests.report.test_browser import browser
from tests.stopping import StopAt

Factory = pytest.TempPathFactory


@pytest.fixture(scope="module")
def runs(random_twin: Path, drawn: Path, tmp_path_factory: Factory) -> Runs:
    return Runs(random_twin, drawn, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def run(runs: Runs) -> Path:
    return runs.train(
        "a <run>", val_data=[runs.source], eval_data=[runs.source], pictures=1, steps=4
    )


def test_the_page_has_what_the_run_has_and_needs_nothing_else(run: Path) -> None:
    text = write_training_page(run).read_text()
    assert not re.search(r"(src|href)=\"(?!data:|#)", text)
    assert "<title>a &lt;run&gt; – flmm training</title>" in text
    plain = unescape(re.sub(r"<[^>]+>", " ", text))
    summary = json.loads((run / "summary.json").read_text())
    for source, found in summary["evaluations"].items():
        assert source in plain
        for part in ("coarse", "refined"):
            assert f" {100 * found[part]['ciou']:.1f} " in plain
    scores = {
        row["step"]: row["validation_ciou"]
        for row in map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        if "validation" in row
    }
    best = max(scores, key=lambda step: scores[step])
    assert f"that of step {best}." in plain
    for title in ("Loss", "Learning rate", "Gradient norm", "Throughput", "cIoU on the validation"):
        assert title in plain
    assert f"flmm ground IMAGE \"a phrase\" --head '{run}'" in plain
    assert text.count("data:image/jpeg;base64,") == 1
    for key in ("learning_rate", "head.base_channels", "packages"):
        assert key in plain


def test_a_run_that_is_not_finished_says_how_to_go_on(
    runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        runs.train("stopped", progress=StopAt("Training", 3))
    folder = runs.folder / "stopped"
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')  # as a killed process leaves it
    assert main(["report", "training", str(folder)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == folder / "training.html"
    text = unescape(page.read_text())
    assert "Not finished:" in text
    assert "up to step 3" in text
    assert f"flmm train --resume --output {folder}" in text


def test_a_folder_without_a_run_and_a_broken_file_are_told(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", "training", str(tmp_path)]) == 3
    assert f"The folder '{tmp_path}' has no run." in capsys.readouterr().err
    (tmp_path / "config.yaml").write_bytes((run / "config.yaml").read_bytes())
    assert main(["report", "training", str(tmp_path)]) == 0  # begun, and nothing logged yet
    (tmp_path / "summary.json").write_text("[1")
    assert main(["report", "training", str(tmp_path)]) == 3
    assert "summary.json' cannot be read" in capsys.readouterr().err


POINTS = st.lists(st.tuples(st.integers(0, 10**6), st.floats(0, 1e9)), max_size=600)


@settings(max_examples=25, deadline=None)
@given(POINTS, POINTS)
def test_curves_stay_within_their_frame(
    one: list[tuple[int, float]], two: list[tuple[int, float]]
) -> None:
    shown = [Curve(Sign(n), f"<{n}>", sorted(points)) for n, points in enumerate((one, two))]
    svg = ET.fromstring(curves(shown, "a & b"))
    height = float(svg.attrib["viewBox"].split()[3])
    lines = [line for line in svg.iter("line") if line.attrib["class"].startswith("curve")]
    assert len(lines) <= 400
    for line in lines:
        for x, y in (("x1", "y1"), ("x2", "y2")):
            assert 0 <= float(line.attrib[x]) <= WIDTH
            assert 0 <= float(line.attrib[y]) <= height


def test_the_best_step_is_a_line_below_its_mark() -> None:
    svg = ET.fromstring(curves([Curve(Sign(0), "a", [(0, 0.1), (5, 0.7), (10, 0.4)])], "x", best=5))
    (line,) = (one for one in svg.iter("line") if one.attrib["class"] == "diagonal")
    marks = [one for one in svg.iter("path") if one.attrib["class"].startswith("mark")]
    place = re.match(r"translate\(([\d.]+),", marks[1].attrib["transform"])
    assert place is not None
    assert line.attrib["x1"] == line.attrib["x2"] == place[1]


PROBE = """<!doctype html><body style="margin:0"><pre id="found"></pre>
<iframe id="page" src="training.html" style="border:0;width:WIDTHpx;height:900px"></iframe>
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const outside = [...page.querySelectorAll("body *")].filter(
    e => !e.closest(".scroll, nav, svg") && e.getBoundingClientRect().width > 0
      && e.getBoundingClientRect().right > root.clientWidth + 1).map(e => e.outerHTML.slice(0, 80));
  document.getElementById("found").textContent = JSON.stringify({
    width: root.clientWidth, needed: root.scrollWidth, outside, charts: page.querySelectorAll(
      ".chart > svg").length,
    broken: [...page.images].filter(i => i.complete && !i.naturalWidth).length,
  });
});
</script>"""


@pytest.mark.browser
@pytest.mark.parametrize("width", [375, 1400])
def test_the_page_fits_a_telephone_and_a_desk(run: Path, width: int, tmp_path: Path) -> None:
    (tmp_path / "training.html").write_bytes(write_training_page(run).read_bytes())
    probe = tmp_path / "probe.html"
    probe.write_text(PROBE.replace("WIDTH", str(width)), encoding="utf-8")
    shown = subprocess.run(
        [
            browser(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
            f"--user-data-dir={tmp_path / 'profile'}", "--allow-file-access-from-files",
            "--hide-scrollbars", "--enable-logging=stderr", "--virtual-time-budget=5000",
            "--window-size=1500,1000", "--dump-dom", probe.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert [line for line in shown.stderr.splitlines() if "CONSOLE" in line] == []
    found = re.search(r'<pre id="found">(.+?)</pre>', shown.stdout, re.DOTALL)
    assert found is not None, shown.stderr[-2000:]
    assert json.loads(unescape(found[1])) == {
        "width": width, "needed": width, "outside": [], "charts": 5, "broken": 0,
    }  # fmt: skip
