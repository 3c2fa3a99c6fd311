"""What one worker of `flmm annotate` does: it holds the model and makes shards of blocks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
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
        manner: "Not there" or not, and in one caption or not.
        block_size: Of the plan: ids of images in COCO follow from it.
    """

    output: str
    head: str
    given: Mapping[str, Any]
    phrases: tuple[str, ...]
    manner: Manner
    columns: Columns
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
        return Grounder.from_pretrained(self.job.head, **self.job.given)

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
        confidence = self.grounder.confidence
        threshold = confidence.threshold if confidence else None
        asked = (
            Asked(
                item.image,
                partial(_read, item.image, self.job.columns),
                item.phrases or self.job.phrases,
            )
            for item in block.items
        )
        each = ground_each(
            self.grounder,
            asked,
            batch_size=self.job.batch_size,
            together=self.job.manner.together,
        )
        for image, outcome in each:
            if isinstance(outcome, Result):
                result = self.job.manner.decide(outcome, threshold)
                size = {"height": result.image.height, "width": result.image.width}
                rows.append((image, {**size, "found": result.to_coco()}))
            else:
                reason = Skipped.because(image, outcome).reason
                logger.warning("left out: %s: %s", image, reason)
                left_out.append((image, reason))
        return rows, left_out


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
