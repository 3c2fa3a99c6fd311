"""The page in a real browser, over HTTP, with the tiny model: what a visitor does."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from flmm_core.images import to_image
from flmm_core.painting import mask_color
from flmm_core.serving.page.studio import Studio
from tests.browser import Page

READY = "document.body && document.body.dataset.ready === ''"
IDLE = f"{READY} && document.getElementById('busy').hidden"
OUTSIDE = """[...document.querySelectorAll("body *")].filter(e => {
  const box = e.getBoundingClientRect();
  return !e.closest(".unseen, .skip, #examples") && box.width && box.right > innerWidth + 1;
}).map(e => e.outerHTML.slice(0, 80))"""
PIXEL = """(([x, y]) => { const c = document.getElementById("canvas");
  return [...c.getContext("2d").getImageData(x * c.width, y * c.height, 1, 1).data].slice(0, 3);
})"""
NAMES = ["红色的圆环", "الحلقة الحمراء", "red ring 🔴", '<b>bold</b> & "quoted"']


@pytest.fixture(scope="module")
def photo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JPEG that is stored lying on its side: upright, its upper half is red, its lower blue."""
    pixels = np.zeros((120, 90, 3), np.uint8)
    pixels[:60], pixels[60:] = (220, 30, 30), (30, 30, 220)
    stored = Image.fromarray(pixels).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path_factory.mktemp("photo") / "turned.jpg"
    stored.save(path, exif=exif, quality=95)
    assert to_image(path).size == (90, 120)
    return path


def upload(page: Page, photo: Path) -> None:
    page.upload("#file", photo)
    page.until(f"{IDLE} && document.getElementById('canvas').ariaLabel.includes('{photo.name}')")


def find(page: Page, *phrases: str) -> None:
    page.run("document.getElementById('phrase').focus()")
    before = page.run("document.querySelectorAll('#found li').length")
    page.type("; ".join(phrases))
    page.press("Enter")
    page.until(f"document.querySelectorAll('#found li').length === {before + len(phrases)}")


@pytest.mark.browser
def test_an_upload_is_upright_and_its_phrases_have_masks_and_files(
    page: Page, address: str, photo: Path, studio: Studio, tmp_path: Path
) -> None:
    page.open(address).until(READY)
    upload(page, photo)
    colors = [page.run(f"{PIXEL}({json.dumps(at)})") for at in ((0.5, 0.2), (0.5, 0.8))]
    assert np.abs(np.array(colors) - [(220, 30, 30), (30, 30, 220)]).max() < 12

    page.click("#tab-phrases")
    find(page, *NAMES)
    texts = page.run("[...document.querySelectorAll('#found .phrase')].map(e => e.firstChild.data)")
    assert texts == NAMES
    assert page.run("document.querySelectorAll('#found b').length") == 0
    right_to_left = "getComputedStyle(document.querySelectorAll('#found .phrase')[1]).direction"
    assert page.run(right_to_left) == "rtl"

    all_masks = page.run("document.getElementById('canvas').toDataURL()")
    page.move("#found li:nth-child(1) .phrase")
    assert page.until("!tag.hidden && tag.textContent") == NAMES[0]
    assert page.run("document.getElementById('canvas').toDataURL()") != all_masks
    page.click("#found li:nth-child(2) .phrase")
    page.move("h1")
    assert page.until("!tag.hidden && tag.textContent") == NAMES[1]
    page.press("Escape")
    page.until("tag.hidden")
    assert page.run("document.getElementById('canvas').toDataURL()") == all_masks

    wait = page.save_downloads(tmp_path)
    page.click("#downloads summary")
    for name in ("overlay.png", "masks.zip", "coco.json"):
        page.click(f"[data-download='{name}']")
        wait(name)
    (result,) = [held.result for held in list(studio.results.kept.values())[-1:]]
    expected = result.abstain(0.25)
    assert result.phrases == tuple(NAMES)
    np.testing.assert_array_equal(Image.open(tmp_path / "overlay.png"), expected.overlay())
    assert json.loads((tmp_path / "coco.json").read_text("utf-8")) == expected.to_coco()
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        for number in range(len(result)):
            mask = Image.open(io.BytesIO(archive.read(f"mask-{number + 1}.png")))
            np.testing.assert_array_equal(np.asarray(mask) > 0, expected.mask(number))

    # Of the masks under the pointer the smallest is meant.
    masks = expected.masks.numpy()
    y, x = np.argwhere(masks[int(masks.sum((1, 2)).argmin())])[0]
    under = [number for number in range(len(masks)) if masks[number, y, x]]
    smallest = min(under, key=lambda number: masks[number].sum())
    page.press("Escape")
    page.move("#canvas", (x + 0.5) / 90, (y + 0.5) / 120)
    assert page.until("!tag.hidden && tag.textContent") == NAMES[smallest]
    assert page.complaints == []


