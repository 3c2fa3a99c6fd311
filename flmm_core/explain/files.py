"""Writes an explanation: arrays, overlays, a page, and what is in them as JSON."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup

from flmm_core.explain.page import render_page
from flmm_core.files import whole_folder, write_json, write_text

if TYPE_CHECKING:
    from flmm_core.explain.explanation import Explanation, Named

FRAME = 640
"""Height of the page in a notebook, in pixels; it scrolls."""
ARRAYS, FACTS, PAGE = "explanation.npz", "explanation.json", "explanation.html"


def save(one: Explanation, folder: Path, words: Sequence[Named], by: str, **how: Any) -> list[Path]:
    """See `Explanation.save`; overlays of an earlier explanation in the folder are removed."""
    chosen = one.chosen(words)
    earlier = (folder / FACTS).exists()
    names = [ARRAYS, FACTS, PAGE]
    with whole_folder(folder) as aside:
        np.savez_compressed(aside / ARRAYS, **arrays(one))
        write_json(aside / FACTS, facts(one))
        write_text(aside / PAGE, render_page(one))
        for places in chosen:
            said = "-".join(one.words[place].text for place in places)
            kept = re.sub(r"[^\w-]+", "", said)[:40]
            names.append(f"word-{places[0] + 1:03d}-{kept}.png".replace("-.png", ".png"))
            one.overlay(places, by, **how).save(aside / names[-1])
    if earlier:
        for path in folder.glob("word-*.png"):
            if path.name not in names and re.match(r"word-\d{3,}", path.name):
                path.unlink()
    return [folder / name for name in names]


def save_html(one: Explanation, path: Path) -> Path:
    """See `Explanation.save_html`."""
    write_text(path, render_page(one))
    return path


def frame(one: Explanation) -> str:
    """The page for a notebook, apart from the notebook's own styles and scripts."""
    page = Markup('<iframe srcdoc="{}" style="width:100%;height:{}px;border:0"></iframe>')
    return str(page.format(render_page(one), FRAME))


def arrays(one: Explanation) -> dict[str, Any]:
    """What `explanation.npz` holds: the maps of every way, words first, and their names."""
    found: dict[str, Any] = {
        "words": np.array([word.text for word in one.words]),
        "characters": np.array([(word.start, word.end) for word in one.words], np.int64),
    }
    for name, maps in one.ways.items():
        found |= {name: maps.words, f"{name}_prompt": maps.prompt, f"{name}_sinks": maps.sinks}
    return found


def facts(one: Explanation) -> dict[str, Any]:
    """What `explanation.json` holds."""
    return {
        **one.facts,
        "prompt": one.prompt,
        "text": one.text,
        "asked": one.asked,
        "image": [one.image.width, one.image.height],
        "heads": [{"view": v, "layer": i, "attention_head": n} for v, i, n in one.heads],
        "words": one.to_records(),
    }
