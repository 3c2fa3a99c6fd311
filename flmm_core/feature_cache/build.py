"""Fill a cache: forecast its size, then run the frozen parts once a sample.

Samples go through alone, so that no companion's padding touches the last bits of what is kept:
`flmm train --exact` does the same without a cache.
"""

from __future__ import annotations

import errno
import platform
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from flmm_core.config import Workers
from flmm_core.data.sample import Sample
from flmm_core.data.sources import JoinedSamples
from flmm_core.errors import RunError, UsageError
from flmm_core.feature_cache.channels import choose_channels
from flmm_core.feature_cache.codec import MapType, SampleFacts, pack
from flmm_core.feature_cache.key import SampleKey, differences, sample_keys
from flmm_core.feature_cache.store import (
    MANIFEST,
    Manifest,
    ShardWriter,
    Store,
    VlmFacts,
    sweep,
)
from flmm_core.loader.dataset import ExampleDataset, Examples, load_batches
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.head_folder import Grounder
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.types import EncodedImage
from flmm_core.progress import Progress
from flmm_core.stop_request import StopRequest

SHARD_BYTES = 256 << 20
SHARD_SECONDS = 120.0
"""A shard is written when it is so large, or so old: a kill loses no more."""
LOOKED_AT = 64
"""A forecast prepares at most so many samples, spread evenly."""
RESERVE = 64 << 20
"""Bytes that stay free on the disk."""


@dataclass(frozen=True)
class Forecast:
    """What a build will write.

    Attributes:
        samples: To be made.
        images: With an embedding to be made.
        maps: Bytes of attention maps.
        hidden: Bytes of hidden rows.
        embeddings: Bytes of SAM's embeddings of images.
        is_exact: Whether every sample was looked at, and not a few spread evenly.
    """

    samples: int
    pictures: int
    maps: int
    hidden: int
    embeddings: int
    is_exact: bool

    @property
    def total(self) -> int:
        """Bytes."""
        return self.maps + self.hidden + self.embeddings

    def __str__(self) -> str:
        about = "" if self.is_exact else "about "
        return (
            f"{about}{show_bytes(self.total)} for {self.samples} samples: maps "
            f"{show_bytes(self.maps)}, hidden rows {show_bytes(self.hidden)}, "
            f"{self.pictures} image embeddings {show_bytes(self.embeddings)}"
        )


@dataclass(frozen=True)
class BuildRequest:
    """What is to be in a cache, in plain values.

    Attributes:
        folder: Of the cache.
        key: From `frozen_facts`.
        maps: Number type of the maps.
        channels: K, how many attention channels are kept; None keeps all.
        hidden: Whether hidden rows are kept.
        workers: Processes that read images.
    """

    folder: Path
    key: dict[str, Any]
    maps: MapType = "float32"
    channels: int | None = None
    hidden: bool = True
    workers: Workers = 0


def build_cache(
    request: BuildRequest,
    load: Callable[[], Grounder],
    training: Sequence[Sample],
    others: Sequence[Sample] = (),
    *,
    progress: Progress | None = None,
    forecast_only: bool = False,
) -> Forecast:
    """Make what is missing in a cache; gives the forecast of what that was.

    Args:
        request: What is to be in it.
        load: Gives the flow with its frozen parts; only called if something is missing.
        training: Samples to train on, by which channels are chosen.
        others: Further samples to keep, for validation.
        progress: Is told how far it is.
        forecast_only: Stop before anything is written.

    Raises:
        UsageError: The folder holds a cache that was made otherwise.
        RunError: The disk has less free than is needed.
        KeyboardInterrupt: It was asked to stop; what was made is kept.
    """
    progress = progress or Progress()
    store = _opened(request)
    samples = JoinedSamples([training, others])  # made when asked for: there may be very many
    keys = sample_keys(samples, progress, "Reading images")
    missing = _missing(keys, store)
    if not missing:
        return Forecast(0, 0, 0, 0, 0, is_exact=True)
    progress.say("Loading the frozen parts")
    grounder = load().eval()
    manifest = store.manifest if store else _manifest(request, grounder.backbone)
    if store is not None:
        _check_weights(store.manifest, grounder.backbone)
    pictures = {keys[place].picture for place in missing}
    if isinstance(grounder.refiner, SamRefiner):
        pictures -= set(store.pictures) if store else set()
    else:
        pictures = set()
    forecast = _forecast(grounder, samples, missing, len(pictures), manifest, request.channels)
    progress.say(f"The cache needs {forecast}")
    if forecast_only:
        return forecast
    check_space(request.folder, forecast.total)
    if store is None:
        if request.channels is not None:
            channels, measure = choose_channels(
                grounder, training, request.channels, workers=request.workers, progress=progress
            )
            manifest = replace(manifest, channels=channels, measure=measure)
        manifest.write(request.folder)
    else:
        sweep(request.folder)
        for path in store.broken:
            path.unlink()
    grounder.channels = manifest.channels
    _fill(request, manifest, grounder, samples, keys, missing, pictures, progress)
    return forecast


