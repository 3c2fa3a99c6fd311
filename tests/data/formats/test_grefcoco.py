from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from flmm_core.data import rle
from flmm_core.errors import DataError
from tests.data.conftest import read


class Files:
    """A gRefCOCO folder as it is distributed: two targets, one target, none."""

    def __init__(self, distributed: Any) -> None:
        self.made = distributed
        self.path = self.made.folder / "grefs(unc).json"
        first, second, third, other = distributed.refs
        self.refs = [
            first | {"ann_id": [101, 102], "category_id": [18, 17], "no_target": False},
            second | {"ann_id": 103, "category_id": 1},
            third | {"ann_id": [-1], "category_id": [-1], "no_target": True},
            other | {"ann_id": [102], "category_id": [17], "no_target": False},
        ]

    def save(self) -> Path:
        self.made.save()
        self.path.write_text(json.dumps(self.refs))
        return Path(self.made.root)

    def fails(self, split: str = "val") -> str:
        with pytest.raises(DataError) as caught:
            read(f"grefcoco:{self.save()}@{split}")
        return str(caught.value)


@pytest.fixture
def files(make_distributed: Callable[..., Any]) -> Files:
    return Files(make_distributed("grefcoco", "unc"))


def test_a_distributed_folder_is_read(files: Files) -> None:
    root = files.save()
    dogs, people = read(f"grefcoco:{root}@val")
    both, none = dogs.objects
    parts = np.zeros((40, 60), dtype=bool)
    parts[3:9, 2:12] = parts[3:9, 20:25] = parts[10:40, 30:60] = True
    np.testing.assert_array_equal(rle.decode(both.mask), parts)
    assert (both.category, both.slice, both.name) == ("dog, cat", "several targets", "0")
    assert (none.category, none.slice, none.sentences) == ("", "no target", ("a cat",))
    assert none.mask["size"] == [40, 60]
    assert rle.area(none.mask) == 0
    assert (people.objects[0].slice, people.objects[0].category) == ("one target", "person")
    assert read(f"grefcoco:{root / 'grefcoco'}@testA")[0].objects[0].split == "testA"


def test_an_unknown_split_lists_the_splits(files: Files) -> None:
    assert files.fails("testB") == (
        f"There is no split 'testB' in {files.path}. Did you mean 'testA'?\n"
        "Its splits: val (3 refs), testA (1 refs).\n"
        "Name one of them after the '@'."
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"ann_id": [101, 555]},
            (
                "The ann_id 555 of ref 0 of {refs} is unknown.\n"
                "It is not among the 'annotations' of {instances}.\n"
                "Use files of one release, unchanged."
            ),
        ),
        (
            {"ann_id": [101, 103]},
            (
                "Ref 0 of {refs} and its annotation name different images.\n"
                "The ref says image_id 9; annotation 103 in {instances} says 25.\n"
                "Use refs and instances of one release."
            ),
        ),
        (
            {"image_id": 77, "ann_id": [-1], "no_target": True},
            (
                "The image_id 77 of ref 0 of {refs} is unknown.\n"
                "It is not among the 'images' of {instances}.\n"
                "Use files of one release, unchanged."
            ),
        ),
        (
            {"ann_id": ["101"]},
            (
                "Ref 0 of {refs} has ['101'] for 'ann_id'.\n"
                "Expected a list of annotation ids, or [-1] where nothing is meant."
            ),
        ),
        (
            {"no_target": True},
            (
                "Ref 0 of {refs} contradicts itself.\n"
                "Its 'no_target' is True, its 'ann_id' is [101, 102].\n"
                "Get an unchanged copy of the file."
            ),
        ),
        (
            {"ref_id": 3},
            (
                "The ref id 3 occurs twice in {refs}.\n"
                "Ids must be unique; get an unchanged copy of the file."
            ),
        ),
    ],
)
def test_what_is_wrong_with_a_ref_is_named(
    files: Files, change: dict[str, Any], message: str
) -> None:
    files.refs[0] |= change
    assert files.fails() == message.format(refs=files.path, instances=files.made.instances_path)


def test_a_file_that_is_cut_off(files: Files) -> None:
    root = files.save()
    files.path.write_text(files.path.read_text()[:200])
    with pytest.raises(DataError) as caught:
        read(f"grefcoco:{root}@val")
    assert caught.value.asked == f"The file {files.path} is not whole JSON."
