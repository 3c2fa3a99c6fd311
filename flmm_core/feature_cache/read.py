"""Reads features from a cache instead of running the frozen models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.errors import DataError
from flmm_core.feature_cache.key import sample_key, sample_keys
from flmm_core.feature_cache.store import Store
from flmm_core.loader.dataset import FeatureSource
from flmm_core.pipeline.types import Features
from flmm_core.progress import Progress


@dataclass(frozen=True)
class StoredBatch:
    """The features of a batch."""

    features: tuple[Features, ...]

    def pin_memory(self) -> StoredBatch:
        """The same with page-locked tensors; called by the DataLoader."""
        return StoredBatch(tuple(each.pin_memory() for each in self.features))


class StoredFeatures(FeatureSource):
    """The features in a cache, of the samples passed to `expect`.

    `images`: whether the head needs encoded images; `ends`: maps of last tokens.
    """

    def __init__(
        self, store: Store, device: torch.device, *, images: bool, ends: bool = False
    ) -> None:
        self.store = store
        self.device = device
        self.images = images
        self.ends = ends
        self._digests: dict[Path, str] = {}

    def expect(self, samples: Sequence[Sample], left_out: LeftOut, progress: Progress) -> None:
        """Check that samples are in the cache, but for those that the build had to leave out.

        Raises:
            DataError: Some are missing, perhaps because files of the cache are broken.
        """
        missing: list[int] = []
        for index, key in enumerate(sample_keys(samples, left_out, progress, "Checking the cache")):
            if key is None:
                continue
            self._digests[key.path] = key.image
            has_image = not self.images or key.image in self.store.images
            if reason := self.store.left_out.get(key.sample):
                left_out.add(index, reason)
            elif key.sample not in self.store.samples or not has_image:
                missing.append(index)
        if missing:
            first = samples[missing[0]].name
            found = f"{len(missing)} of {len(samples)}, the first: '{first}'."
            if self.store.broken:
                path, reason = next(iter(self.store.broken.items()))
                found += f"\n{len(self.store.broken)} of its files are broken: {path} ({reason})."
            raise DataError(
                f"The cache in '{self.store.folder}' lacks samples of this run.",
                found=found,
                repair="Run `flmm cache build` with the settings of the run to add them.",
            )

    def prepare(self, sample: Sample) -> Features:
        digest = self._digests.get(sample.image_path)
        key = "" if digest is None else sample_key(sample, digest)
        if key not in self.store.samples:
            reason = self.store.left_out.get(key, "Its image could not be read.")
            raise DataError(f"The cache has no features of '{sample.name}'.", found=reason)
        return self.store.features(key, ends=self.ends)

    def collate(self, prepared: Sequence[Any]) -> Any:
        return StoredBatch(tuple(prepared))

    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        """The stored features, with the hidden states of all layers regardless of weight."""
        stored: tuple[Features, ...] = batch.features
        return stored