def _opened(request: BuildRequest) -> Store | None:
    """The cache to go on with; None if there is none yet."""
    if not (request.folder / MANIFEST).is_file():
        return None
    store = Store(request.folder)
    made, wanted = store.manifest, request
    found = {**made.key, "maps": made.maps, "channels": len(made.channels) or None}
    # There may be fewer channels than were asked for.
    channels = wanted.channels and min(wanted.channels, made.vlm.channels)
    asked = {**wanted.key, "maps": wanted.maps, "channels": channels}
    asked |= {"hidden rows": True} if wanted.hidden else {}
    if other := differences(found | {"hidden rows": made.hidden}, asked):
        raise other_cache(request.folder, other)
    return store


def other_cache(folder: Path, different: str) -> UsageError:
    """A cache that was made for something else, with what differs."""
    return UsageError(
        f"The cache in '{folder}' was not made for this run.",
        found=different,
        repair="Use the settings that it was made with, build another with `flmm cache build`, "
        "or remove it with `flmm cache clear`.",
    )


def _missing(keys: Sequence[SampleKey], store: Store | None) -> list[int]:
    """Places of samples to be made, each contents once; those whose image is lost count too."""
    known = set(store.samples) if store else set()
    if store and "refiner" in store.manifest.key:
        known = {key for key in known if store.samples[key][0].picture in store.pictures}
    places = []
    for place, key in enumerate(keys):
        if key.sample not in known:
            known.add(key.sample)
            places.append(place)
    return places


def _manifest(request: BuildRequest, backbone: Backbone) -> Manifest:
    return Manifest(
        key=request.key,
        vlm=VlmFacts(
            model=backbone.model,
            layers=backbone.num_layers,
            heads=backbone.num_heads,
            hidden_size=backbone.hidden_size,
            views=tuple(backbone.view_names),
            sha256=backbone.weights_digest(),
        ),
        maps=request.maps,
        hidden=request.hidden,
        made={"device": str(backbone.vlm.device), "system": platform.platform()},
    )


def _check_weights(manifest: Manifest, backbone: Backbone) -> None:
    found = backbone.weights_digest()
    if other := differences({"weights": manifest.vlm.sha256}, {"weights": found}):
        raise UsageError(
            "The model's weights are not those that the cache was made with.",
            found=other,
            repair="Use the same model, or build another cache.",
        )


