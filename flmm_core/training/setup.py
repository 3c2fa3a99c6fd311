"""From the settings of a run to a fresh head and the source of its features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from flmm_core.config import RunConfig
from flmm_core.errors import UsageError
from flmm_core.feature_cache.key import differences, frozen_facts
from flmm_core.feature_cache.read import StoredFeatures
from flmm_core.feature_cache.store import Store
from flmm_core.loader.dataset import FeatureSource, ObservedFeatures
from flmm_core.loader.remembered import RememberedFeatures
from flmm_core.pipeline.backbone.weights import choose_device
from flmm_core.pipeline.build import (
    build_from_config,
    build_head,
    load_refiner,
    reads_hidden,
    recipe_of,
)
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import HeadInfo
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec


@dataclass(frozen=True)
class Setup:
    """A fresh head and its features.

    Attributes:
        info: Written with the head's checkpoints.
        source: The features of any sample, or those of a cache.
        trained_on: The features to train on.
        vlm_digest: SHA-256 of the VLM weights behind these features.
        observed: Loads the frozen models if necessary; returns features of any sample and the
            digest of the VLM weights now.
    """

    head: Head
    info: HeadInfo
    source: FeatureSource
    trained_on: FeatureSource
    vlm_digest: str
    observed: Callable[[], tuple[FeatureSource, str]]


def open_observed(config: RunConfig, spec: BackboneSpec, progress: Progress) -> Setup:
    """Load the frozen models; they run on every batch."""
    progress.say(f"Loading {config.backbone}, model {config.model}")
    observer, head = build_from_config(config, spec)
    source = ObservedFeatures(observer, captions=config.head.keywords)
    digest = observer.backbone.weights_digest()
    memory = round(config.cache_memory * 1e9)
    return Setup(
        head=head,
        info=HeadInfo(
            recipe_of(config),
            observer.vlm,
            {**_facts(config), "reads": observer.backbone.rendered_prompt()},
            observer.backbone.identity(),
            observer.fingerprint,
            digest,
        ),
        source=source,
        trained_on=RememberedFeatures(source, memory) if memory else source,
        vlm_digest=digest,
        observed=lambda: (source, observer.backbone.weights_digest()),
    )


def open_cached(config: RunConfig, spec: BackboneSpec, progress: Progress) -> Setup:
    """Read features from a cache; the frozen models are loaded only to evaluate the head.

    The fresh weights of the head are those of a run without the cache.

    Raises:
        UsageError: There is no cache, or it was built for other settings.
    """
    assert config.cache is not None
    progress.say(f"Opening the cache {config.cache}")
    store = Store(config.cache)
    manifest, recipe = store.manifest, recipe_of(config)
    encoder, refiner = load_refiner(recipe, config.refiner_weights)
    store.check_made_for(frozen_facts(config, spec), hidden=reads_hidden(recipe), ends=recipe.ends)
    if config.exact and not manifest.packing.is_exact:
        raise UsageError(
            f"The cache in '{config.cache}' is not exact.",
            found=f"Its maps are stored as {manifest.maps}.",
            repair="Omit --exact, or build a cache with --maps float32.",
        )
    recipe = replace(recipe, channels=manifest.channels)
    head = build_head(recipe, manifest.vlm, refiner).to(choose_device(config.device))
    source = StoredFeatures(store, head.device, images=encoder is not None, ends=recipe.ends > 0)

    def observed() -> tuple[FeatureSource, str]:
        progress.say(f"Loading {config.backbone}, model {config.model}, to evaluate the head")
        observer, _ = build_from_config(config, spec)
        store.check_weights(found := observer.backbone.weights_digest())
        return ObservedFeatures(replace(observer, channels=manifest.channels)), found

    chosen = {"channels": manifest.measure} if manifest.measure else {}
    facts = {
        **_facts(config),
        "reads": manifest.made.get("reads", ""),
        "cache": {"maps": manifest.maps, **chosen},
    }
    return Setup(
        head=head,
        info=HeadInfo(
            recipe, manifest.vlm, facts, manifest.identity, manifest.fingerprint, manifest.sha256
        ),
        source=source,
        trained_on=source,
        vlm_digest=manifest.sha256,
        observed=observed,
    )


def _facts(config: RunConfig) -> dict[str, Any]:
    return {"steps": 0, "protocol": config.protocol, "data": config.data}


def check_same_cache(trained: HeadInfo, now: HeadInfo, cache: Path | None) -> None:
    """UsageError if a checkpoint was trained on a cache that stores something else than `cache`."""
    stored = (
        {"channels": info.recipe.channels, **(info.facts.get("cache") or {})}
        for info in (now, trained)
    )
    if different := differences(*stored):
        raise UsageError(
            f"The cache in '{cache}' is not like the one that the run began with.",
            found=different,
            repair="Give --cache the one that it began with, or another --output.",
        )
