"""Builds a cache: forecasts its size, then runs the frozen models once per sample.

Samples are observed one by one, so that no padding of a batch changes the last bits of a feature;
`flmm train --exact` does the same without a cache.
"""

from __future__ import annotations

import errno
import platform
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rich.filesize import decimal

from flmm_core.config import RunConfig, SkipLimit, Workers
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.data.sources import JoinedSamples, open_sources
from flmm_core.errors import FlmmError, Problems, RunError
from flmm_core.feature_cache.channels import choose_channels
from flmm_core.feature_cache.codec import MapType, SampleFacts, pack
from flmm_core.feature_cache.key import SampleKey, frozen_facts, sample_keys
from flmm_core.feature_cache.store import (
    LEFT_OUT,
    MANIFEST,
    NAME,
    Manifest,
    ShardWriter,
    Store,
    read_left_out,
)
from flmm_core.files import discard_empty, free_bytes, hold, sweep, write_json
from flmm_core.loader.dataset import ExampleDataset, ObservedFeatures, read_batches
from flmm_core.loader.samplers import spread
from flmm_core.pipeline.build import build_from_config, check_config, reads_hidden, recipe_of
from flmm_core.pipeline.observer import Observer
from flmm_core.progress import Progress, StopRequest
from flmm_core.spec import BackboneSpec

SHARD_BYTES = 256 << 20
SHARD_SECONDS = 120.0
"""A shard is written at this size or age; a killed build loses no more."""
LOOKED_AT = 64
"""Maximum number of samples that a forecast prepares, spread evenly."""
RESERVE = 64 << 20
"""Bytes of the disk that stay free."""


@dataclass(frozen=True)
class Forecast:
    """What a build will write: samples, encoded images, and the bytes of each kind of tensor.

    Attributes:
        is_exact: Whether all samples were counted, not only a few.
    """

    samples: int = 0
    images: int = 0
    maps: int = 0
    hidden: int = 0
    embeddings: int = 0
    is_exact: bool = True

    @property
    def total(self) -> int:
        """Bytes."""
        return self.maps + self.hidden + self.embeddings

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        return (
            f"{about}{decimal(self.total)} for {self.samples} samples: maps "
            f"{decimal(self.maps)}, hidden states {decimal(self.hidden)}, "
            f"{self.images} image embeddings {decimal(self.embeddings)}"
        )


@dataclass(frozen=True)
class _Work:
    """What a build has to do: the places of missing samples, and the images to encode."""

    samples: Sequence[Sample]
    keys: Mapping[int, SampleKey]
    missing: Sequence[int]
    images: Collection[str]
    left_out: LeftOut


def build_cache(
    folder: Path,
    config: RunConfig,
    spec: BackboneSpec,
    *,
    maps: MapType = "float32",
    channels: int | None = None,
    progress: Progress | None = None,
    forecast_only: bool = False,
) -> Forecast:
    """Build or complete the cache of a run's training and validation data.

    The frozen models are loaded only if something is missing. `channels` is the number of attention
    channels to store, chosen on the training data; None stores all.

    Returns:
        The forecast of what was missing.

    Raises:
        UsageError: The folder has a cache that was built with other settings, or another process is
            building it.
        WeightsError: It was built with other weights.
        DataError: Too much of the data cannot be used.
        RunError: The disk is too small.
        KeyboardInterrupt: On Ctrl-C; what was written is kept.
    """
    progress = progress or Progress()
    if forecast_only:
        return _build(folder, config, spec, maps, channels, progress, forecast_only=True)
    with hold(folder, "building the cache in"):
        try:
            return _build(folder, config, spec, maps, channels, progress)
        except Exception:
            discard_empty(folder)
            raise


def _build(
    folder: Path,
    config: RunConfig,
    spec: BackboneSpec,
    maps: MapType,
    channels: int | None,
    progress: Progress,
    *,
    forecast_only: bool = False,
) -> Forecast:
    """As `build_cache`, in a folder that this process holds."""
    problems, share = Problems(), config.absent_share
    check_config(config, spec, problems)
    training = open_sources(
        config.data, config.train_protocol, split_captions=True, absent_share=share,
        problems=problems,
    )  # fmt: skip
    others: Sequence[Sample] = ()
    if config.val_data:
        others = open_sources(
            config.val_data, config.protocol, absent_share=share, problems=problems
        )
    problems.check()
    key = frozen_facts(config, spec)
    recipe = recipe_of(config)
    hidden, ends = reads_hidden(recipe), recipe.ends
    store = Store(folder) if (folder / MANIFEST).is_file() else None
    if store is not None:
        most = store.manifest.vlm.attention_channels
        wanted = {"maps": maps, "channels": min(channels, most) if channels else None}
        store.check_made_for(key | wanted, hidden=hidden, ends=ends)
    samples = JoinedSamples([training, others] if others else [training])
    left_out = LeftOut(samples, SkipLimit.given(config.max_skipped))
    keys = sample_keys(samples, left_out, progress, "Reading images")
    missing = _missing(keys, store, left_out)
    known = {place: one for place, one in enumerate(keys) if one is not None}
    if not missing:
        return Forecast()
    progress.say("Loading the frozen models")
    observer, _ = build_from_config(config, spec)
    digest = observer.backbone.weights_digest()
    if store is None:
        made = {
            "device": str(observer.device),
            "system": platform.platform(),
            "reads": observer.backbone.rendered_prompt(),
        }
        manifest = Manifest(
            key=key, model=observer.backbone.model, vlm=observer.vlm, sha256=digest, maps=maps,
            identity=observer.backbone.identity(), fingerprint=observer.fingerprint,
            hidden=hidden, ends=ends, made=made,
        )  # fmt: skip
    else:
        manifest = store.manifest
        store.check_weights(digest)
    images: set[str] = set()
    if observer.encoder is not None:
        images = {known[place].image for place in missing} - set(store.images if store else ())
    forecast = _forecast(observer, samples, missing, len(images), manifest, channels)
    progress.say(f"The cache needs {forecast}")
    if forecast_only:
        return forecast
    _check_space(folder, forecast.total)
    if store is None:
        if channels is not None:
            without = replace(observer, encoder=None)
            chosen, measure = choose_channels(without, training, channels, config.workers, progress)
            manifest = manifest.model_copy(update={"channels": chosen, "measure": measure})
        manifest.write(folder)
    else:
        sweep(folder, NAME)
        for path in store.broken:
            path.unlink()
    observer = replace(observer, channels=manifest.channels)
    work = _Work(samples, known, missing, images, left_out)
    _fill(folder, manifest, observer, work, config.workers, progress)
    return forecast


