"""Blocks, shards, and what a second run does, without Ray."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
import torch
from pycocotools import mask as coco_mask

from flmm_core.annotate.folder import Manner
from flmm_core.annotate.inputs import Columns, Item
from flmm_core.annotate.plan import Block, make_plan
from flmm_core.annotate.store import Store
from flmm_core.annotate.worker import STARTED, TRIES, Annotator, Job, Outcome
from flmm_core.data.findings import Findings
from flmm_core.data.formats import FORMATS, Source
from flmm_core.errors import UsageError
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.result import Result
from tests.flows import fresh_grounder, weighed

PHRASES = ("red ring", "the star")


@pytest.fixture
def annotator(grounder: Grounder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Annotator:
    monkeypatch.setattr(Grounder, "from_pretrained", lambda *_, **__: grounder)
    job = Job(str(tmp_path / "out"), "head", {}, PHRASES, Manner(), Columns(), block_size=3)
    return Annotator(job)


@pytest.fixture
def block(scenes: list[Path], tmp_path: Path) -> Block:
    """Three images, one of them broken."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(scenes[0].read_bytes()[:900])
    images = [str(scenes[0]), str(broken), str(scenes[1])]
    return Block(4, tuple(map(Item, images)))


def test_a_block_becomes_a_shard_that_our_reader_reads(
    annotator: Annotator, block: Block, scenes: list[Path], tmp_path: Path, grounder: Grounder
) -> None:
    out = tmp_path / "out"
    assert annotator.annotate(block) == Outcome(4, images=2, left_out=1)
    assert sorted(path.name for path in out.iterdir()) == [
        "part-000004.left-out.jsonl",
        "part-000004.parquet",
    ]
    (line,) = (out / "part-000004.left-out.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == block.items[1].image
    rows = pq.read_table(out / "part-000004.parquet").to_pylist()
    assert [row["image_path"] for row in rows] == [str(scenes[0]), str(scenes[1])]
    for row, path in zip(rows, scenes, strict=False):
        result = grounder.ground(path, PHRASES)
        assert (row["height"], row["width"]) == (result.image.height, result.image.width)
        assert [thing["phrase"] for thing in row["objects"]] == list(PHRASES)
        for thing, expected in zip(row["objects"], result.to_coco(), strict=True):
            assert abs(thing["area"] - expected["area"]) <= 2
    images = FORMATS["parquet"].read(Source("parquet", out), Findings())
    found = {(str(image.path), *thing.sentences) for image in images for thing in image.objects}
    marked = {
        (row["image_path"], thing["phrase"])
        for row in rows
        for thing in row["objects"]
        if thing["area"]
    }
    assert found == marked
    assert len(found) >= 2


def test_masks_of_a_head_with_learned_pooling_are_those_of_each_phrase_alone(
    random_twin: Path, block: Block, tmp_path: Path
) -> None:
    recipe = Recipe("qwen", str(random_twin), base_channels=4, pool="learned", pool_ends=2)
    made = weighed(fresh_grounder(recipe))
    torch.nn.init.normal_(made.head.mask_head.unet.conv_seg.weight)
    head, words = str(made.save_pretrained(tmp_path / "head")), ("ring", *PHRASES)
    job = Job(str(tmp_path / "out"), head, {}, words, Manner(), Columns(), block_size=3)
    assert Annotator(job).annotate(block) == Outcome(4, images=2, left_out=1)
    masks = 0
    for row in pq.read_table(tmp_path / "out" / "part-000004.parquet").to_pylist():
        for phrase, thing in zip(words, row["objects"], strict=True):
            (alone,) = made.ground(row["image_path"], phrase).to_coco()
            assert thing["phrase"] == phrase
            assert thing["score"] == pytest.approx(alone["score"], abs=1e-3)
            assert coco_mask.iou([thing["segmentation"]], [alone["segmentation"]], [0])[0, 0] > 0.99
            masks += thing["area"] > 0
    assert masks > 3


def test_coco_shards_can_be_joined(annotator: Annotator, block: Block, tmp_path: Path) -> None:
    annotator.job = replace(annotator.job, form="coco")
    contents = []
    for number in (0, 1):
        annotator.annotate(replace(block, number=number))
        path = tmp_path / "out" / f"part-{number:06d}.json"
        contents.append(json.loads(path.read_text()))
        assert FORMATS["coco"].read(Source("coco", path), Findings())
    for kind in ("images", "annotations"):
        ids = [record["id"] for content in contents for record in content[kind]]
        assert len(set(ids)) == len(ids) >= 4


def test_a_shard_that_is_there_is_not_made_again(
    annotator: Annotator, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = annotator.annotate(block)
    monkeypatch.setattr(Grounder, "ground_prepared", None)
    assert annotator.annotate(block) == first


def test_a_list_of_a_worse_try_does_not_stay(
    annotator: Annotator, block: Block, scenes: list[Path]
) -> None:
    annotator.store.write("part-000004.left-out.jsonl", b"{}\n")
    shutil.copy(scenes[2], block.items[1].image)
    assert annotator.annotate(block) == Outcome(4, images=3)
    assert annotator.store.names() == {"part-000004.parquet"}


def test_a_block_that_ends_its_worker_is_given_up(
    annotator: Annotator, block: Block, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object, **__: object) -> list[Result]:
        raise SystemExit

    monkeypatch.setattr(Grounder, "ground_prepared", die)
    for _ in range(TRIES):
        with pytest.raises(SystemExit):
            annotator.annotate(block)
    assert annotator.annotate(block).given_up == "It ended its worker 3 times."
    assert annotator.store.names() == {f"part-000004{STARTED}"}


def test_a_plan_grows_and_keeps_its_blocks(tmp_path: Path) -> None:
    store = Store(str(tmp_path / "out"))
    items = [Item(f"{number}.png") for number in range(5)]
    first = make_plan(store, items, {"a": 1}, block_size=2)
    assert [len(block.items) for block in first] == [2, 2, 1]
    assert make_plan(store, items, {"a": 1}, block_size=2) == first
    more = [Item("new.png", ("x",)), *items[::-1], Item("new.png", ("y",))]
    grown = make_plan(store, more, {"a": 1}, block_size=2)
    assert grown[:3] == first
    assert grown[3:] == [Block(3, (Item("new.png", ("x", "y")),))]
    assert make_plan(store, [], {"a": 1}, block_size=2) == grown
    with pytest.raises(UsageError, match="other settings") as caught:
        make_plan(store, items, {"a": 2}, block_size=2)
    assert caught.value.found == "a: 1 then, 2 now"
    with pytest.raises(UsageError, match="Other phrases"):
        make_plan(store, [Item("1.png", ("z",))], {"a": 1}, block_size=2)


def test_a_store_elsewhere_holds_the_same_files(annotator: Annotator, block: Block) -> None:
    store = Store("memory://annotations/out")
    annotator.store = store
    annotator.annotate(block)
    assert store.names() == {"part-000004.left-out.jsonl", "part-000004.parquet"}
    with fsspec.open("memory://annotations/out/part-000004.parquet") as file:
        assert pq.read_table(file).num_rows == 2
    assert make_plan(store, block.items, {}, block_size=2) == make_plan(store, [], {}, block_size=2)
    fsspec.filesystem("memory").rm("/annotations", recursive=True)
