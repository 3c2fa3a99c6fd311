"""`flmm annotate` with two workers, one of which is killed.

FLMM_ANNOTATE=2000 pytest tests/annotate/test_ray.py -s does it on so many drawn scenes, with the
head FLMM_HEAD if that is given.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
import pytest

from flmm_core.annotate.folder import Manner, ground_folder
from flmm_core.annotate.inputs import Columns
from flmm_core.annotate.on_ray import Summary, annotate
from flmm_core.annotate.requests import find_requests
from flmm_core.annotate.worker import Job
from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS
from flmm_core.pipeline.grounder import Grounder
from flmm_core.progress import Progress, Stage

SCENES = int(os.environ.get("FLMM_ANNOTATE", "12"))
BLOCK = max(4, SCENES // 40)
PHRASES = ("red ring", "the star")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    module = pytest.importorskip("ray")
    module.init(
        include_dashboard=False,
        num_cpus=2,
        object_store_memory=80 << 20,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    yield module
    module.shutdown()


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawn scenes, and one that is broken."""
    folder = tmp_path_factory.mktemp("photos")
    FORMATS["refcoco"].write(folder / "drawn", draw_images(SCENES, seed=8))
    for path in (folder / "drawn").rglob("*.png"):
        path.rename(folder / path.name)
    (folder / "a-broken.png").write_bytes(b"broken")
    return folder


class Killing(Progress):
    """Kills one of the workers after the first block, and notes whom."""

    def __init__(self) -> None:
        self.killed: list[psutil.Process] = []

    @contextmanager
    def stage(self, name: str, total: int, done: int = 0) -> Iterator[Stage]:
        yield Stage(lambda count, figures: self.kill())

    def kill(self) -> None:
        if not self.killed:
            self.killed = workers()[:1]
            self.killed[0].kill()


def workers() -> list[psutil.Process]:
    """The processes below this one that hold a model."""
    below = psutil.Process().children(recursive=True)
    return [one for one in below if "MapWorker" in "".join(one.cmdline())]


@pytest.mark.slow
@pytest.mark.multiprocess
def test_every_image_once_and_as_ground_says_with_a_worker_killed(
    ray: Any, photos: Path, head: Path, tmp_path: Path
) -> None:
    head = Path(os.environ.get("FLMM_HEAD", head))
    out = tmp_path / "out"
    # One image a batch: then no mask depends on what else is in its block.
    alone = {"batch_size": len(PHRASES)}
    job = Job(str(out), str(head), {}, PHRASES, Manner(), Columns(), block_size=BLOCK, **alone)
    killing = Killing()
    summary = annotate([str(photos)], job, workers=2, progress=killing)
    blocks = -(-(SCENES + 1) // BLOCK)
    assert summary == Summary(images=SCENES, left_out=1, shards=blocks, made=blocks)
    (killed,) = killing.killed  # another process may have its number by now
    assert not killed.is_running() or killed.status() == psutil.STATUS_ZOMBIE

    shards = sorted(out.glob("part-*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert len(shards) == blocks
    assert Counter(row["image_path"] for row in rows) == Counter(
        str(path) for path in photos.glob("*.png") if path.name != "a-broken.png"
    )
    assert "a-broken.png" in (out / "left-out.jsonl").read_text()
    assert not list(out.glob("*.started"))

    grounder = Grounder.from_pretrained(head)
    requests = find_requests([str(photos)], PHRASES)
    manner = Manner(kinds=())
    done = ground_folder(lambda: grounder, requests, tmp_path, head="", manner=manner, **alone)
    expected = {str(each.request.path): each.content for each in done if each.content}
    apart, differing = 0.0, 0
    for row in rows:
        found = expected[row["image_path"]]["found"]
        for thing, other in zip(row["objects"], found, strict=True):
            assert (thing["phrase"], thing["there"]) == (other["phrase"], other["there"])
            differing += thing["segmentation"] != other["segmentation"]
            apart = max(apart, abs(thing["score"] - other["score"]))
    print(
        f"{len(rows)} images of {blocks} blocks, a worker killed: {differing} of "
        f"{len(rows) * len(PHRASES)} masks differ, scores by at most {apart:.1g}"
    )
    assert (differing, apart < 1e-6) == (0, True)