GIVE = """(async (kind, code) => {
  const bytes = Uint8Array.from(atob(code), letter => letter.charCodeAt(0));
  const given = new DataTransfer();
  given.items.add(new File([bytes], kind + ".jpg", {type: "image/jpeg"}));
  const how = {bubbles: true, cancelable: true, dataTransfer: given, clipboardData: given};
  dispatchEvent(kind === "drop" ? new DragEvent(kind, how) : new ClipboardEvent(kind, how));
})"""


@pytest.mark.browser
@pytest.mark.parametrize("kind", ["drop", "paste"])
def test_an_image_is_dropped_or_pasted(page: Page, address: str, photo: Path, kind: str) -> None:
    page.open(address).until(READY)
    code = base64.b64encode(photo.read_bytes()).decode()
    page.run(f"{GIVE}({json.dumps(kind)}, {json.dumps(code)})")
    said = page.until(f"{IDLE} && (a => a.startsWith('{kind}') && a)(canvas.ariaLabel)")
    assert said == f"{kind}.jpg, 90 by 120 pixels"
    assert page.complaints == []


@pytest.mark.browser
def test_views_threshold_and_removal(page: Page, address: str) -> None:
    page.open(address).until(READY)
    page.click("#tab-phrases")
    find(page, "one", "two")
    shown = "document.getElementById('canvas').toDataURL()"
    images = {page.run(shown)}
    page.click("#views label:nth-child(3)")
    page.until("document.querySelector('#views :checked').value === 'coarse'")
    images.add(page.run(shown))
    page.run("opacity.value = 90, opacity.dispatchEvent(new Event('input'))")
    images.add(page.run(shown))
    assert len(images) == 3
    page.run("threshold.value = 100, threshold.dispatchEvent(new Event('input'))")
    verdicts = "[...document.querySelectorAll('.verdict')].map(e => e.textContent)"
    assert page.run(verdicts) == ["not there", "not there"]
    page.run("threshold.value = 0, threshold.dispatchEvent(new Event('input'))")
    assert all(text.endswith("% likely") for text in page.run(verdicts))
    page.click("#found li:nth-child(1) .plain")
    page.until("document.querySelectorAll('#found li').length === 1")
    assert page.run("document.querySelector('#found .phrase').firstChild.data") == "two"
    assert page.complaints == []


def ask(page: Page, question: str, count: int = 1) -> str:
    """Ask by the keyboard; the answer's text, when it is whole."""
    page.run("question.focus()")
    page.type(question)
    page.press("Enter")
    page.until(f"document.querySelectorAll('.turn.model[data-result]').length === {count}")
    page.until(IDLE)
    return str(
        page.run("""(answer => {
          const copy = answer.cloneNode(true);
          copy.querySelectorAll(".unseen").forEach(note => note.remove());
          return copy.textContent;
        })([...document.querySelectorAll(".turn.model")].at(-1))""")
    )


@pytest.mark.browser
def test_an_answer_is_tied_to_masks_and_words_to_attention(
    page: Page, address: str, studio: Studio
) -> None:
    page.open(address).until(READY)
    text = ask(page, "Please give me a description of the image.")
    found = next(reversed(studio.results.kept.values()))
    assert text == found.text
    phrases = page.run(
        "[...document.querySelectorAll('.turn .phrase')].map(e => e.firstChild.data)"
    )
    assert phrases == [found.text[start:end] for start, end in found.spans]
    assert found.result is not None
    assert list(found.result.phrases) == phrases
    colors = page.run("""[...document.querySelectorAll('.turn .phrase')]
      .map(e => e.style.getPropertyValue('--mask'))""")
    assert colors == ["rgb({} {} {})".format(*mask_color(number)) for number in range(len(phrases))]

    page.run("document.querySelector('.turn .phrase').focus()")
    page.until("tag.textContent === document.querySelector('.turn .phrase').firstChild.data")
    page.press("ArrowRight")  # to the word behind the phrase
    word = page.until("document.activeElement.dataset.word && document.activeElement.textContent")
    page.until(f"!tag.hidden && tag.textContent === {json.dumps(word)}")
    page.press("Escape")

    page.click("#canvas", 0.7, 0.3)
    page.until("!document.getElementById('words').hidden")
    looks = found.explanations[found.text].words_at(
        (0.7 * found.image.width, 0.3 * found.image.height), "heads"
    )
    shown = page.run("[...document.querySelectorAll('#words button')].map(e => e.textContent)")
    assert shown == [look.text for look in looks[: len(shown)]]
    page.press("Escape")
    assert page.run("document.getElementById('words').hidden")

    ask(page, "And where is it?", 2)
    page.click("#anew")
    assert page.run("document.querySelectorAll('.turn').length") == 0
    assert page.complaints == []


