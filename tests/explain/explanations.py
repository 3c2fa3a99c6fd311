"""Toy models that are explained quickly, and explanations whose maps are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from PIL import Image

from flmm_core.explain import make
from flmm_core.explain.explanation import Explanation
from flmm_core.explain.heads import LocalizationHeads
from flmm_core.explain.maps import Maps, scaled
from flmm_core.explain.words import split_words
from flmm_core.pipeline.types import VlmShape

SIZE = 60, 40
"""Width and height of a known explanation's image; its cells are 10 pixels wide and high."""


def known_heads(monkeypatch: pytest.MonkeyPatch, *best: int) -> None:
    """Take these channels for the heads that localize, without looking for them."""

    def heads(backbone: Any, **rest: object) -> LocalizationHeads:
        shares = [0.0] * backbone.attention_channels
        for place, channel in enumerate(best):
            shares[channel] = 1.0 - place / 10
        return LocalizationHeads(tuple(shares), 0.1)

    monkeypatch.setattr(make, "localization_heads", heads)


def known(text: str, cells: dict[str, tuple[int, int]], sink: tuple[int, int] | None = None) -> Any:
    """Each word of a text looks at one cell (row, column), or everywhere; and all at a sink."""
    words = split_words(text)
    values = np.full((len(words), 4, 6), 0.01, np.float32)
    prompt = np.full((5, 4, 6), 1.0, np.float32)
    for number, word in enumerate(words):
        if word.text in cells:
            values[number][cells[word.text]] = 1.0
    if sink is not None:
        values[:, *sink], prompt[:, *sink] = 5.0, 100.0
    maps = Maps(scaled(values), scaled(prompt))
    learned = Maps(np.clip(values, 0, 1), np.clip(prompt, 0, 1), probabilities=True)
    channels = np.concatenate([maps.words, maps.prompt])[:, None].repeat(6, 1).astype(np.float16)
    return Explanation(
        image=Image.new("RGB", SIZE, "gray"),
        text=text,
        words=tuple(words),
        prompt="What is it?",
        asked=True,
        ways={"heads": maps, "mean": maps, "learned": learned},
        heads=(("image", 1, 0),),
        vlm=VlmShape(3, 2, 8, ("image",)),
        channels=channels,
        kept=tuple(range(6)),
        facts={"backbone": "toy", "model": "toy"},
    )
