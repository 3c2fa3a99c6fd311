"""`flmm annotate`: workers on Ray Data turn blocks of images into shards."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from flmm_core.annotate.inputs import Item, find_items
from flmm_core.annotate.plan import Block, make_plan
from flmm_core.annotate.shards import ENDINGS, LEFT_OUT
from flmm_core.annotate.store import Store
from flmm_core.annotate.worker import STARTED, Annotator, Job, Outcome
from flmm_core.errors import (
    DataError,
    FlmmError,
    MissingExtraError,
    Problems,
    RunError,
    UsageError,
    WeightsError,
    shortened,
)
from flmm_core.files import hold, sweep
from flmm_core.pipeline.check_head import check_head
from flmm_core.pipeline.conversation.phrases.choose import open_finder
from flmm_core.pipeline.head_folder import digest_of_head
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress

CHAT = "chat"
"""The capability of a backbone that answers questions."""
ALL_LEFT_OUT = "left-out.jsonl"


@dataclass(frozen=True)
class Summary:
    """What a folder of annotations holds.

    Attributes:
        images: Annotated, in earlier runs, too; `left_out` cannot be used.
        shards: Number of files; `made` of them in this run.
    """

    images: int
    left_out: int
    shards: int
    made: int


def annotate(
    sources: Sequence[str],
    job: Job,
    *,
    workers: int | None = None,
    gpus_per_worker: float | None = None,
    address: str | None = None,
    progress: Progress | None = None,
) -> Summary:
    """Annotate all images of some sources, each exactly once; what is there is not made again.

    Args:
        sources: See `find_items`.
        workers: Processes with a model each; by default one per GPU of the cluster, or one.
        gpus_per_worker: By default 1 if the cluster has any.
        address: Of a Ray cluster; by default RAY_ADDRESS, or a cluster on this machine alone.

    Raises:
        UsageError: The folder holds annotations that were made with other settings.
        DataError: There are no images, or no phrases for some.
        MissingExtraError: Ray is not installed.
        RunError: Blocks are missing at the end; the same command goes on.
    """
    _check_ray()
    problems = Problems()
    info = check_head(job.head, problems, **job.given)
    if info is not None and job.ask:
        with problems.part():
            _check_chat(info.recipe.backbone, job.finder)
    problems.check()
    job = _absolute(job)  # workers run in folders of their own
    store, progress = Store(job.output), progress or Progress()
    with hold(store.local, "annotating into") if store.local else nullcontext():
        if store.local:
            sweep(store.local, ".")
        settings = {**job.settings(), "head": digest_of_head(job.head)}
        items = _with_phrases(find_items(sources, job.columns), job)
        blocks = make_plan(store, items, settings, block_size=job.block_size)
        there = store.names()
        missing = [block for block in blocks if f"{block.name}{ENDINGS[job.form]}" not in there]
        for block in missing:  # tries of an earlier run do not count
            if f"{block.name}{STARTED}" in there:
                store.remove(f"{block.name}{STARTED}")
        total = sum(len(block.items) for block in blocks)
        todo = sum(len(block.items) for block in missing)
        given_up: list[Outcome] = []
        with progress.stage("Annotating", total, total - todo) as stage:
            if missing:
                with _cluster(address, workers):
                    for outcome in _run(missing, job, workers, gpus_per_worker):
                        if outcome.error:
                            raise _error(*outcome.error)
                        if outcome.given_up:
                            given_up.append(outcome)
                        stage.advance(outcome.images + outcome.left_out)
        return _finish(store, job, blocks, len(missing), given_up)


def _check_ray() -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Else it says that workers with arguments in the object store may not be started again. They
    # are: the arguments are this process's.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "flmm annotate needs Ray Data, which is not installed.",
            found=f"{error}.",
            repair='Install it: pip install "flmm[ray]". `flmm ground` takes several images, too.',
        ) from error


def _check_chat(backbone: str, finder: str) -> None:
    """`UsageError` if the backbone answers no questions, or the phrase finder is unknown."""
    open_finder(finder)
    if CHAT not in load_backbones().get(backbone).capabilities:
        raise UsageError(
            f"The backbone '{backbone}' answers no questions.",
            found=f"It has not the capability '{CHAT}'.",
            repair="Give phrases with -p instead of --ask.",
        )


def _absolute(job: Job) -> Job:
    head = os.path.abspath(job.head) if os.path.exists(job.head) else job.head  # noqa: PTH100, PTH110
    local = Store(job.output).local
    return replace(job, head=head, output=job.output if local is None else str(local))


def _with_phrases(items: Iterable[Item], job: Job) -> Iterator[Item]:
    for item in items:
        if not item.phrases and not job.phrases and not job.ask:
            raise DataError(
                f"There is no phrase for the image {item.image}.",
                repair="Give phrases with -p, or in a column or list beside the images.",
            )
        yield item


@contextmanager
def _cluster(address: str | None, workers: int | None) -> Iterator[None]:
    """Ray, started and stopped unless this process runs it already; its logs stay in files."""
    import ray

    own = not ray.is_initialized()
    if own:
        local: dict[str, Any] = {}
        if not (address or os.environ.get("RAY_ADDRESS")):
            local = {"include_dashboard": False}
            local["num_cpus"] = max(workers or 1, os.cpu_count() or 1)
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except (ConnectionError, ValueError, RuntimeError, OSError) as error:
            raise RunError(
                f"Ray cannot be started{f' at {address}' if address else ''}.",
                found=f"{shortened(' '.join(str(error).split()), 300)}.",
                repair="Check the address (--ray-address, RAY_ADDRESS), memory and /dev/shm.",
            ) from error
    try:
        yield
    finally:
        if own:
            ray.shutdown()


def _run(
    blocks: Sequence[Block], job: Job, workers: int | None, gpus_per_worker: float | None
) -> Iterator[Outcome]:
    """The outcomes of blocks, as they come; a worker that dies is replaced."""
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    gpus = ray.cluster_resources().get("GPU", 0)
    per_worker = (1 if gpus else 0) if gpus_per_worker is None else gpus_per_worker
    count = workers or (int(gpus / per_worker) if per_worker else 1)
    count = max(1, min(count, len(blocks)))
    rows = ray.data.from_items(
        [{"block": block.to_json()} for block in blocks], override_num_blocks=len(blocks)
    )
    done = rows.map(
        Annotator,
        fn_constructor_args=(job,),
        compute=ray.data.ActorPoolStrategy(size=count),
        num_cpus=1,
        num_gpus=per_worker,
    )
    try:
        for row in done.iter_rows():
            yield Outcome(**json.loads(row["outcome"]))
    except ray.exceptions.RayError as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        raise RunError(
            "Ray stopped before all images were annotated.",
            found=shortened(lines[-1] if lines else type(error).__name__, 300),
            repair="What is annotated is kept: the same command goes on. FLMM_DEBUG=1 shows all.",
        ) from error


def _error(asked: str, found: str, repair: str, exit_code: int) -> FlmmError:
    """What a worker met, of the kind that has its exit code."""
    kinds: dict[int, type[FlmmError]] = {2: UsageError, 3: WeightsError}
    return kinds.get(exit_code, RunError)(asked, found=found, repair=repair)


def _finish(
    store: Store, job: Job, blocks: Sequence[Block], begun: int, given_up: Sequence[Outcome]
) -> Summary:
    """Count what is there, and join the lists of images that cannot be used."""
    there = store.names()
    missing = [block for block in blocks if f"{block.name}{ENDINGS[job.form]}" not in there]
    lists = [f"{block.name}{LEFT_OUT}" for block in blocks if block not in missing]
    left_out = b"".join(store.read(name) for name in lists if name in there)
    if left_out:
        store.write(ALL_LEFT_OUT, left_out)
    elif ALL_LEFT_OUT in there:
        store.remove(ALL_LEFT_OUT)
    if missing:
        reasons = [f"{blocks[one.block].name}: {one.given_up}" for one in given_up]
        raise RunError(
            f"{len(missing)} of {len(blocks)} blocks of images are not annotated.",
            found="\n".join(reasons[:10]) or f"The first is {missing[0].name}.",
            repair="The same command tries them again; all others are kept.",
        )
    lost = left_out.count(b"\n")
    images = sum(len(block.items) for block in blocks)
    return Summary(images - lost, lost, len(blocks), begun)
