"""A cache on disk: `cache.json` and shards, each written whole or not at all.

DIR/cache.json                 what the cache depends on and how it is stored
    features-HASH.safetensors  some samples' features and their images' embeddings; what is no
                               tensor stands in its metadata, so that no index can disagree with it
    features-HASH.safetensors.partial   a shard in the making; of no use after a stop
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Self, cast

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flmm_core.errors import DataError, UsageError
from flmm_core.feature_cache.codec import MapType, Packing, SampleFacts, unpack
from flmm_core.pipeline.types import EncodedImage, Features
from flmm_core.training.run_folder import write_json

FORMAT = 1
MANIFEST = "cache.json"
NAME, SHARD, PARTIAL = "features-", ".safetensors", ".safetensors.partial"
OPEN_SHARDS = 128
"""Most shards that a process keeps open."""


@dataclass(frozen=True)
class VlmFacts:
    """What a head's shape depends on."""

    model: str
    layers: int
    heads: int
    hidden_size: int
    views: tuple[str, ...]
    sha256: str

    @property
    def channels(self) -> int:
        """C, the attention channels that there are."""
        return len(self.views) * self.layers * self.heads


@dataclass(frozen=True)
class Manifest:
    """What `cache.json` holds.

    Attributes:
        key: What the features depend on, see `flmm_core.feature_cache.key`.
        vlm: Of the model that made them.
        maps: Number type of the maps.
        hidden: Whether hidden rows are kept.
        channels: The attention channels that are kept, ascending; empty means all.
        measure: How they were chosen.
        made: Where the cache was begun, for information.
    """

    key: Mapping[str, Any]
    vlm: VlmFacts
    maps: MapType
    hidden: bool
    channels: tuple[int, ...] = ()
    measure: Mapping[str, Any] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)

    @property
    def packing(self) -> Packing:
        """How the features are stored."""
        return Packing(self.maps, self.hidden)

    def write(self, folder: Path) -> None:
        """Write `cache.json`, whole or not at all."""
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / MANIFEST, {"format": FORMAT, **asdict(self)})

    @classmethod
    def read(cls, folder: Path) -> Self:
        """What `write` wrote.

        Raises:
            UsageError: There is no cache in the folder.
            DataError: The file is broken or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise UsageError(
                f"There is no feature cache in '{folder}'.",
                found=f"It has no {MANIFEST}." if folder.is_dir() else "It is no folder.",
                repair="Make one with `flmm cache build DIR` and the settings of the run.",
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content.pop("format") != FORMAT:
                raise ValueError(f"its format is not {FORMAT}")
            vlm = content.pop("vlm")
            content["vlm"] = VlmFacts(**vlm | {"views": tuple(vlm["views"])})
            content["channels"] = tuple(content["channels"])
            return cls(**content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"'{path}' does not describe a feature cache of this version.",
                found=f"{type(error).__name__}: {error}.",
                repair="Remove the folder and build the cache again.",
            ) from error


class Store:
    """The shards of a cache, for reading. It can be pickled; files are opened when needed.

    Args:
        folder: Holds `cache.json`.

    Attributes:
        samples: Facts and shard of each sample, by its key.
        images: Input size and shard of each image with an embedding, by its key.
        broken: Shards that cannot be read, and why.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self.samples: dict[str, tuple[SampleFacts, Path]] = {}
        self.pictures: dict[str, tuple[tuple[int, int], Path]] = {}
        self.broken: dict[Path, str] = {}
        self._open = lru_cache(OPEN_SHARDS)(_open)
        for path in shards(folder):
            self.add(path)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=lru_cache(OPEN_SHARDS)(_open))

    def add(self, path: Path) -> None:
        """Take note of what a shard holds; a truncated or foreign one goes to `broken`."""
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["flmm cache"])
            for key, record in about["samples"].items():
                self.samples[key] = SampleFacts.from_json(record), path
            for key, (height, width) in about["pictures"].items():
                self.pictures[key] = (height, width), path
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self.broken[path] = f"{type(error).__name__}: {error}"

    def features(self, key: str) -> Features:
        """The features of a sample; KeyError if it is not here."""
        facts, path = self.samples[key]
        file = self._open(path)
        names = self.manifest.packing.names
        tensors = {name: file.get_tensor(f"{key}.{name}") for name in names}
        return unpack(tensors, facts, self._image(facts.picture))

    def _image(self, key: str) -> EncodedImage | None:
        if key not in self.pictures:
            return None
        input_hw, path = self.pictures[key]
        return EncodedImage(self._open(path).get_tensor(f"{key}.embedding"), input_hw)


