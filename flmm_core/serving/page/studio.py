"""What the page can do, without the web: take images, ground phrases, answer, explain."""

from __future__ import annotations

import base64
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flmm_core.data import rle
from flmm_core.errors import DataError, UsageError
from flmm_core.pipeline.mask_logits import above, portions
from flmm_core.pipeline.result import Result
from flmm_core.serving.page.held import (
    HELD_IMAGES,
    HELD_RESULTS,
    SHOWN,
    HeldImage,
    ImageShelf,
    Shelf,
)
from flmm_core.serving.page.models import Loaded, Models

STAMP = (1980, 1, 1, 0, 0, 0)
"""The time of files in a ZIP, so that the same masks are the same file."""


@dataclass(frozen=True, eq=False)
class Found:
    """A result that the page may ask about again."""

    result: Result


@dataclass
class Studio:
    """The page's models, images and results."""

    models: Models
    images: ImageShelf = field(default_factory=lambda: ImageShelf(HELD_IMAGES))
    results: Shelf[Found] = field(default_factory=lambda: Shelf(HELD_RESULTS))

    def choose(self, name: str) -> dict[str, Any]:
        """Load a model; what the page needs to know of it."""
        return _facts(self.models.load(name))

    def take(self, image: Image.Image) -> dict[str, Any]:
        """Keep an image (RGB, upright) in memory; its name in requests, and its size."""
        name = self.images.put(HeldImage.of(image))
        return {"id": name, "width": image.width, "height": image.height}

    def image(self, name: str) -> HeldImage:
        """An image that was taken; DataError if it was forgotten."""
        if (held := self.images.get(name)) is None:
            raise DataError(
                "The image is no longer in memory.",
                found="Others came since, or the server was started anew.",
                repair="Choose it again.",
            )
        return held

    def ground(self, model: str, image: str, phrases: Sequence[str]) -> dict[str, Any]:
        """Masks of phrases, for the page.

        Raises:
            UsageError: A phrase is empty, or the model has no head.
        """
        held = self.image(image)
        grounder = self.models.load(model).grounder
        if grounder is None:
            raise UsageError("Without a trained head there are no masks.")
        result = grounder.ground(held.image, phrases, keep_absent=True)
        return self._keep(Found(result))

    def _keep(self, found: Found) -> dict[str, Any]:
        return {"id": self.results.put(found), "found": _parts(found.result)}

    def _result(self, name: str, threshold: float = 0) -> Result:
        if (found := self.results.get(name)) is None:
            raise DataError(
                "The result is no longer in memory.",
                found="Others came since, or the server was started anew.",
                repair="Ask again.",
            )
        result = found.result
        return result if result.probabilities.isnan().any() else result.abstain(threshold)

    def overlay(self, name: str, threshold: float, opacity: float) -> bytes:
        """PNG of the image with all masks and their legend."""
        return _png(self._result(name, threshold).overlay(opacity=opacity))

    def masks(self, name: str, threshold: float) -> bytes:
        """ZIP of one PNG (0 and 255) a phrase, mask-1.png, ..., with the phrases in names.txt."""
        result = self._result(name, threshold)
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            names = []
            for number, phrase in enumerate(result.phrases, start=1):
                mask = Image.fromarray(result.mask(number - 1).numpy() * np.uint8(255))
                archive.writestr(zipfile.ZipInfo(f"mask-{number}.png", STAMP), _png(mask))
                names.append(f"mask-{number}.png\t{' '.join(phrase.split())}\n")
            archive.writestr(zipfile.ZipInfo("names.txt", STAMP), "".join(names))
        return file.getvalue()

    def coco(self, name: str, threshold: float) -> bytes:
        """JSON of `Result.to_coco`."""
        return json.dumps(self._result(name, threshold).to_coco(), ensure_ascii=False).encode()


def _facts(loaded: Loaded) -> dict[str, Any]:
    headless = ""
    if loaded.grounder is None:
        headless = (
            "Without a trained head there are no masks. Train one: flmm train --backbone "
            f"{loaded.backbone.spec.name}"
        )
    return {
        "id": loaded.choice.id,
        "head": loaded.grounder is not None,
        "chat": False,
        "prompt": loaded.backbone.prompt,
        "threshold": loaded.threshold,
        "headless": headless,
        "note": headless,
    }


def _parts(result: Result) -> list[dict[str, Any]]:
    """The records of `to_coco`, each with its coarse mask as large as the browser shows it."""
    records = result.to_coco()
    scale = min(1.0, SHOWN / max(result.image.size))
    size = max(1, round(scale * result.image.height)), max(1, round(scale * result.image.width))
    for part in portions(len(result), size):
        for record, mask in zip(
            records[part], above(result.coarse_logits[part], size, 0), strict=True
        ):
            code = rle.encode(mask.numpy())
            record["coarse"] = {"size": code["size"], "counts": code["counts"].decode("ascii")}
    return records


def heat(values: NDArray[np.floating]) -> dict[str, Any]:
    """(h, w) values in [0, 1] in steps of 1/255, row by row."""
    steps = (np.asarray(values) * 255).round().clip(0, 255).astype(np.uint8)
    height, width = steps.shape
    return {
        "height": height,
        "width": width,
        "values": base64.b64encode(steps.tobytes()).decode("ascii"),
    }


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()