def _forecast(
    grounder: Grounder,
    samples: Sequence[Sample],
    missing: Sequence[int],
    pictures: int,
    manifest: Manifest,
    wanted: int | None,
) -> Forecast:
    """Counted on samples that are prepared on the CPU, without running anything."""
    few = np.unique(np.linspace(0, len(missing) - 1, min(LOOKED_AT, len(missing))).round())
    looked_at = [missing[int(place)] for place in few]
    backbone, packing = grounder.backbone, manifest.packing
    channels = min(wanted or backbone.attention_channels, backbone.attention_channels)
    row = backbone.num_layers * backbone.hidden_size
    row *= packing.hidden_type(backbone.vlm.dtype).itemsize if packing.hidden else 0
    maps = hidden = 0
    dataset = ExampleDataset(samples, grounder)
    for place in looked_at:
        inputs = dataset.example(place).inputs.backbone
        cells = max(view.token_index.numel() for view in inputs.views)
        maps += len(inputs.phrases) * channels * packing.map_bytes(cells)
        hidden += sum(map(len, inputs.phrase_rows)) * row
    share = len(missing) / len(looked_at)
    embedding = 0
    if isinstance(grounder.refiner, SamRefiner):
        values = grounder.refiner.prompt_width * grounder.refiner.grid**2
        embedding = values * packing.embedding_type.itemsize
    return Forecast(
        samples=len(missing),
        pictures=pictures,
        maps=round(maps * share),
        hidden=round(hidden * share),
        embeddings=pictures * embedding,
        is_exact=len(looked_at) == len(missing),
    )


def check_space(folder: Path, needed: int) -> None:
    """`RunError` if the disk of a folder has less free than `needed` bytes and some reserve."""
    place = folder.absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed + RESERVE:
        raise RunError(
            f"The cache does not fit on the disk of '{folder}'.",
            found=f"It needs {show_bytes(needed)}; {show_bytes(free)} are free.",
            repair="Use --maps float16 or uint8, --channels K, fewer samples, or another disk.",
        )


def _fill(
    request: BuildRequest,
    manifest: Manifest,
    grounder: Grounder,
    samples: Sequence[Sample],
    keys: Sequence[SampleKey],
    missing: Sequence[int],
    pictures: set[str],
    progress: Progress,
) -> None:
    writer, since, kept = ShardWriter(request.folder), time.monotonic(), 0
    batches = load_batches(
        ExampleDataset(samples, grounder),
        sampler=[[place] for place in missing],
        workers=request.workers,
    )
    with StopRequest() as stop, progress.stage("Building", len(missing)) as stage:
        for done, batch in enumerate(batches, start=1):
            _observe(batch, keys, manifest, grounder, writer, pictures)
            full = writer.bytes >= SHARD_BYTES or time.monotonic() - since > SHARD_SECONDS
            if full or stop.asked or done == len(missing):
                _flush(writer, kept)
                kept, since = done, time.monotonic()
            if stop.asked:
                raise KeyboardInterrupt(
                    f"{done} of {len(missing)} samples are kept; the same command goes on."
                )
            stage.advance()


@torch.no_grad()
def _observe(
    batch: Examples,
    keys: Sequence[SampleKey],
    manifest: Manifest,
    grounder: Grounder,
    writer: ShardWriter,
    pictures: set[str],
) -> None:
    """Run the frozen parts on one sample; an image is encoded at its first one only."""
    key = keys[batch.indices[0]]
    inputs = batch.inputs
    with_image = key.picture in pictures
    if isinstance(grounder.refiner, SamRefiner) and not with_image:
        nothing = EncodedImage(torch.zeros(0), (0, 0))
        inputs = replace(inputs, pictures=(nothing,))
    (features,) = grounder.observe(inputs)
    facts = SampleFacts.of(features, key.picture)
    dtype = grounder.backbone.vlm.dtype
    writer.add_sample(key.sample, facts, pack(features, manifest.packing, dtype))
    if with_image and features.picture is not None:
        embedding = features.picture.embedding.to("cpu", manifest.packing.embedding_type)
        writer.add_image(key.picture, features.picture.input_hw, embedding)
        pictures.discard(key.picture)


def _flush(writer: ShardWriter, kept: int) -> None:
    try:
        writer.flush()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise RunError(
            f"The disk of '{writer.folder}' is full.",
            found=f"{kept} samples are kept; {show_bytes(writer.bytes)} more do not fit.",
            repair="Make room and run the same command again: it goes on.",
        ) from error


def show_bytes(count: float) -> str:
    """ "3.1 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
