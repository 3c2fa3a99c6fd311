"""The page: whole, self-contained, and safe with any words."""

from __future__ import annotations

import base64
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_core.cli import main
from flmm_core.errors import DataError
from flmm_core.evaluation.benchmark_folder import write_facts
from flmm_core.painting import mask_color
from flmm_core.report.gallery import SIDE, best_and_worst
from flmm_core.report.measurements import load_benchmark, load_measurement
from flmm_core.report.page import render_page
from flmm_core.report.table import make_report, percent, signed
from tests.report.benchmarks import (
    disc,
    facts,
    make_row,
    measurement_facts,
    random_rows,
    write_benchmark,
    write_measurement,
)

VOID = {"meta", "link", "img", "input", "br"}
ODD = '<script>alert(1)</script> "it\'s" & naïve 漢字 {{ 7*7 }}'


class Page(HTMLParser):
    """The parsed page; fails on tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def page_of(folder: Path, examples: int = 2) -> tuple[Page, str]:
    text = render_page(make_report(load_benchmark(folder)), examples=examples)
    return Page(text), text


def test_the_page_holds_all_it_shows(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.4, "beta": 0.9})
    page, text = page_of(folder)
    for tag, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "data", "action"):
            value = attributes.get(name)
            if value is not None:
                assert value.startswith(("data:", "#")), (tag, name, value[:60])
    assert "url(" not in text
    assert "@import" not in text
    targets = {a["id"] for _, a in page.tags if "id" in a}
    assert {a["href"] for a in page.all("a")} <= {f"#{name}" for name in targets}
    (policy,) = [m for m in page.all("meta") if m.get("http-equiv") == "Content-Security-Policy"]
    assert "default-src 'none'" in (policy["content"] or "")


def test_what_is_drawn_can_be_heard(tmp_path: Path) -> None:
    page, _ = page_of(write_benchmark(tmp_path, {"alpha": 0.4, "beta": 0.9}))
    assert page.all("img")
    assert all(image["alt"] for image in page.all("img"))
    assert all(head["scope"] in ("col", "row") for head in page.all("th"))
    for drawing in page.all("svg"):
        assert drawing.get("aria-hidden") or drawing.get("aria-label")
    assert page.all("html")[0]["lang"] == "en"
    ids = [a["id"] for _, a in page.tags if "id" in a]
    assert len(ids) == len(set(ids))


def test_the_table_shows_the_figures(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.4, "beta": 0.9})
    page, _ = page_of(folder)
    report = make_report(load_benchmark(folder))
    for row in report.rows:
        for name in report.shown:
            score = row.scores[name]
            assert percent(score.value) in page.texts
            assert f"{percent(score.low)}–{percent(score.high)}" in page.texts
    values = {a["data-value"] for a in page.all("td") if "data-value" in a}
    assert {str(row.scores["ciou"].value) for row in report.rows} <= values
    sections = {a["id"] for a in page.all("section")}
    assert sections == {
        "glance", "scores", "cost", "slices", "sure", "pictures", "published",
        "provenance",
    }  # fmt: skip
    assert "ab" * 32 in page.texts
    assert page.texts.count("not comparable") == 3  # the rows of the paper's own protocol
    assert "flmm benchmark --backbone alpha" in page.texts


def test_the_best_and_the_next_are_named_first(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.2, "beta": 0.9, "gamma": 0.6}, ["shapes@test"])
    page, _ = page_of(folder, 0)
    best, second, _ = make_report(load_benchmark(folder)).rows
    assert second.behind is not None
    said = " ".join(" ".join(page.texts).split())
    assert f"beta is ahead with cIoU {percent(best.scores['ciou'].value)} (95 %" in said
    assert f"Next is gamma, {signed(second.behind.difference)} points (p < 0.001)." in said
    assert "which may be chance" not in said


def test_odd_words_are_words(tmp_path: Path) -> None:
    truth = disc(20, 20, 9)
    items = [
        make_row(f"{ODD}{n}", f"{ODD}{n}.png", truth, truth, phrase=ODD, slice=f"{ODD}{n % 2}")
        for n in range(4)
    ]
    folder = tmp_path / "odd <b>"
    write_facts(folder, facts(machine=ODD, command=["flmm", ODD]))
    write_measurement(
        folder / "cells" / "a", measurement_facts(ODD, f"jsonl:/{ODD}", note=ODD), items
    )
    page, text = page_of(folder)
    assert len(page.all("script")) == 1
    assert "alert(1)</script>" not in text
    assert "alert" not in "".join(re.findall(r"<script>(.*?)</script>", text, re.DOTALL))
    assert page.texts.count(ODD) >= 4
    assert "49" not in page.texts


@pytest.mark.parametrize("examples", [0, 3])
def test_one_cell_and_empty_ones_make_a_page(tmp_path: Path, examples: int) -> None:
    write_facts(tmp_path, facts(seed=None, machine=None))
    nothing = disc(0, 0, 0)
    for name, items in (
        ("empty", []),
        ("one", [make_row("a", "a.png", disc(9, 9, 4), nothing)]),
        ("absent", [make_row(str(n), f"{n}.png", nothing, nothing) for n in range(3)]),
    ):
        about = measurement_facts("alpha", f"{name}@test")
        write_measurement(tmp_path / "cells" / name, about, items)
    page, _ = page_of(tmp_path, examples)
    assert "no phrases" in " ".join(page.texts)
    assert bool(page.all("img")) == bool(examples)
    write_benchmark(tmp_path / "single", {"alpha": 0.5}, ["shapes@test"])
    page, _ = page_of(tmp_path / "single", examples)
    assert "reaches cIoU" in " ".join(page.texts)


def test_unfinished_cells_and_two_protocols_are_said(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["shapes@test"])
    (folder / "cells" / "beta--shapes@test").mkdir()
    about = measurement_facts("gamma", "shapes@test", protocol="flmm-paper")
    write_measurement(folder / "cells" / "gamma", about, list(random_rows(0, 0.9)))
    page, _ = page_of(folder, 0)
    said = " ".join(page.texts)
    assert "beta--shapes@test. This measurement is not in any figure here." in said
    assert "This page has rows of different protocols." in said
    rows = make_report(load_benchmark(folder)).rows
    assert [row.is_best for row in rows] == [True, True]


# --- images --------------------------------------------------------------------------------


def test_the_worst_are_the_surest_failures_and_no_phrase_is_shown_twice(tmp_path: Path) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["shapes@test"], pictures=12)
    cell = load_measurement(folder / "cells" / "alpha--shapes@test")
    best, worst = best_and_worst(cell, 4)
    assert len(best) == len(worst) == 4
    assert not {e.item.item for e in best} & {e.item.item for e in worst}
    for found in (best, worst):
        assert len({example.item.picture for example in found}) == 4
    order = [(e.iou, -e.item.score) for e in worst]
    assert order == sorted(order)
    assert worst[0].iou == cell.columns.iou.min()
    assert best[0].iou == cell.columns.iou.max()
    assert list(best[0].panels) == ["image", "truth", "prediction"]


def test_an_image_that_is_gone_is_noted(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.5, 4))
    items = [item.model_copy(update={"truth_segmentation": None}) for item in items]
    cell = load_measurement(write_measurement(tmp_path, measurement_facts("a", "b"), items))
    best, _ = best_and_worst(cell, 1)
    assert list(best[0].panels) == ["prediction"]
    assert best[0].note == "The image was not found; the masks are shown on gray."


def test_a_broken_mask_is_named(tmp_path: Path) -> None:
    items = list(random_rows(0, 0.5, 4))
    broken = items[0].segmentation.model_copy(update={"counts": "0"})
    items = [item.model_copy(update={"segmentation": broken}) for item in items]
    cell = load_measurement(write_measurement(tmp_path, measurement_facts("a", "b"), items))
    with pytest.raises(DataError, match="the item '"):
        best_and_worst(cell, 1)


def test_panels_are_small_and_show_the_mask(tmp_path: Path) -> None:
    mask = disc(300, 100, 80, (600, 900))
    items = [make_row(str(n), f"{n}.png", mask, mask) for n in range(2)]
    Image.new("RGB", (900, 600), (90, 90, 90)).save(tmp_path / "0.png")
    Image.new("RGB", (900, 600), (90, 90, 90)).save(tmp_path / "1.png")
    about = measurement_facts("a", "b", pictures=str(tmp_path))
    best, _ = best_and_worst(
        load_measurement(write_measurement(tmp_path / "cell", about, items)), 1
    )
    data = best[0].panels["prediction"].removeprefix("data:image/jpeg;base64,")
    with Image.open(io.BytesIO(base64.b64decode(data))) as panel:
        assert panel.size == best[0].size
        assert panel.size == pytest.approx((SIDE, SIDE * 600 / 900), abs=1)
        pixels = np.asarray(panel).astype(int)
    # Inside the mask: its color over the image in pale gray. Outside: pale gray.
    assert np.abs(pixels[73, 24] - (0.45 * np.array(mask_color(0)) + 0.55 * 144)).max() < 12
    assert np.abs(pixels[73, 150] - 144).max() < 12


# --- command ---------------------------------------------------------------------------------


def test_the_command_writes_page_and_tables(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_benchmark(tmp_path / "b", {"alpha": 0.5}, ["shapes@test"])
    endings = ["html", "md", "csv", "tex", "json"]
    assert main(["report", "build", str(folder)]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert shown == [f"{folder}/report.{ending}" for ending in endings]
    assert all(Path(path).stat().st_size for path in shown)
    wanted = tmp_path / "out" / "page.html"
    arguments = ["report", "build", str(folder), "--output", str(wanted), "--examples", "0"]
    assert main([*arguments, "--format", "csv", "--format", "html"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{tmp_path}/out/page.csv", str(wanted)]
    assert "<img" not in wanted.read_text(encoding="utf-8")
    assert len(list(wanted.parent.iterdir())) == 2


def test_the_command_names_a_broken_line_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_benchmark(tmp_path, {"alpha": 0.5}, ["shapes@test"])
    path = folder / "cells" / "alpha--shapes@test" / "items.jsonl"
    path.write_text(path.read_text()[:-50])
    lines = path.read_text().count("\n") + 1
    assert main(["report", "build", str(folder)]) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"flmm: Line {lines} of {path} is not complete JSON.\n")
    assert not list(folder.glob("report.*"))
