"""Reads features from a cache instead of running the frozen models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

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

    `images`: whether the head needs encoded images.
    """

    def __init__(self, store: Store, device: torch.device, *, images: bool) -> None:
        self.store = store
        self.device = device
        self.images = images
        self._digests: dict[Path, str] = {}

    def expect(self, samples: Sequence[Sample], progress: Progress) -> None:
        """Check that samples are in the cache.

        Raises:
            DataError: Some are missing, perhaps because files of the cache are broken.
        """
        keys, missing = sample_keys(samples, progress, "Checking the cache"), []
        for sample, key in zip(samples, keys, strict=True):
            self._digests[sample.image_path] = key.image
            has_image = not self.images or key.image in self.store.images
            if key.sample not in self.store.samples or not has_image:
                missing.append(sample.name)
        if missing:
            found = f"{len(missing)} of {len(samples)}, the first: '{missing[0]}'."
            if self.store.broken:
                path, reason = next(iter(self.store.broken.items()))
                found += f"\n{len(self.store.broken)} of its files are broken: {path} ({reason})."
            raise DataError(
                f"The cache in '{self.store.folder}' lacks samples of this run.",
                found=found,
                repair="Run `flmm cache build` with the settings of the run to add them.",
            )

    def prepare(self, sample: Sample) -> Features:
        return self.store.features(sample_key(sample, self._digests[sample.image_path]))

    def collate(self, prepared: Sequence[Any]) -> Any:
        return StoredBatch(tuple(prepared))

    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        """The stored features, with the hidden states of all layers regardless of weight."""
        stored: tuple[Features, ...] = batch.features
        return stored
