"""Trains a head, resumable, and evaluates it.

runs/NAME/config.yaml        the resolved settings
          environment.json   versions, machine, command
          metrics.jsonl      a line every `log_every` steps
          checkpoints/step-N head and optimizer; `best` and `last` link to two of them;
                             with validation data also the calibrated confidence and the score
          left-out.json      samples that could not be used, if any
          pictures/          contact sheets of unseen images
          summary.json       the final scores
          failed-step-N/     the batch of a step whose loss or gradient was not finite

A run that was stopped at any point and is resumed leaves the same head, best checkpoint,
confidence and scores, bit for bit, as one that was not.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from flmm_core.config import RunConfig, option_name
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.errors import LostProcessError, RunError
from flmm_core.evaluation.baselines import head_method
from flmm_core.evaluation.evaluate import evaluate
from flmm_core.evaluation.running_scores import Evaluation
from flmm_core.pipeline.backbone.weights import digest
from flmm_core.pipeline.confidence import Confidence, read_confidence
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.head_folder import read_weights
from flmm_core.progress import Progress, StopRequest
from flmm_core.spec import BackboneSpec
from flmm_core.training.batch_size import fit_into_memory
from flmm_core.training.forecast import announce, describe, forecast
from flmm_core.training.length import epochs_of, with_steps
from flmm_core.training.loop import TrainingLoop, seed_everything
from flmm_core.training.parts import begin_with, freeze_others
from flmm_core.training.preflight import RunData, check_run
from flmm_core.training.run_folder import RunFolder
from flmm_core.training.setup import Setup, open_cached, open_observed
from flmm_core.training.sheets import write_sheets
from flmm_core.world import World


def train(
    config: RunConfig,
    spec: BackboneSpec,
    progress: Progress | None = None,
    world: World | None = None,
) -> Path:
    """Train a head and evaluate it; returns the run folder.

    Args:
        world: The processes that share the work, all with the same settings and files
            (`World.join()`); by default this one alone.

    Raises:
        FlmmError: What `check_run` found, before anything is loaded or written.
        UsageError: The output folder has another run, or there is nothing to resume, or the run to
            resume was begun with other settings.
        DataError: Too much of the data cannot be used.
        RunError: The loss or the gradient is not finite, a checkpoint cannot be written, or another
            process has ended.
        KeyboardInterrupt: On Ctrl-C or SIGTERM; while training, the last step is saved.
    """
    world = world or World()
    folder = RunFolder(config.output, config.save_every, config.steps, config.keep)
    try:
        return _train(config, spec, folder, (world.is_main and progress) or Progress(), world)
    except LostProcessError as error:
        raise LostProcessError(error.asked, found=error.found, repair=folder.way_back()) from error


def _train(
    config: RunConfig, spec: BackboneSpec, folder: RunFolder, progress: Progress, world: World
) -> Path:
    started = time.monotonic()
    with world.agreed():
        # `config` is what the run folder keeps; it may be resumed by another number of processes.
        here = config.model_copy(update={"device": world.device(config.device, config.device_map)})
    if title := world.title(here.device):
        progress.say(f"Training in {title}")
    data: RunData | None = None
    if not config.resume:  # before anything is written
        with StopRequest() as early, early.immediate(), world.main_first():
            data = check_run(here, spec, progress)
    with ExitStack() as held, StopRequest() as stop, stop.immediate():
        opened = folder.opened(config)
        changed, finished = world.main_does(
            lambda: (held.enter_context(opened), config.resume and folder.is_finished)
        )
        if finished and not changed:
            progress.say(f"The run in '{folder.path}' is finished.")
            return folder.path
        for key, (before, now) in changed.items():
            progress.say(f"Resuming with {option_name(key)} {now} (before: {before})")
        try:
            if data is None:
                with world.main_first():
                    data = check_run(here, spec, progress)
            loop = prepare(config, here, spec, data, folder, progress, world)
            with world.agreed():
                announce(loop, data.held_out)
        except Exception:
            if world.is_main and not config.resume:
                folder.forget()
            raise
        config = loop.config
        if world.is_main:
            held.enter_context(folder.tracked(config))
        if config.max_hours is not None:
            loop.deadline = started + config.max_hours * 3600
        loop.run()
        scores, confidence, found = evaluate_head(loop, data.held_out)
        summary = summarize(config, loop.head, scores)
        summary["epochs"] = round(epochs_of(config, len(loop.samples)), 3)
        if loop.stopped_after is not None:
            summary["stopped_after"] = loop.stopped_after
        summary["absent"] = {text: vars(count) for text, count in loop.absent.items()}
        if confidence is not None:
            summary["not_there"] = confidence.not_there and confidence.not_there.model_dump()
        summary["vlm_sha256"] = {"before": loop.setup.vlm_digest, "after": found}
        summary["left_out"] = loop.left_out.to_list()
        summary["seconds"] = round(time.monotonic() - started, 1)
        world.main_does(lambda: folder.finish(summary))
    for text, score in scores.items():
        progress.say(
            f"{text}, {config.protocol}: coarse cIoU {score['coarse_ciou']:.4f}, "
            f"refined cIoU {score['ciou']:.4f} ({score.phrases} masks)"
        )
        if score.keywords.captions:
            found_words, rules = score.keywords.phrases.f1, score.keywords.rules.f1
            progress.say(f"  keywords: F1 {found_words:.4f} (noun phrases by rules: {rules:.4f})")
        for name, part in sorted(score.slices.items()):
            if len(score.slices) > 1:
                coarse, refined = part["coarse_ciou"], part["ciou"]
                progress.say(f"  {name}: coarse {coarse:.4f}, refined {refined:.4f}")
    return folder.path


def dry_run(
    config: RunConfig,
    spec: BackboneSpec,
    progress: Progress | None = None,
    processes: int = 1,
) -> list[str]:
    """Check, load and time what a run would begin with, and write nothing.

    Args:
        processes: Of the run; one of them is tried.

    Returns:
        What the run does and what it will take, in lines.

    Raises:
        FlmmError: As `train`, of all that can be known.
    """
    progress, world = progress or Progress(), World()
    folder = RunFolder(config.output, config.save_every, config.steps, config.keep)
    data = check_run(config, spec, progress)
    loop = prepare(config, config, spec, data, folder, progress, world)
    lines = describe(loop, data.held_out)
    return [*lines, *forecast(loop, data.held_out, processes=processes).lines(loop)]


def prepare(
    config: RunConfig,
    here: RunConfig,
    spec: BackboneSpec,
    data: RunData,
    folder: RunFolder,
    progress: Progress,
    world: World,
) -> TrainingLoop:
    """Seed everything and load the frozen models; `here` has the device of this process."""
    seed_everything(config.seed)
    samples, watched, left_out = data.samples, data.watched, data.left_out
    with world.agreed():
        config = with_steps(config, len(samples))
    folder.steps = config.steps
    if config.epochs is not None:
        progress.say(f"{config.epochs:g} epochs of {len(samples)} samples: {config.steps} steps")
    with world.agreed():
        setup = (open_observed if config.cache is None else open_cached)(here, spec, progress)
        setup.source.expect(samples, left_out, progress)
        setup.source.expect(watched, LeftOut(watched, left_out.limit), progress)
        if not (config.resume and folder.last()):
            setup = replace(setup, info=begin_with(setup.head, setup.info, config))
        freeze_others(setup.head, config)
    _check_same_everywhere(world, setup, samples)
    loop = TrainingLoop(
        config, setup, samples, watched, folder, progress, left_out, data.absent, world
    )
    if config.batch_size == "auto":
        fit_into_memory(loop)
    return loop


def _check_same_everywhere(world: World, setup: Setup, samples: Sequence[Sample]) -> None:
    """RunError if the processes, perhaps on several machines, do not train the same."""
    if world.size == 1:
        return
    own = {
        "the model's weights": setup.vlm_digest,
        "the head's first weights": digest(setup.head),
        "the number of training samples": len(samples),
        "the version of torch": torch.__version__,
    }
    all_of_them = world.gather(own)
    with world.agreed():
        for rank, others in enumerate(all_of_them):
            if different := [name for name in own if own[name] != others[name]]:
                raise RunError(
                    f"Processes {world.rank} and {rank} of {world.size} do not train the same.",
                    found=f"They differ in {' and '.join(different)}.",
                    repair="Give all machines the same data, models and packages.",
                )


def evaluate_head(
    loop: TrainingLoop, held_out: Mapping[str, Sequence[Sample]]
) -> tuple[dict[str, Evaluation], Confidence | None, str]:
    """Score the best head, else the last, and draw its sheets.

    Returns:
        The scores by source, the head's confidence, and the digest of the VLM weights now.
    """
    config, folder, head, world = loop.config, loop.folder, loop.average.head, loop.world
    confidence, best = None, world.main_does(folder.best)
    with world.agreed():
        if best is not None:
            head.load_weights(read_weights(best))
            confidence = read_confidence(best)
        head.eval()
        if held_out:
            source, found = loop.setup.observed()
    if not held_out:
        return {}, confidence, loop.setup.vlm_digest
    method = head_method(source, head, confidence)
    scores = {
        text: evaluate(
            method,
            part,
            workers=config.workers,
            max_skipped=loop.left_out.limit,
            progress=loop.progress,
            name=text,
            world=world,
        )
        for text, part in held_out.items()
    }
    shown = next(iter(held_out.values()))
    world.main_does(lambda: write_sheets(source, head, shown, config.pictures, folder.pictures))
    return scores, confidence, found


def summarize(config: RunConfig, head: Head, scores: dict[str, Evaluation]) -> dict[str, Any]:
    """`summary.json`: the scores on the first source at the top, all of them below."""
    names = (
        "backbone", "model", "refiner", "refiner_options", "steps", "seed", "protocol", "data",
    )  # fmt: skip
    summary: dict[str, Any] = {name: getattr(config, name) for name in names}
    if scores:
        first = next(iter(scores.values()))
        summary["coarse"] = {"ciou": first["coarse_ciou"], "miou": first["coarse_miou"]}
        summary["refined"] = {"ciou": first["ciou"], "miou": first["miou"]}
        if any(first.reliability.counts):
            summary["calibration"] = first.reliability.to_dict()
    for score in scores.values():
        if score.keywords.captions:
            summary.setdefault("keywords", score.keywords.to_dict())
    summary["evaluations"] = {text: score.to_dict() for text, score in scores.items()}
    summary["trainable_parameters"] = head.trainable_parameters
    return summary
