"""One HTML page of an explanation: words beside the image, their maps over it.

The page holds the maps as 16-bit numbers and computes overlays and rankings itself, as
`Explanation.map` and `Explanation.words_at` do.
"""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING, Any

import numpy as np

from flmm_core import __version__
from flmm_core.explain.maps import REACH, TEMPERATURE, Floats, Maps
from flmm_core.explain.ways import WAYS, way_text
from flmm_core.painting import scale_to
from flmm_core.pipeline.heat import heat_colors
from flmm_core.report.gallery import data_uri
from flmm_core.report.templates import template

if TYPE_CHECKING:
    from flmm_core.explain.explanation import Explanation
    from flmm_core.explain.words import Word

SIDE = 1200
"""Longest side of the image on the page in pixels."""


def render_page(one: Explanation) -> str:
    """The whole page."""
    image = one.image
    small = scale_to(image, SIDE) if max(image.size) > SIDE else image
    ways = [
        {"name": name, "title": WAYS[name], "about": way_text(name, one.heads), **_packed(maps)}
        for name, maps in one.ways.items()
    ]
    colors = heat_colors(np.linspace(0, 1, 256)).round().astype(np.uint8)
    return template("explanation.html.j2", "explain").render(
        one=one,
        version=__version__,
        lead=one.text[: one.words[0].start],
        runs=_runs(one),
        ways=ways,
        image=data_uri(small),
        data={
            "size": [image.width, image.height],
            "reach": REACH,
            "colors": _base64(colors),
            "words": [{"text": word.text, "names": word.names} for word in one.words],
            "ways": ways,
        },
    )


def _runs(one: Explanation) -> list[tuple[list[tuple[int, Word]], str]]:
    """The words with the marks that directly follow them, and what stands behind each run."""
    runs: list[tuple[list[tuple[int, Word]], str]] = []
    ends = [*(word.start for word in one.words[1:]), len(one.text)]
    for number, (word, end) in enumerate(zip(one.words, ends, strict=True)):
        gap = one.text[word.end : end]
        if runs and not runs[-1][1] and not word.names:
            runs[-1] = [*runs[-1][0], (number, word)], gap
        else:
            runs.append(([(number, word)], gap))
    return runs


def _packed(maps: Maps) -> dict[str, Any]:
    """The maps as the page reads them; `plain` has them without sinks, if there are any."""
    plain = maps.without_sinks()
    return {
        "grid": list(maps.grid),
        "probabilities": maps.probabilities,
        "sinks": int(maps.sinks.sum()),
        **_numbers(maps),
        "plain": _numbers(plain) if plain is not maps else None,
    }


def _numbers(maps: Maps) -> dict[str, Any]:
    """`tops`: the highest value of each word; `values`: softened, 16-bit fractions of the top."""
    tops, soft = maps.words.max((1, 2)), maps.softened()
    highest = np.maximum(soft.words.max((1, 2), keepdims=True), 1e-12)
    return {
        "tops": [float(f"{top:.5g}") for top in tops],
        "values": _base64((soft.words / highest * 65535).round().astype("<u2")),
        "temperature": 1.0 if maps.probabilities else TEMPERATURE,
        "prompt": _base64(_mean(soft.prompt, maps.grid).astype("<f4")),
        "rows": len(maps.prompt),
    }


def _mean(rows: Floats, grid: tuple[int, int]) -> Any:
    """(h, w) the mean of the prompt's maps, each adding up to 1."""
    total = np.maximum(rows.sum((1, 2), keepdims=True), 1e-12)
    return (rows / total).mean(0) if len(rows) else np.zeros(grid)


def _base64(values: Any) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
