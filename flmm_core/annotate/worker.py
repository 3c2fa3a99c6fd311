"""What one worker of `flmm annotate` does: it holds the model and makes shards of blocks."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from flmm_core.annotate.each import Asked, ground_each
from flmm_core.annotate.folder import Manner
from flmm_core.annotate.inputs import Columns, read_item
from flmm_core.annotate.plan import Block
from flmm_core.annotate.shards import (
    ENDINGS,
    LEFT_OUT,
    Row,
    ShardFormat,
    encode_left_out,
    encode_shard,
)
from flmm_core.annotate.store import Store
from flmm_core.data.findings import Skipped
from flmm_core.errors import DataError, FlmmError, machine_error
from flmm_core.pipeline.conversation.phrases.base import PhraseContext
from flmm_core.pipeline.conversation.phrases.choose import open_finder
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from flmm_core.segment import is_text

logger = logging.getLogger(__name__)

STARTED = ".started"
"""The ending of a file with a byte for each time that a block was begun; gone with its shard."""
TRIES = 3
"""Times that a block is begun; one that ends its worker each time is given up."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; picklable.

    Attributes:
        head: For `Grounder.from_pretrained`; so are `given`.
        phrases: For images that bring none.
        ask: Instead of phrases: the model is asked this of every image, and what the `finder`
            finds in its answer of at most `max_new_tokens` tokens is grounded.
        manner: "Not there" or not, and in one caption or not.
        block_size: Of the plan: ids of images in COCO follow from it.
    """

    output: str
    head: str
    given: Mapping[str, Any]
    phrases: tuple[str, ...]
    manner: Manner
    columns: Columns
    ask: str = ""
    finder: str = "rules"
    max_new_tokens: int = 64
    form: ShardFormat = "parquet"
    block_size: int = 256
    batch_size: int = 8

    def settings(self) -> dict[str, Any]:
        """What annotations depend on, ready for JSON; without `output` and `batch_size`."""
        own = asdict(self)
        del own["output"], own["batch_size"]
        own["given"] = {key: str(value) for key, value in self.given.items()}
        return own


@dataclass(frozen=True)
class Outcome:
    """What became of a block: numbers of images, or why it was given up.

    `error` is why no block can be done, as `asked`, `found` and `repair` of an `FlmmError` and its
    exit code. Ray shows an error that is raised as pages of traceback, and calls it its own.
    """

    block: int
    images: int = 0
    left_out: int = 0
    given_up: str = ""
    error: tuple[str, str, str, int] | None = None


class Annotator:
    """Makes the shard of a block, unless it is there; the model is loaded once, for the first."""

    def __init__(self, job: Job) -> None:
        self.job, self.store = job, Store(job.output)

    @cached_property
    def grounder(self) -> Grounder:
        grounder = Grounder.from_pretrained(self.job.head, **self.job.given)
        if self.job.ask:  # what is wrong with a finder is wrong for all images
            context = PhraseContext(backbone=grounder.backbone, head=grounder.head)
            open_finder(self.job.finder).check(context)
        return grounder

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A row with a block in JSON -> a row with its outcome in JSON, for Ray Data."""
        block = Block.from_json(row["block"])
        try:
            outcome = self.annotate(block)
        except (FlmmError, OSError, MemoryError, RuntimeError) as error:
            known = error if isinstance(error, FlmmError) else machine_error(error)
            if known is None:
                raise
            told = known.asked, known.found, known.repair, known.exit_code
            outcome = Outcome(block.number, error=told)
        return {"outcome": json.dumps(asdict(outcome))}

    def annotate(self, block: Block) -> Outcome:
        """Make the shard of a block, whole or not at all."""
        store = self.store
        shard, list_name, mark = (
            f"{block.name}{ending}" for ending in (ENDINGS[self.job.form], LEFT_OUT, STARTED)
        )
        if store.exists(shard):  # made by a worker that could not say so any more
            left_out = store.read(list_name).count(b"\n") if store.exists(list_name) else 0
            return Outcome(block.number, len(block.items) - left_out, left_out)
        begun = len(store.read(mark)) if store.exists(mark) else 0
        if begun >= TRIES:
            return Outcome(block.number, given_up=f"It ended its worker {begun} times.")
        store.write(mark, b"*" * (begun + 1))
        rows, lost = self._ground(block)
        data = encode_shard(self.job.form, rows, block.number * self.job.block_size + 1)
        if lost:
            store.write(list_name, encode_left_out(lost))
        else:
            store.remove(list_name)  # of a try that could not read what this one could
        store.write(shard, data)
        store.remove(mark)
        return Outcome(block.number, len(rows), len(lost))

    def _ground(self, block: Block) -> tuple[list[Row], list[tuple[str, str]]]:
        rows: list[Row] = []
        left_out: list[tuple[str, str]] = []
        for image, outcome, said in self._asked(block) if self.job.ask else self._named(block):
            if isinstance(outcome, Result):
                size = {"height": outcome.image.height, "width": outcome.image.width}
                rows.append((image, {**size, "answer": said, "found": outcome.to_coco()}))
            else:
                reason = Skipped.because(image, outcome).reason
                logger.warning("left out: %s: %s", image, reason)
                left_out.append((image, reason))
        return rows, left_out

    def _named(self, block: Block) -> Iterator[_Found]:
        """What is found of each image's phrases."""
        job, confidence = self.job, self.grounder.confidence
        threshold = confidence.threshold if confidence else None
        asked = (
            Asked(item.image, partial(_read, item.image, job.columns), item.phrases or job.phrases)
            for item in block.items
        )
        how: dict[str, Any] = {"batch_size": job.batch_size, "together": job.manner.together}
        for image, outcome in ground_each(self.grounder, asked, **how):
            if isinstance(outcome, Result):
                outcome = job.manner.decide(outcome, threshold)
            yield image, outcome, None

    def _asked(self, block: Block) -> Iterator[_Found]:
        """What is found of the phrases of the model's own answers."""
        job = self.job
        for item in block.items:
            try:
                answer = self.grounder.chat(
                    _read(item.image, job.columns),
                    job.ask,
                    phrases=job.finder,
                    keep_absent=job.manner.keep_absent,
                    max_new_tokens=job.max_new_tokens,
                )
                yield item.image, answer.result, answer.text
            except FlmmError as error:
                yield item.image, error, None


_Found = tuple[str, Result | FlmmError, str | None]
"""An image's address, its result or why there is none, and the answer, if the model was asked."""


def _read(image: str, columns: Columns) -> object:
    if not is_text(image):
        raise DataError(
            f"The name of the image {image!r} is not UTF-8 text.", repair="Rename the file."
        )
    try:
        return read_item(image, columns)
    except FlmmError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(error.asked, found=error.found, repair=error.repair) from error
