"""Grounds many images into a folder; images that an earlier run did in the same way are kept."""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from flmm_core import __version__
from flmm_core.annotate.each import Asked, ground_each
from flmm_core.annotate.outputs import read_result, write_coco, write_labelme
from flmm_core.annotate.requests import Request
from flmm_core.data.findings import Skipped
from flmm_core.data.images import read_image
from flmm_core.errors import FlmmError
from flmm_core.files import write_json
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from flmm_core.pipeline.result_files import USUAL, write_result
from flmm_core.progress import Progress

LEFT_OUT = "left-out.json"
WRITERS = 2
"""Threads that write results while the model runs."""


@dataclass(frozen=True)
class Manner:
    """How phrases are grounded.

    Attributes:
        together: As for `Grounder.ground`; so for `keep_absent`.
        min_probability: Answer "not there" below it, instead of what was chosen in training.
        kinds: What is written besides result.json.
    """

    together: bool = False
    keep_absent: bool = False
    min_probability: float | None = None
    kinds: Collection[str] = USUAL

    def decide(self, result: Result, threshold: float | None) -> Result:
        """The result with "not there" where that is to be said."""
        below = threshold if self.min_probability is None else self.min_probability
        return result if self.keep_absent or below is None else result.abstain(below)


@dataclass(frozen=True)
class Done:
    """One image: the content of its result.json, or why there is none.

    Attributes:
        folder: Of its files.
        kept: They are of an earlier run.
    """

    request: Request
    folder: Path
    content: Mapping[str, Any] | None = None
    error: FlmmError | None = None
    kept: bool = False


def ground_folder(
    load: Callable[[], Grounder],
    requests: Sequence[Request],
    output: Path,
    *,
    head: str,
    made_with: Mapping[str, Any] | None = None,
    manner: Manner | None = None,
    flat: bool = False,
    overwrite: bool = False,
    batch_size: int = 8,
    read: Callable[[Path], Image.Image] = read_image,
    progress: Progress | None = None,
) -> list[Done]:
    """Ground phrases in images, and write what is found of each to a folder of its own.

    Args:
        load: Called if any image has to be grounded.
        output: The images' folders are `output / request.name`.
        head: As the user named it, for result.json.
        made_with: All else that masks depend on, ready for JSON. An image that an earlier run did
            with the same, with the same phrases and in the same manner, is not grounded again.
            None grounds all.
        flat: There is one image, and its folder is `output` itself.
        overwrite: Ground all images again.
        read: Reads an image.

    Returns:
        One entry per request, in order.
    """
    manner = manner or Manner()
    places = [output if flat else output / request.name for request in requests]
    keys = [_key(request, made_with, manner) for request in requests]
    done: dict[int, Done] = {}
    if not overwrite:
        for number, (request, folder) in enumerate(zip(requests, places, strict=True)):
            content = read_result(folder)
            if content and keys[number] and content.get("key") == keys[number]:
                done[number] = Done(request, folder, content, kept=True)
    missing = [number for number in range(len(requests)) if number not in done]
    progress = progress or Progress()
    grounder = load() if missing else None
    with progress.stage("Grounding", len(requests), len(done)) as stage:
        if grounder is not None:
            asked = (
                Asked(n, partial(read, requests[n].path), requests[n].phrases) for n in missing
            )
            each = ground_each(grounder, asked, batch_size=batch_size, together=manner.together)
            threshold = grounder.confidence.threshold if grounder.confidence else None

            def write(number: int, result: Result) -> Done:
                request, folder = requests[number], places[number]
                facts: dict[str, Any] = {"picture": str(request.path), "head": head}
                if keys[number] is not None:
                    facts["key"] = keys[number]
                result = manner.decide(result, threshold)
                content = write_result(result, folder, kinds=manner.kinds, **facts)
                return Done(request, folder, content)

            for number, outcome in _written(each, write):
                if isinstance(outcome, FlmmError):
                    outcome = Done(requests[number], places[number], error=outcome)
                done[number] = outcome
                stage.advance()
    ordered = [done[number] for number in range(len(requests))]
    write_together(output, ordered, manner.kinds)
    return ordered


def _key(request: Request, made_with: Mapping[str, Any] | None, manner: Manner) -> str | None:
    """What the files of an image depend on, as a digest; None if that is unknown."""
    if made_with is None:
        return None
    try:
        stat = request.path.stat()
    except (OSError, ValueError):
        return None
    image = str(request.path.absolute()), stat.st_size, stat.st_mtime_ns
    content = [__version__, *image, request.phrases, asdict(manner), made_with]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _written(
    each: Iterator[tuple[int, Result | FlmmError]], write: Callable[[int, Result], Done]
) -> Iterator[tuple[int, Done | FlmmError]]:
    """What becomes of each image, while the next ones are grounded."""
    waiting: deque[tuple[int, Future[Done] | FlmmError]] = deque()
    with ThreadPoolExecutor(WRITERS, "flmm-write") as pool:
        for number, outcome in each:
            if isinstance(outcome, Result):
                waiting.append((number, pool.submit(write, number, outcome)))
            else:
                waiting.append((number, outcome))
            while len(waiting) > 2 * WRITERS:
                yield _finished(*waiting.popleft())
        while waiting:
            yield _finished(*waiting.popleft())


def _finished(number: int, outcome: Future[Done] | FlmmError) -> tuple[int, Done | FlmmError]:
    return number, outcome if isinstance(outcome, FlmmError) else outcome.result()


def write_together(output: Path, done: Sequence[Done], kinds: Collection[str]) -> None:
    """The files that are of all images."""
    good = [(each.request, each.content) for each in done if each.content is not None]
    if "coco" in kinds:
        write_coco(output, ((request.path, content) for request, content in good))
    if "labelme" in kinds:
        write_labelme(output, ((request.path, request.name, c) for request, c in good))
    lost = [Skipped.because(str(each.request.path), each.error) for each in done if each.error]
    if lost:
        write_json(output / LEFT_OUT, [{"item": item.name, "reason": item.reason} for item in lost])
    else:
        (output / LEFT_OUT).unlink(missing_ok=True)
