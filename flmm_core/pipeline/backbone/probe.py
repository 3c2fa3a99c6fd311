"""A fixed drawn image and caption, and what a loaded model does with them.

Checks at load, the fingerprint of a head and the conformance kit share them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from unicodedata import normalize

import numpy as np
import torch
from PIL import Image

from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.types import BackboneBatch, BackboneInputs
from flmm_core.segment import Segment

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone

CAPTION = (Segment("the red circle", 0), Segment(" is left of "), Segment("a small blue star", 1))

HEIGHT, WIDTH = 160, 240


class _ReachedDecoderError(Exception):
    """Ends a forward where the language model would begin."""


def probe_image() -> Image.Image:
    """A red circle and a blue diamond on grain.

    Integers only: the same pixels on every machine and with every version of any library.
    """
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.int64)
    soft = np.stack([90 + x // 3, 190 - y // 2, 60 + (x + y) // 4], axis=2)
    soft[(y - 80) ** 2 + (x - 70) ** 2 < 45**2] = 210, 40, 40
    soft[abs(y - 70) + abs(x - 175) < 40] = 40, 60, 200
    for size in (1, 3, 7):  # however large a cell is, its pixels tell resize filters apart
        grain = (hashed(y // size * WIDTH + x // size + size) % 61).astype(np.int64) - 30
        soft += grain[:, :, None]
    return Image.fromarray(soft.clip(0, 255).astype(np.uint8))


def hashed(numbers: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.uint64]]:
    """Pseudo-random 32-bit integers of integers (SplitMix64), the same everywhere."""
    z = numbers.astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (z ^ (z >> np.uint64(31))) >> np.uint64(32)


def misread_phrases(
    backbone: Backbone, inputs: BackboneInputs, caption: Sequence[Segment]
) -> list[str]:
    """Phrases whose rows are not exactly the tokens of their words, in words."""
    ids, wrong = inputs.tokens["input_ids"], []
    for number, rows in enumerate(inputs.phrase_rows):
        words = backbone.tokenizer.decode(ids[rows]).strip()
        expected = next(s.text for s in caption if s.phrase == number).strip()
        if normalize("NFC", words) != normalize("NFC", expected):
            wrong.append(f"phrase {number}: its rows are {words!r}, not {expected!r}")
    return wrong


@contextmanager
def capturing(backbone: Backbone, *, stop: bool = False) -> Iterator[dict[str, Any]]:
    """Collect the inputs of the VLM's language model, which with `stop` does not run."""
    captured: dict[str, Any] = {}

    def capture(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        captured.update(kwargs)
        if stop:
            raise _ReachedDecoderError

    handle = backbone.vlm.get_decoder().register_forward_pre_hook(capture, with_kwargs=True)
    try:
        yield captured
    except _ReachedDecoderError:
        pass
    finally:
        handle.remove()


@torch.no_grad()
def decoder_inputs(backbone: Backbone, batch: BackboneBatch) -> dict[str, Any]:
    """The inputs of the VLM's language model: `inputs_embeds` (B, S, D), masks, positions.

    The language model does not run; the batch has no shared prefixes.
    """
    with capturing(backbone, stop=True) as captured:
        backbone.vlm.model(**to_vlm(backbone.vlm, batch.tensors), use_cache=False)
    return captured
