"""A feature cache on disk: `cache.json` and shards, each written atomically.

DIR/cache.json                 what the cache depends on and how it is stored
    features-HASH.safetensors  features of some samples and embeddings of their images; everything
                               else is in the metadata of the file, so there is no separate index
    features-HASH.safetensors.partial   an unfinished shard; useless after a stop
    left-out.json                  samples that cannot be used, by key, with the reason
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self, cast

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from flmm_core.errors import DataError, UsageError, WeightsError
from flmm_core.feature_cache.codec import MapType, Packing, SampleFacts, unpack
from flmm_core.feature_cache.key import differences
from flmm_core.files import discard_empty, hold, sweep, whole_file, write_json
from flmm_core.pipeline.backbone.fingerprint import Fingerprint
from flmm_core.pipeline.backbone.identity import ModelIdentity
from flmm_core.pipeline.types import EncodedImage, Features, VlmShape

MANIFEST, LEFT_OUT = "cache.json", "left-out.json"
NAME, SHARD = "features-", ".safetensors"
OPEN_SHARDS = 128
"""Maximum number of shards that a process keeps open."""


class Manifest(BaseModel):
    """The contents of `cache.json`.

    Attributes:
        key: What the features depend on, see `flmm_core.feature_cache.key`.
        sha256: Of the VLM's weights.
        identity: What heads recognize the VLM by; None in a cache of an earlier version.
        fingerprint: What the VLM did with a drawn image; None with --no-check, too.
        ends: For how many last tokens of each phrase maps of their own are stored.
        channels: The attention channels that are stored, ascending; empty means all.
        measure: How the channels were chosen.
        made: The machine that began the build, for information.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[2] = 2
    key: dict[str, Any]
    model: str
    vlm: VlmShape
    sha256: str
    identity: ModelIdentity | None = None
    fingerprint: Fingerprint | None = None
    maps: MapType
    hidden: bool
    ends: int = 0
    channels: tuple[int, ...] = ()
    measure: dict[str, Any] = {}
    made: dict[str, Any] = {}

    @property
    def packing(self) -> Packing:
        """How features are stored."""
        return Packing(self.maps, self.hidden, self.ends)

    def write(self, folder: Path) -> None:
        """Write `cache.json`."""
        write_json(folder / MANIFEST, self.model_dump(mode="json"))

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read `cache.json`.

        Raises:
            UsageError: The folder has no cache.
            DataError: The file is broken or of another version.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise UsageError(
                f"There is no feature cache in '{folder}'.",
                found=f"It has no {MANIFEST}." if folder.is_dir() else "It is not a folder.",
                repair="Build one with `flmm cache build DIR` and the settings of the run.",
            )
        try:
            return cls.model_validate_json(path.read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(
                f"'{path}' does not describe a feature cache of this version.",
                found=f"{error}",
                repair="Remove the folder and build the cache again.",
            ) from error


class StoredImage(NamedTuple):
    """An encoded image in a shard: its `input_hw`, and how many `details` it has."""

    input_hw: tuple[int, int]
    details: int
    path: Path


class Store:
    """Reads a cache. It can be pickled; shards are opened when needed.

    Attributes:
        samples: Facts and shard of each sample, by its key.
        images: What is known of each encoded image, by its key.
        broken: Shards that cannot be read, with the reason.
        left_out: Why samples without features cannot be used, by key. A key holds the contents of
            the image, so a repaired image is another sample.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = Manifest.read(folder)
        self.samples: dict[str, tuple[SampleFacts, Path]] = {}
        self.images: dict[str, StoredImage] = {}
        self.broken: dict[Path, str] = {}
        self._open = lru_cache(OPEN_SHARDS)(_open)
        for path in shards(folder):
            self._add(path)
        self.left_out = read_left_out(folder)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _open=lru_cache(OPEN_SHARDS)(_open))

    def _add(self, path: Path) -> None:
        try:
            with safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["flmm cache"])
            for key, record in about["samples"].items():
                self.samples[key] = SampleFacts.model_validate(record), path
            for key, (height, width, details) in about["images"].items():
                self.images[key] = StoredImage((height, width), details, path)
        except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
            self.broken[path] = f"{type(error).__name__}: {error}"

    def check_made_for(self, wanted: Mapping[str, Any], *, hidden: bool, ends: int) -> None:
        """UsageError if the cache was built with other settings than those of a run.

        It may hold more than the run reads: `hidden` states, or `ends` of more tokens.
        """
        made = self.manifest
        found = {"maps": made.maps, "channels": len(made.channels) or None, **made.key}
        found |= {"hidden states": made.hidden, "last tokens": made.ends}
        needed: dict[str, Any] = {"hidden states": True} if hidden else {}
        if made.ends < ends:
            needed["last tokens"] = ends
        if different := differences(found, {**wanted, **needed}):
            raise UsageError(
                f"The cache in '{self.folder}' was not built for this run.",
                found=different,
                repair="Use the settings that it was built with, build another one with "
                "`flmm cache build`, or remove it with `flmm cache clear`.",
            )

    def check_weights(self, digest: str) -> None:
        """WeightsError if a digest is not that of the VLM weights behind the cache."""
        if digest != self.manifest.sha256:
            raise WeightsError(
                "The weights of the model are not those that the cache was built with.",
                found=f"SHA-256 {digest[:12]}..., in the cache {self.manifest.sha256[:12]}....",
                repair="Use the same model, or build another cache.",
            )

    def features(self, key: str, *, ends: bool = True) -> Features:
        """The features of a sample; KeyError if it is not in the cache.

        Without `ends`, the maps of last tokens are not read.
        """
        facts, path = self.samples[key]
        file = self._open(path)
        packing = self.manifest.packing
        names = (packing if ends else replace(packing, ends=0)).names
        tensors = {name: file.get_tensor(f"{key}.{name}") for name in names}
        return unpack(tensors, facts, self._image(facts.image))

    def _image(self, key: str) -> EncodedImage | None:
        if key not in self.images:
            return None
        stored = self.images[key]
        file = self._open(stored.path)
        embedding, *details = map(file.get_tensor, _image_names(key, stored.details))
        return EncodedImage(embedding, stored.input_hw, tuple(details))


class ShardWriter:
    """Collects features; `flush` writes them as a shard.

    Attributes:
        bytes: Size of what was collected since the last `flush`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bytes = 0
        self._tensors: dict[str, Tensor] = {}
        self._about: dict[str, dict[str, Any]] = {"samples": {}, "images": {}}

    def add_sample(self, key: str, facts: SampleFacts, tensors: Mapping[str, Tensor]) -> None:
        """Add the packed features of a sample."""
        self._about["samples"][key] = facts.model_dump(mode="json")
        for name, tensor in tensors.items():
            self._tensors[f"{key}.{name}"] = tensor
            self.bytes += tensor.nbytes

    def add_image(self, key: str, image: EncodedImage, dtype: torch.dtype) -> None:
        """Add an encoded image, its values stored in `dtype`."""
        self._about["images"][key] = *image.input_hw, len(image.details)
        for name, values in zip(_image_names(key, len(image.details)), image.tensors, strict=True):
            self._tensors[name] = values.to("cpu", dtype).contiguous()
            self.bytes += self._tensors[name].nbytes

    def flush(self) -> None:
        """Write a shard.

        Raises:
            OSError: The disk is full or cannot be written; no partial file is left.
        """
        name = hashlib.sha256(" ".join(sorted(self._tensors)).encode()).hexdigest()[:32]
        path = self.folder / f"{NAME}{name}{SHARD}"
        about = {"flmm cache": json.dumps(self._about)}
        try:
            with whole_file(path, sync=True) as partial:
                save_file(self._tensors, partial, metadata=about)
        except SafetensorError as error:
            # The system's errno is only in the message: "I/O error: ... (os error 28)".
            number = re.search(r"os error (\d+)", str(error))
            code = int(number[1]) if number else errno.EIO
            raise OSError(code, str(error), str(path)) from error
        self._tensors, self._about, self.bytes = {}, {"samples": {}, "images": {}}, 0


def _image_names(key: str, details: int) -> list[str]:
    """The names of an encoded image's tensors in a shard, in the order of `tensors`."""
    return [f"{key}.embedding", *(f"{key}.detail{place}" for place in range(details))]


def read_left_out(folder: Path) -> dict[str, str]:
    """`left-out.json`; empty if there is none or it is broken, so that its samples are tried."""
    try:
        found = json.loads((folder / LEFT_OUT).read_bytes())
    except (OSError, ValueError):
        return {}
    return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}


def shards(folder: Path) -> list[Path]:
    """The shards of a cache, sorted by name."""
    return sorted(folder.glob(f"{NAME}*{SHARD}"))


def clear(folder: Path) -> int:
    """Remove a cache, and the folder if it is then empty; returns the freed bytes.

    Raises:
        UsageError: The folder has no cache, or it is being built.
    """
    if not (folder / MANIFEST).is_file():
        Manifest.read(folder)  # raises
    freed = 0
    with hold(folder, "building the cache in"):
        sweep(folder, NAME)
        for path in (*shards(folder), folder / LEFT_OUT, folder / MANIFEST):
            freed += path.stat().st_size if path.exists() else 0
            path.unlink(missing_ok=True)
        discard_empty(folder)
    return freed


def _open(path: Path) -> Any:
    try:
        return cast(Any, safe_open(path, framework="pt"))
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"The cache file '{path}' cannot be read.",
            found=f"{type(error).__name__}: {error}.",
            repair="Run `flmm cache build` again: it rebuilds only what is broken or missing.",
        ) from error
