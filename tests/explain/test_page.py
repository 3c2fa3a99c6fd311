"""The page in a real browser: what it shows is what Python says, on a desk and on a telephone."""

from __future__ import annotations

from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from flmm_core.explain.explanation import Explanation
from flmm_core.explain.page import render_page
from flmm_core.pipeline.heat import heat_colors
from tests.browser import Page, opened
from tests.explain.explanations import known

TEXT = ' A dog\n& a <b>red</b> "ball" – 红色的圆环, الحلقة </script>'
CELLS = {"dog": (0, 0), "red": (3, 4), "ball": (3, 5)}
PIXEL = """(([x, y]) => { const c = document.getElementById("map");
  return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data];
})"""
RANKED = """[...document.querySelectorAll("#ranking li")].map(
  item => [item.querySelector("button").textContent, +item.lastElementChild.textContent])"""
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return !e.closest(".switch input, .switch legend") && box.width && box.right > innerWidth + 1;
}).map(e => e.outerHTML.slice(0, 80))"""


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with opened() as found:
        yield found


def shown(page: Page, found: Explanation, folder: Path, **how: Any) -> str:
    path = found.save_html(folder / "page.html")
    page.requests.clear()
    page.open(path.as_uri(), **how)
    page.until("!!document.querySelector('#text [aria-pressed=true]')")
    return path.as_uri()


@pytest.mark.browser
def test_a_word_shows_its_map_and_a_click_the_words(page: Page, tmp_path: Path) -> None:
    found = known(TEXT, CELLS, sink=(1, 1))
    address = shown(page, found, tmp_path)
    assert page.run("document.getElementById('text').textContent") == TEXT
    assert page.run("document.querySelectorAll('#text b').length") == 0

    page.move('[data-word="1"]')  # dog
    page.until("document.querySelector('#caption b').textContent === 'dog'")
    brightest = [round(float(part)) for part in heat_colors(np.ones(1))[0]]
    sink = page.run(f"{PIXEL}([1.5 / 6, 1.5 / 4])")
    assert sink[:3] == pytest.approx(brightest, abs=40)
    assert sum(page.run(f"{PIXEL}([0.5 / 6, 0.5 / 4])")[:3]) < sum(brightest) / 2
    page.click("#sinks")
    page.move('[data-word="1"]')
    assert page.run(f"{PIXEL}([0.5 / 6, 0.5 / 4])")[:3] == pytest.approx(brightest, abs=40)
    percent = 100 * found.map("dog", sinks=False).max()
    assert f"{percent:.2g} % of its attention" in page.run(
        "document.getElementById('caption').textContent"
    )

    for x, y in ((0.1, 0.1), (0.95, 0.95), (0.4, 0.6)):
        page.click("#stage", x, y)
        ranked = page.until(f"(r => r.length && r)({RANKED})")
        at = page.run("document.getElementById('hint').textContent").split(":")[0].split()[1:]
        place = tuple(int(number.strip(",")) for number in at)
        assert abs(place[0] - 60 * x) <= 1
        looks = found.words_at(place)[:12]
        # words that look there equally come in any order
        assert sorted(word for word, _ in ranked) == sorted(look.text for look in looks)
        assert [lift for _, lift in ranked] == pytest.approx(
            [look.lift for look in looks], abs=0.02
        )
        assert ranked[0][0] == looks[0].text or looks[0].lift == pytest.approx(looks[1].lift)

    page.click("label[for=way-2]")  # learned
    page.until("document.getElementById('caption').textContent.includes('probability')")
    assert {url for url in page.requests if not url.startswith("data:")} == {address}
    # that this test reads the pixels of a canvas several times
    assert [text for text in page.complaints if "willReadFrequently" not in text] == []


@pytest.mark.browser
def test_keys_do_what_the_mouse_does(page: Page, tmp_path: Path) -> None:
    shown(page, known(TEXT, CELLS), tmp_path)
    page.press("Tab")
    assert page.run("document.activeElement.dataset.word") == "0"
    page.press("ArrowRight")
    page.until("document.querySelector('#caption b').textContent === 'dog'")
    page.press("Enter")
    assert page.run("document.activeElement.getAttribute('aria-pressed')") == "true"
    page.run("document.getElementById('stage').focus()")
    page.press("ArrowLeft")
    before = page.until(f"(r => r.length && document.getElementById('hint').textContent)({RANKED})")
    page.press("ArrowDown")
    page.until(f"document.getElementById('hint').textContent !== {before!r}")
    page.run("document.querySelector('#ranking button').focus()")
    word = page.run("document.activeElement.textContent")
    page.until(f"document.querySelector('#caption b').textContent === {word!r}")
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") != "none"
    assert page.complaints == []


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it(page: Page, tmp_path: Path, scheme: str) -> None:
    long = f"{TEXT} {'very' * 40} {'many words ' * 40}"
    shown(page, known(long, CELLS), tmp_path, width=375, height=700, prefers_color_scheme=scheme)
    page.click("#stage", 0.2, 0.2)
    page.until(f"{RANKED}.length")
    assert page.run(OUTSIDE) == []
    assert page.run("document.documentElement.scrollWidth") == 375
    ink, paper = page.run(
        "['color', 'backgroundColor'].map(part => getComputedStyle(document.body)[part]"
        ".match(/\\d+/g).map(Number).reduce((a, b) => a + b))"
    )
    assert abs(ink - paper) > 500
    assert (paper < ink) == (scheme == "dark")
    # the image stays in sight while the words are read
    page.run("[...document.querySelectorAll('#text button')].at(-1).scrollIntoView()")
    assert page.run("document.getElementById('stage').getBoundingClientRect().top") >= 0


def test_a_notebook_shows_the_page_in_a_frame() -> None:
    class Frame(HTMLParser):
        pages: ClassVar[list[str]] = []

        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            assert tag == "iframe"  # nothing of the page leaves it
            self.pages.append(str(dict(attrs)["srcdoc"]))

    found = known(TEXT, CELLS)
    Frame().feed(found._repr_html_())
    assert Frame.pages == [render_page(found)]


def test_the_page_names_nothing_elsewhere() -> None:
    html = render_page(known(TEXT, CELLS))
    assert "default-src 'none'" in html
    assert "http" not in html.replace("http-equiv", "")
    assert "</script>" not in html.split('id="data">')[1].split("</script>\n")[0]
