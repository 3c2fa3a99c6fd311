"""What a run needs, checked before a model is loaded; all problems are one error."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from rich.filesize import decimal

from flmm_core.config import RunConfig, SkipLimit
from flmm_core.config.resume import CONFIG
from flmm_core.data.absent import AbsentCount
from flmm_core.data.left_out import LeftOut
from flmm_core.data.protocols import ImageSamples
from flmm_core.data.sources import JoinedSamples, is_drawn, open_source
from flmm_core.errors import Problems, RunError, UsageError
from flmm_core.feature_cache.store import Store
from flmm_core.files import check_writable, free_bytes
from flmm_core.pipeline.backbone.weight_files import loaded_bytes
from flmm_core.pipeline.backbone.weights import choose_device, choose_dtype, find_source
from flmm_core.pipeline.build import check_config
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec
from flmm_core.training.parts import check_initial_head
from flmm_core.training.trackers import check_trackers

RESERVE = 256 << 20
"""Bytes of the disk that a run needs at least."""


@dataclass(frozen=True)
class RunData:
    """The data of a run; images are read later.

    Attributes:
        samples: To train on.
        watched: To validate checkpoints on, possibly empty.
        held_out: To evaluate the trained head on, by source.
        absent: What is not there, by source.
        left_out: What is left out of `samples`.
    """

    samples: JoinedSamples
    watched: JoinedSamples
    held_out: Mapping[str, ImageSamples]
    absent: Mapping[str, AbsentCount]
    left_out: LeftOut


def check_run(config: RunConfig, spec: BackboneSpec, progress: Progress) -> RunData:
    """Check everything that can be checked without loading a model, and open the data.

    Raises:
        FlmmError: All that is wrong with the output folder, the device, the files of the models,
            the cache and the data.
    """
    problems = Problems()
    with problems.part():
        _check_data_was_chosen(config, spec)
    with problems.part():
        _check_keywords(config)
    with problems.part():
        check_output(config)
    with problems.part():
        check_trackers(config.log_with)
    check_config(config, spec, problems)
    if not problems.found:
        with problems.part():
            _check_memory(config, spec)
    with problems.part():
        if config.cache is not None:
            Store(config.cache)
    if not (config.resume and (config.output / "last").is_dir()):
        with problems.part():
            check_initial_head(config)
    names = dict.fromkeys([*config.data, *config.val_data, *config.eval_data])
    if not problems.found:
        progress.say(f"Reading {', '.join(names)} (drawn scenes are generated on first use)")
    return open_data(config, progress, problems)


def check_output(config: RunConfig) -> None:
    """Refuse an output folder that cannot be used.

    Raises:
        UsageError: It cannot be written, or has a run that is not to be resumed.
        RunError: Its disk is full.
    """
    check_writable(config.output)
    if not config.resume and (config.output / CONFIG).exists():
        last = config.output / "last"
        raise UsageError(
            f"The output folder '{config.output}' already contains a run.",
            found=f"Its last checkpoint: {last.resolve() if last.is_dir() else 'none'}.",
            repair="Give another --output, or resume with --resume.",
        )
    free = free_bytes(config.output)
    if free < RESERVE:
        raise RunError(
            f"The disk of the output folder '{config.output}' is full.",
            found=f"{decimal(free)} are free.",
            repair="Free some space, or give another --output.",
        )


def _check_memory(config: RunConfig, spec: BackboneSpec) -> None:
    """RunError if the weights of the model alone, in a folder here, are more than the memory."""
    values = dict(config)
    if any(values.get(name, "none") != "none" for name in ("quantize", "device_map")):
        return  # then they need less, or lie elsewhere
    source, device = Path(find_source(spec, config.model)), choose_device(config.device)
    if not source.is_dir():
        return
    dtype = choose_dtype(config.dtype, device.type)
    needed, total = loaded_bytes(source, dtype), memory_of(device)
    if needed > total:
        raise RunError(
            f"The model '{config.model}' does not fit in the memory of the device '{device}'.",
            found=f"Its weights need {decimal(needed)}; the device has {decimal(total)} in all.",
            repair="Use --dtype bfloat16, a smaller or a quantized model, or a device with more"
            " memory.",
        )


def memory_of(device: torch.device) -> int:
    """Bytes of memory that a device has."""
    if device.type == "cuda":
        on_gpu: int = torch.cuda.get_device_properties(device).total_memory
        return on_gpu
    total: int = psutil.virtual_memory().total  # an Apple GPU shares it
    return total


def _check_data_was_chosen(config: RunConfig, spec: BackboneSpec) -> None:
    """Hours of a real model on drawn shapes are never what someone wanted."""
    known = spec.models.get(config.model)
    in_package = known is not None and ":" in known.source
    if config.model == "tiny" or in_package or "data" in config.model_fields_set:
        return
    raise UsageError(
        f"The model '{config.model}' has no data to be trained on.",
        found="Without --data a run trains on drawn shapes, which are for the tiny models.",
        repair="Give your data with --data NAME:PATH@SPLIT, for example refcoco:/data/coco@train;"
        " --data shapes@train if drawn shapes are what you want.",
    )


def _check_keywords(config: RunConfig) -> None:
    """UsageError if a run cannot train a keyword selector as it is set up."""
    if not config.head.keywords:
        return
    if config.caption_mode == "pieces":
        raise UsageError(
            "Keywords cannot be learned from captions that are read piece by piece.",
            found="A selector reads the tokens of whole captions.",
            repair="Use --caption-mode whole, or omit --head-keywords.",
        )
    if config.cache is not None:
        raise UsageError(
            f"Keywords cannot be learned from the cache '{config.cache}'.",
            found="A cache holds the hidden states of phrases, not those of whole captions.",
            repair="Omit --cache; or train the head with it, and then the selector alone with"
            " --init-head HEAD --head-keywords --train keywords.",
        )


def _check_narrations(config: RunConfig, training: Mapping[str, ImageSamples]) -> None:
    """UsageError if keywords are to be learned and there is nothing to learn them from."""
    learned = config.train is None or {"head", "keywords"} & {*config.train}
    captions = (image.caption for part in training.values() for image in part.images)
    if config.head.keywords and learned and not any(captions):
        raise UsageError(
            "There are no narrations to learn keywords from.",
            found=f"No image of {', '.join(training)} has a caption of its own.",
            repair="Add --data shapes@narrated or png:PATH@train, or omit --head-keywords.",
        )


def open_data(config: RunConfig, progress: Progress, problems: Problems | None = None) -> RunData:
    """Read the annotations of all sources of a run; images are read later.

    Args:
        problems: What is known to be wrong already, to be told together with the data's.

    Raises:
        FlmmError: All that is wrong with the sources.
    """
    problems = problems or Problems()
    limit = SkipLimit.given(config.max_skipped)
    absent: dict[str, AbsentCount] = {}

    def opened(
        texts: Sequence[str], reader: Callable[[str], ImageSamples]
    ) -> dict[str, ImageSamples]:
        found: dict[str, ImageSamples] = {}
        for text in texts:
            with problems.part():
                if problems.found and is_drawn(text):
                    continue
                found[text] = reader(text)
                LeftOut(found[text], limit)
        return found

    def counted(protocol: str, *, split_captions: bool) -> Callable[[str], ImageSamples]:
        def reader(text: str) -> ImageSamples:
            part = open_source(
                text, protocol, split_captions=split_captions, absent_share=config.absent_share
            )
            absent[text] = AbsentCount.of(part.images)
            progress.say(f"{text}: {absent[text]}")
            return part

        return reader

    training = opened(config.data, counted(config.train_protocol, split_captions=True))
    watched = opened(config.val_data, counted(config.protocol, split_captions=False))
    held_out = opened(config.eval_data, lambda text: open_source(text, config.protocol))
    if not problems.found:
        with problems.part():
            _check_narrations(config, training)
    problems.check()
    _tell_what_is_missing(config, progress)
    samples = JoinedSamples([training[text] for text in config.data])
    return RunData(
        samples=samples,
        watched=JoinedSamples([watched[text] for text in config.val_data]),
        held_out=held_out,
        absent=absent,
        left_out=LeftOut(samples, limit),
    )


def _tell_what_is_missing(config: RunConfig, progress: Progress) -> None:
    """Say what a run on data of one's own will not tell, unless it was asked for."""
    given = config.model_fields_set
    if not config.eval_data and "eval_data" not in given:
        progress.say(
            "No --eval-data: the trained head will not be scored. Hold some of your data back "
            "(`flmm data split` does) and name it."
        )
    if not config.val_data and "val_data" not in given:
        progress.say(
            'No --val-data: the last checkpoint counts, and the head cannot answer "not there".'
        )