@pytest.mark.browser
def test_without_a_head_the_model_talks_and_explains(page: Page, address: str) -> None:
    page.open(address).until(READY)
    choose = "model.value = 'bare-qwen', model.dispatchEvent(new Event('change'))"
    page.run(choose)
    page.until(f"document.getElementById('model-note').textContent.includes('train') && {IDLE}")
    assert page.run("document.getElementById('find').disabled")
    assert ask(page, "What is there?")
    page.run("document.querySelector('.turn .word').focus()")
    page.until("!tag.hidden")
    page.run(choose.replace("bare-qwen", "head-0"))
    page.until(f"document.getElementById('model-note').textContent === '' && {IDLE}")
    assert page.complaints == []


@pytest.mark.browser
def test_errors_stand_beside_what_caused_them(page: Page, address: str, tmp_path: Path) -> None:
    page.open(address).until(READY)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno more")
    page.upload("#file", tmp_path / "broken.png")
    said = page.until("!document.getElementById('image-error').hidden && "
                      "document.getElementById('image-error').textContent")  # fmt: skip
    assert "format" in said or "broken" in said
    assert page.run("document.getElementById('canvas').ariaLabel").startswith("Drawn shapes")
    page.complaints.clear()  # the browser notes the status 400


@pytest.mark.browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_all_of_it_below_the_image(page: Page, address: str, scheme: str) -> None:
    page.open(address, 375, 812, prefers_color_scheme=scheme).until(READY)
    page.click("#tab-phrases")
    find(page, "x" * 300)
    page.until(IDLE)
    assert page.run("document.documentElement.scrollWidth") == 375
    assert page.run(OUTSIDE) == []
    frame, side = (
        page.run(f"document.querySelector('{part}').getBoundingClientRect().bottom")
        for part in (".frame", ".side")
    )
    assert frame < side
    assert page.complaints == []


@pytest.mark.browser
def test_every_control_is_reached_by_the_keyboard_and_seen(page: Page, address: str) -> None:
    page.open(address, prefers_reduced_motion="reduce").until(READY)
    wanted = page.run(
        """[...document.querySelectorAll(`a, button, select, summary, textarea, canvas,
        input[type=file], [name=view]:checked, [role=log]`)].filter(
        e => !e.disabled && e.checkVisibility() && e.tabIndex >= 0)
        .map((e, n) => e.dataset.n = n)"""
    )
    assert len(wanted) > 15
    reached = set()
    for _ in range(2 * len(wanted)):
        page.press("Tab")
        seen = page.run("""(e => { const mark = e.matches(".unseen, .switch input")
          ? (e.previousElementSibling ?? e.nextElementSibling) : e;
          return [e.dataset.n, getComputedStyle(mark).outlineStyle, e.className]; })
          (document.activeElement)""")
        if seen[0] is None:
            continue
        assert seen[1] != "none" or "skip" in seen[2], seen
        reached.add(int(seen[0]))
        if len(reached) == len(wanted):
            break
    assert reached == set(wanted)
    animated = "document.getAnimations().length"
    assert page.run(animated) == 0
    unnamed = page.run("""[...document.querySelectorAll("button, input, select, textarea, summary")]
      .filter(e => !(e.textContent.trim() || e.ariaLabel || e.labels?.length
      || e.querySelector("img[alt]"))).map(e => e.outerHTML)""")
    assert unnamed == []


@pytest.mark.browser
def test_nothing_is_loaded_from_elsewhere(page: Page, address: str) -> None:
    page.open(address).until(READY)
    schemes = ("data:", "blob:", "about:", "chrome")
    elsewhere = [u for u in page.requests if not u.startswith((address, *schemes))]
    assert elsewhere == []
    blocked = page.run("fetch('https://example.com/').then(() => 'allowed', () => 'blocked')")
    assert blocked == "blocked"
    assert any("Content Security Policy" in text for text in page.complaints)
    page.complaints.clear()