def _missing(keys: Sequence[SampleKey | None], store: Store | None, left_out: LeftOut) -> list[int]:
    """Indices of samples that are missing, or whose image is; equal samples once.

    Samples that cannot be used are known from an earlier build.
    """
    known = set(store.samples) if store else set()
    if store and "refiner" in store.manifest.key:
        known = {key for key in known if store.samples[key][0].image in store.images}
    places = []
    for place, key in enumerate(keys):
        if key is None:
            continue
        if store and key.sample in store.left_out:
            left_out.add(place, store.left_out[key.sample])
        elif key.sample not in known:
            known.add(key.sample)
            places.append(place)
    return places


def _forecast(
    observer: Observer,
    samples: Sequence[Sample],
    missing: Sequence[int],
    images: int,
    manifest: Manifest,
    wanted: int | None,
) -> Forecast:
    """Counts on samples that are prepared, without running the models."""
    looked_at = spread(missing, LOOKED_AT)
    vlm, packing = observer.vlm, manifest.packing
    channels = min(wanted or vlm.attention_channels, vlm.attention_channels)
    row = vlm.layers * vlm.hidden_size
    row *= packing.hidden_type(observer.backbone.vlm.dtype).itemsize if packing.hidden else 0
    maps = hidden = 0
    source = ObservedFeatures(replace(observer, encoder=None))
    for place in looked_at:
        try:
            inputs = source.prepare(samples[place]).backbone
        except FlmmError:  # left out when it is its turn
            continue
        cells = max(view.token_index.numel() for view in inputs.views)
        maps += len(inputs.phrase_rows) * channels * packing.map_bytes(cells)
        hidden += sum(map(len, inputs.phrase_rows)) * row
    share = len(missing) / len(looked_at)
    embedding = 0
    if observer.encoder is not None:
        embedding = observer.encoder.size * packing.embedding_type.itemsize
    return Forecast(
        samples=len(missing),
        images=images,
        maps=round(maps * share),
        hidden=round(hidden * share),
        embeddings=images * embedding,
        is_exact=len(looked_at) == len(missing),
    )


def _check_space(folder: Path, needed: int) -> None:
    free = free_bytes(folder)
    if free < needed + RESERVE:
        raise RunError(
            f"The cache does not fit on the disk of '{folder}'.",
            found=f"It needs {decimal(needed)}; {decimal(free)} are free.",
            repair="Use --maps float16 or uint8, --channels K, fewer samples, or another disk.",
        )


def _fill(
    folder: Path,
    manifest: Manifest,
    observer: Observer,
    work: _Work,
    workers: Workers,
    progress: Progress,
) -> None:
    writer, since, kept, images = ShardWriter(folder), time.monotonic(), 0, set(work.images)
    total, lost = len(work.missing), read_left_out(folder)
    batches = read_batches(
        ExampleDataset(work.samples, ObservedFeatures(observer)),
        [[place] for place in work.missing],
        workers=workers,
    )
    dtype, without = observer.backbone.vlm.dtype, replace(observer, encoder=None)
    with StopRequest() as stop, progress.stage("Building", total) as stage:
        for done, (batch, unusable) in enumerate(batches, start=1):
            for one in unusable:
                work.left_out.add(one.index, str(one.error))
                lost[work.keys[one.index].sample] = str(one.error)
                write_json(folder / LEFT_OUT, lost)
            if batch is not None:
                key = work.keys[batch.indices[0]]
                # An image is encoded with its first sample only.
                seen = observer if key.image in images else without
                (features,) = seen.observe(batch.inputs)
                facts = SampleFacts.of(features, key.image)
                writer.add_sample(key.sample, facts, pack(features, manifest.packing, dtype))
                if features.image is not None:
                    writer.add_image(key.image, features.image, manifest.packing.embedding_type)
                    images.discard(key.image)
            full = writer.bytes >= SHARD_BYTES or time.monotonic() - since > SHARD_SECONDS
            if writer.bytes and (full or stop.asked or done == total):
                _flush(writer, kept)
                kept, since = done, time.monotonic()
            if stop.asked:
                raise KeyboardInterrupt(
                    f"{done} of {total} samples are saved; the same command resumes."
                )
            stage.advance()


def _flush(writer: ShardWriter, kept: int) -> None:
    try:
        writer.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"The disk of '{writer.folder}' is full.",
            found=f"{kept} samples are saved; {decimal(writer.bytes)} more do not fit.",
            repair="Free some space and run the same command again; it resumes.",
        ) from error
