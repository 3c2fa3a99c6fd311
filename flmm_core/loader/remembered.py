"""Features of the frozen models that are computed once and kept in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flmm_core.data.sample import Sample
from flmm_core.loader.dataset import FeatureSource, ObservedFeatures
from flmm_core.pipeline.observer import ObserverBatch
from flmm_core.pipeline.types import Features
from flmm_core.segment import Segment

Key = tuple[Path, tuple[int, int], bool, tuple[Segment, ...]]
"""All of a sample that its features depend on."""


@dataclass(frozen=True)
class SeenBatch:
    """Samples by key, each observed alone; `inputs` is None where the features are known."""

    keys: tuple[Key, ...]
    inputs: tuple[ObserverBatch | None, ...]

    def pin_memory(self) -> SeenBatch:
        """The same with page-locked tensors; called by the DataLoader."""
        return replace(self, inputs=tuple(each and each.pin_memory() for each in self.inputs))


class RememberedFeatures(FeatureSource):
    """Runs the frozen models on a sample when it is first seen, and keeps what they say of it.

    Samples are observed one by one, so features do not depend on which samples came first: a
    resumed run, which remembers nothing, trains on the same. Features stay in host memory, none
    is ever dropped, and once `limit` is reached further samples are observed each time. DataLoader
    workers know nothing and prepare every sample.

    Attributes:
        bytes: Of the kept features.
    """

    def __init__(self, observed: ObservedFeatures, limit: int) -> None:
        one_by_one = replace(observed.observer, one_by_one=True)
        self.observed = ObservedFeatures(one_by_one, captions=observed.captions)
        self.device, self.limit = observed.device, limit
        self._known: dict[Key, Features] = {}
        self.bytes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_known": {}}

    @property
    def count(self) -> int:
        """How many samples are known."""
        return len(self._known)

    def forget(self) -> dict[Key, Features]:
        """Keep none of them any longer; returns them, for `know`."""
        known, self._known, self.bytes = self._known, {}, 0
        return known

    def know(self, known: Mapping[Key, Features]) -> None:
        """Keep what was known before, as far as there is room."""
        for key, seen in known.items():
            self._keep(key, seen)

    def prepare(self, sample: Sample) -> Any:
        key = sample.image_path, sample.image_hw, sample.as_stored, sample.segments
        return key, None if key in self._known else self.observed.prepare(sample)

    def collate(self, prepared: Sequence[Any]) -> SeenBatch:
        keys, inputs = zip(*prepared, strict=True)
        alone = (None if each is None else self.observed.collate([each]) for each in inputs)
        return SeenBatch(keys, tuple(alone))

    def features(
        self, batch: Any, *, layer_weights: Sequence[float] | None = None
    ) -> tuple[Features, ...]:
        """One `Features` per sample, always with the hidden states of all layers."""
        found = []
        for key, inputs in zip(batch.keys, batch.inputs, strict=True):
            if key not in self._known and inputs is not None:
                (seen,) = self.observed.features(inputs)
                found.append(self._keep(key, seen))
            else:
                found.append(self._known[key])
        return tuple(found)

    def _keep(self, key: Key, seen: Features) -> Features:
        size = size_of(seen)
        if key in self._known or self.bytes + size > self.limit:
            return seen
        self._known[key] = seen = _on_host(seen)
        self.bytes += size
        return seen


def size_of(features: Features) -> int:
    """Bytes of the tensors."""
    return sum(each.nbytes for each in _tensors(features))


def _tensors(features: Features) -> list[Tensor]:
    image = () if features.image is None else features.image.tensors
    caption = features.caption
    whole = [] if caption is None else [caption.hidden, caption.phrase]
    return [*features.maps.tensors, features.hidden, features.row_phrase, *whole, *image]


def _on_host(features: Features) -> Features:
    """A copy in host memory that holds on to nothing else: tensors may be parts of a batch's."""
    image, caption = features.image, features.caption
    return Features(
        features.maps.each(_copied),
        _copied(features.hidden),
        _copied(features.row_phrase),
        image and image.with_tensors(map(_copied, image.tensors)),
        features.image_hw,
        caption
        and replace(caption, hidden=_copied(caption.hidden), phrase=_copied(caption.phrase)),
    )


def _copied(tensor: Tensor) -> Tensor:
    like = torch.empty_like(tensor, device="cpu", memory_format=torch.contiguous_format)
    return like.copy_(tensor)
