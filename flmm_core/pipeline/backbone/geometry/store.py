"""Measurements on the disk: what one process measured, others read.

One folder for everything that a measurement depends on, one file for each image size. A file that
is damaged, or belongs to something else, counts as missing.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from flmm_core.files import cache_folder, sealed, write_json
from flmm_core.pipeline.backbone.geometry.measured import Measured
from flmm_core.pipeline.backbone.geometry.ramps import prompt
from flmm_core.pipeline.types import ImageView
from flmm_core.plugins import package_version

logger = logging.getLogger(__name__)

FORMAT = 2
"""Changes whenever the code measures otherwise, so that older files are not read."""

PACKAGES = ("transformers", "torch", "torchvision", "pillow", "numpy", "timm")
NO_GEOMETRY = {"transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures"}
LOCKS = 16


def digest(config: Any, processor: Any) -> str:
    """Hexadecimal digest of everything that a measurement depends on but the image size."""
    text = prompt(processor)
    parts = processor, processor.image_processor
    facts = {
        "format": FORMAT,
        "config": _plain(config.to_dict()),
        "processor": [_plain(part.to_dict()) for part in parts],
        "classes": [_class(type(part)) for part in (*parts, config)],
        "prompt": [text, processor.tokenizer(text)["input_ids"], len(processor.tokenizer)],
        "packages": {name: package_version(name) for name in PACKAGES},
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key not in NO_GEOMETRY}


def _class(kind: type) -> list[str]:
    """Its name, and its code where that belongs to no version of transformers."""
    named = [kind.__module__, kind.__qualname__]
    if kind.__module__.startswith("transformers."):
        return named
    try:
        return [*named, inspect.getsource(inspect.getmodule(kind) or kind)]
    except (OSError, TypeError):
        return named


class GeometryStore:
    """The measurements of one model on the disk; a disk that cannot be used keeps none."""

    def __init__(self, key: str) -> None:
        """`key` is the model's `digest`."""
        self.key = key

    @property
    def folder(self) -> Path:
        return cache_folder() / "geometry" / self.key

    def path(self, image_hw: tuple[int, int]) -> Path:
        """The file of one image size."""
        return self.folder / f"{image_hw[0]}x{image_hw[1]}.json"

    def get(self, image_hw: tuple[int, int], measure: Callable[[], Measured]) -> Measured:
        """What is on the disk, or what `measure` returns; one process measures, others wait."""
        found = self._read(image_hw)
        if found is not None:
            return found
        with self._turn(image_hw):
            found = self._read(image_hw)
            if found is None:
                found = measure()
                self._write(image_hw, found)
        return found

    @contextmanager
    def _turn(self, image_hw: tuple[int, int]) -> Iterator[None]:
        from filelock import FileLock

        lock = FileLock(self.folder / f"{(image_hw[0] * 31 + image_hw[1]) % LOCKS}.lock")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except (OSError, NotImplementedError) as error:
            logger.debug("Measured geometry is not shared: %s", error)
        try:
            yield
        finally:
            lock.release()

    def _read(self, image_hw: tuple[int, int]) -> Measured | None:
        try:
            content = json.loads(self.path(image_hw).read_bytes())
            if content == sealed(content) and _mark(self.key, image_hw) == content["of"]:
                return _measured(content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError):
            pass  # missing or damaged: it is measured again
        return None

    def _write(self, image_hw: tuple[int, int], found: Measured) -> None:
        views = [
            {"name": view.name, "box": view.image_box, "tokens": view.token_index.tolist()}
            for view in found.views
        ]
        content = {
            "of": _mark(self.key, image_hw),
            "views": views,
            "image_tokens": found.image_tokens,
            "separators": found.separators,
            "residual": found.residual,
        }
        try:
            write_json(self.path(image_hw), sealed(content), compact=True)
        except OSError as error:
            logger.debug("Measured geometry is not kept: %s", error)


def _mark(key: str, image_hw: tuple[int, int]) -> list[str | int]:
    return [key, *image_hw]


def _measured(content: dict[str, Any]) -> Measured:
    views = tuple(
        ImageView(
            view["name"],
            torch.tensor(view["tokens"], dtype=torch.int64),
            tuple(map(float, view["box"])),  # type: ignore[arg-type]
        )
        for view in content["views"]
    )
    return Measured(views, content["image_tokens"], content["separators"], content["residual"])
