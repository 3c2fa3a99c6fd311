"""The flow that reads a cache: it holds no VLM and no image encoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

from flmm_core.data.sample import Sample
from flmm_core.errors import DataError, UsageError, WeightsError
from flmm_core.feature_cache.build import other_cache
from flmm_core.feature_cache.key import SampleKey, differences, sample_key, sample_keys
from flmm_core.feature_cache.store import Manifest, Store, VlmFacts
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.head_folder import Grounder, Recipe
from flmm_core.pipeline.types import Features, Grounding
from flmm_core.progress import Progress


class AbsentBackbone(Backbone):
    """What is known of a VLM that is not here.

    Args:
        facts: From the cache.
    """

    def __init__(self, facts: VlmFacts) -> None:
        self.facts = facts
        self.model = facts.model
        # Of a class elsewhere; here the class stands for every family.
        self.__dict__["view_names"] = facts.views

    @property
    def num_layers(self) -> int:
        """L."""
        return self.facts.layers

    @property
    def num_heads(self) -> int:
        """N."""
        return self.facts.heads

    @property
    def hidden_size(self) -> int:
        """D."""
        return self.facts.hidden_size

    def weights_digest(self) -> str:
        """Of the weights that the cache was made with."""
        return self.facts.sha256

    @classmethod
    def _load(cls, *_: Any, **__: Any) -> NoReturn:
        raise RuntimeError("this backbone has no weights to load")

    def _views(self, *_: Any) -> NoReturn:
        raise RuntimeError("the model was not loaded: a cache is read in its place")


@dataclass(frozen=True)
class StoredBatch:
    """The features of samples that go through the trained half together."""

    features: tuple[Features, ...]

    def __len__(self) -> int:
        return len(self.features)

    def pin_memory(self) -> StoredBatch:
        """The same with page-locked tensors; what a DataLoader calls."""
        return StoredBatch(tuple(each.pin_memory() for each in self.features))


class CachedGrounder(Grounder):
    """A head that is trained on a cache.

    Samples are asked for by their contents (`stored`), and a batch is a `StoredBatch`. Made by
    `open_cached`.
    """

    store: Store
    pictures: dict[Path, str]

    def expect(self, samples: Sequence[Sample], progress: Progress) -> None:
        """See that samples are in the cache, before anything is trained on them.

        Raises:
            DataError: Some are not, or files of the cache are broken.
        """
        keys, missing = sample_keys(samples, progress, "Checking the cache"), []
        for sample, key in zip(samples, keys, strict=True):
            self.pictures[sample.image_path] = key.picture
            if not self._holds(key):
                missing.append(sample.name)
        if missing:
            found = f"{len(missing)} of {len(samples)}, the first: '{missing[0]}'."
            if self.store.broken:
                path, reason = next(iter(self.store.broken.items()))
                found += f"\n{len(self.store.broken)} of its files are broken: {path} ({reason})."
            raise DataError(
                f"The cache in '{self.store.folder}' lacks samples of this run.",
                found=found,
                repair="Run `flmm cache build` with the settings of the run: it adds them.",
            )

    @property
    def cache_facts(self) -> dict[str, Any]:
        """For a head's `config.json`: how the features were stored that it was trained on."""
        made = self.store.manifest
        chosen = {"channels": made.measure} if made.measure else {}
        return {"cache": {"maps": made.maps, **chosen}}

    def _holds(self, key: SampleKey) -> bool:
        if key.sample not in self.store.samples:
            return False
        return self.recipe.refiner == "none" or key.picture in self.store.pictures

    def stored(self, sample: Sample) -> Features:
        """The features of a sample that was expected."""
        return self.store.features(sample_key(sample, self.pictures[sample.image_path]).sample)

    def collate(self, samples: Sequence[Any]) -> Any:
        """Features stay by sample."""
        return StoredBatch(tuple(samples))

    def forward(self, batch: Any) -> tuple[Grounding, ...]:
        """One `Grounding` for each sample of a `StoredBatch`."""
        return self.decide(batch.features)


def open_cached(
    folder: Path,
    recipe: Recipe,
    facts: Mapping[str, Any],
    *,
    exact: bool = False,
    device: str = "auto",
    refiner_weights: Path | None = None,
) -> CachedGrounder:
    """A flow with a fresh head behind a cache.

    The head's weights are those of a run without it: they follow from torch's random state.

    Args:
        folder: Of the cache.
        recipe: What to build; the channels are the cache's.
        facts: From `frozen_facts`, of the run.
        exact: Refuse a cache whose maps are not float32.
        device: "auto" takes the first accelerator.
        refiner_weights: SAM's own file.

    Raises:
        UsageError: There is no cache, or it was made for something else.
    """
    store = Store(folder)
    wanted = dict(facts)
    if recipe.refiner != "none" and recipe.text:
        wanted["hidden rows"] = True
    if other := differences({**store.manifest.key, "hidden rows": store.manifest.hidden}, wanted):
        raise other_cache(folder, other)
    if exact and not store.manifest.packing.is_exact:
        raise UsageError(
            f"The cache in '{folder}' is not exact.",
            found=f"Its maps are stored as {store.manifest.maps}.",
            repair="Leave out --exact, or build a cache with --maps float32.",
        )
    grounder = CachedGrounder.build(
        replace(recipe, channels=store.manifest.channels),
        device=device,
        refiner_weights=refiner_weights,
        stand_in=AbsentBackbone(store.manifest.vlm),
    )
    grounder.store, grounder.pictures = store, {}
    return grounder


def check_made_with(manifest: Manifest, grounder: Grounder) -> None:
    """`WeightsError` if a loaded VLM is not the one that the cache was made with."""
    wanted, found = manifest.vlm.sha256, grounder.backbone.weights_digest()
    if wanted != found:
        raise WeightsError(
            "The model's weights are not those that the cache was made with.",
            found=f"SHA-256 {found[:12]}..., in the cache {wanted[:12]}....",
            repair="Use the same model for training and evaluation.",
        )