class ShardWriter:
    """Collects features and writes a shard when `flush` is called.

    Args:
        folder: Of the cache.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self._tensors: dict[str, Tensor] = {}
        self._samples: dict[str, Any] = {}
        self._images: dict[str, Any] = {}

    def add_sample(self, key: str, facts: SampleFacts, tensors: Mapping[str, Tensor]) -> None:
        """Take a sample's packed features."""
        self._samples[key] = asdict(facts)
        self._take({f"{key}.{name}": tensor for name, tensor in tensors.items()})

    def add_image(self, key: str, input_hw: tuple[int, int], embedding: Tensor) -> None:
        """Take an image's embedding, (E, g, g) on the CPU."""
        self._images[key] = list(input_hw)
        self._take({f"{key}.embedding": embedding.contiguous()})

    def _take(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors.update(tensors)
        self.bytes += sum(tensor.nbytes for tensor in tensors.values())

    def flush(self) -> Path | None:
        """Write what was collected under its final name, safe on the disk; None if nothing was.

        Raises:
            OSError: The disk is full or cannot be written; nothing half-written stays.
        """
        if not self._tensors:
            return None
        name = hashlib.sha256(" ".join(sorted(self._tensors)).encode()).hexdigest()[:32]
        path, partial = self.folder / f"{NAME}{name}{SHARD}", self.folder / f"{NAME}{name}{PARTIAL}"
        about = json.dumps({"samples": self._samples, "pictures": self._images})
        try:
            save_file(self._tensors, partial, metadata={"flmm cache": about})
            with partial.open("rb") as file:
                os.fsync(file.fileno())
            partial.replace(path)
        except SafetensorError as error:
            # It hides the operating system's error in its text: "I/O error: ... (os error 28)".
            raise OSError(_number(str(error)), str(error), str(path)) from error
        finally:
            partial.unlink(missing_ok=True)
        self._tensors, self._samples, self._images, self.bytes = {}, {}, {}, 0
        return path


def shards(folder: Path) -> list[Path]:
    """The shards of a cache, sorted by name."""
    return sorted(folder.glob(f"{NAME}*{SHARD}"))


def sweep(folder: Path) -> None:
    """Remove what a stop left half-written."""
    for path in folder.glob(f"{NAME}*{PARTIAL}"):
        path.unlink()


def clear(folder: Path) -> int:
    """Remove a cache, and the folder if nothing else is in it; gives the bytes that it held.

    Raises:
        UsageError: There is no cache in the folder.
    """
    if not (folder / MANIFEST).is_file():
        Manifest.read(folder)
    freed = 0
    for path in (*shards(folder), *folder.glob(f"{NAME}*{PARTIAL}"), folder / MANIFEST):
        freed += path.stat().st_size
        path.unlink()
    if not any(folder.iterdir()):
        folder.rmdir()
    return freed


def size_on_disk(paths: Iterable[Path]) -> int:
    """Bytes of files."""
    return sum(path.stat().st_size for path in paths)


def _open(path: Path) -> Any:
    try:
        return cast(Any, safe_open(path, framework="pt"))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"The cache's file '{path}' cannot be read.",
            found=f"{type(error).__name__}: {error}.",
            repair="Run `flmm cache build` again: it makes anew only what is broken or missing.",
        ) from error


def _number(text: str) -> int:
    """The operating system's number in a text of safetensors, or that of an I/O error."""
    found = re.search(r"os error (\d+)", text)
    return int(found[1]) if found else errno.EIO
