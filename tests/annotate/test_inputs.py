"""Images from folders, patterns, lists and tables, on any file system of fsspec."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from flmm_core.annotate.inputs import Columns, Item, find_items, read_item
from flmm_core.errors import DataError, UsageError
from flmm_core.images import to_image


def encoded(shade: int) -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 0, 0)).save(written, "PNG")
    return written.getvalue()


def shade(image: str, columns: Columns | None = None) -> int:
    return int(np.asarray(to_image(read_item(image, columns)))[0, 0, 0])


@pytest.fixture
def bucket() -> Iterator[str]:
    """A store that is no local folder."""
    store = fsspec.filesystem("memory")
    for name, value in (("b.png", 2), ("a.png", 1), ("deep/c.JPG", 3), ("notes.txt", 4)):
        store.pipe_file(f"/bucket/{name}", encoded(value))
    yield "memory://bucket"
    store.rm("/bucket", recursive=True)


def test_folders_and_patterns_of_a_store(bucket: str) -> None:
    items = list(find_items([bucket]))
    assert [item.image for item in items] == [
        "memory:///bucket/a.png", "memory:///bucket/b.png", "memory:///bucket/deep/c.JPG",
    ]  # fmt: skip
    assert [shade(item.image) for item in items] == [1, 2, 3]
    assert [item.image for item in find_items([f"{bucket}/*.png"])] == [
        "memory:///bucket/a.png",
        "memory:///bucket/b.png",
    ]
    assert [shade(item.image) for item in find_items([f"{bucket}/b.png"])] == [2]


def test_images_within_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        archive.writestr("in/a.png", encoded(7))
        archive.writestr("in/b.png", encoded(8))
    monkeypatch.chdir(tmp_path)
    items = list(find_items(["zip://in/*.png::photos.zip"]))
    monkeypatch.chdir("/")  # where workers run is not where the command was given
    assert [shade(item.image) for item in items] == [7, 8]


def test_local_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(encoded(5))
    (tmp_path / "in" / "[1].png").write_bytes(encoded(6))
    monkeypatch.chdir(tmp_path)
    for source in ("in/a.png", "in/a*", f"file://{tmp_path}/in/a.png"):
        assert list(find_items([source])) == [Item(str(tmp_path / "in" / "a.png"))]
    assert [shade(item.image) for item in find_items(["in/[1].png"])] == [6]
    assert len(list(find_items(["in"]))) == 2


def test_lists_bring_phrases(tmp_path: Path, bucket: str) -> None:
    (tmp_path / "a.png").write_bytes(encoded(9))
    lines = [{"image": "a.png", "phrases": ["red"]}, {"image": f"{bucket}/b.png"}]
    (tmp_path / "list.jsonl").write_text("\n".join(map(json.dumps, lines)))
    items = list(find_items([str(tmp_path / "list.jsonl")]))
    assert [(shade(item.image), item.phrases) for item in items] == [(9, ("red",)), (2, ())]
    fsspec.filesystem("memory").pipe_file("/bucket/list.jsonl", b'{"image": "a.png"}\n')
    assert [shade(item.image) for item in find_items([f"{bucket}/list.jsonl"])] == [1]
    (tmp_path / "list.jsonl").write_text('{"image": "a.png"}\n{"image"\n[]\n')
    with pytest.raises(DataError, match="2 problems"):
        list(find_items([str(tmp_path / "list.jsonl")]))


@pytest.mark.parametrize("kind", ["bytes", "datasets", "path"])
def test_tables_hold_images_or_their_paths(tmp_path: Path, kind: str) -> None:
    data = [encoded(value) for value in range(5)]
    for value, content in enumerate(data):
        (tmp_path / f"{value}.png").write_bytes(content)
    images = {
        "bytes": data,
        "datasets": [{"bytes": content, "path": None} for content in data],
        "path": [f"{value}.png" for value in range(5)],
    }[kind]
    words = [["ring", " star "], None, [], ["a"], ["b"]]
    table = pa.table({"image": images, "phrases": words, "word": ["v", "w", "x", "y", "z"]})
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=2)
    items = list(find_items([str(tmp_path / "t.parquet")]))
    assert [item.phrases for item in items] == [("ring", "star"), (), (), ("a",), ("b",)]
    assert [shade(item.image) for item in items] == [0, 1, 2, 3, 4]
    items = list(find_items([str(tmp_path / "t.parquet")], Columns(phrases="word")))
    assert [item.phrases for item in items] == [("v",), ("w",), ("x",), ("y",), ("z",)]
    for columns, said in (
        (Columns(image="photo"), "--image-column"),
        (Columns(phrases="words"), "--phrases-column"),
    ):
        with pytest.raises(UsageError, match=said):
            list(find_items([str(tmp_path / "t.parquet")], columns))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("memory://bucket/gone.png", "bucket/gone.png cannot be read.\nThere is no such file."),
        ("gone/*.png", "There is no image in 'gone/*.png'.\nLooked for files that match"),
        ("memory://none/*.png", "There is no image in 'memory://none/*.png'."),
        ("nothing://x", "nothing://x cannot be read.\nProtocol not known: nothing."),
        ("gone.jsonl", "gone.jsonl cannot be read.\nThere is no such file."),
        ("gone.parquet", "gone.parquet cannot be read.\nThere is no such file."),
        ("text.parquet", "text.parquet cannot be read.\n"),
    ],
)
def test_what_cannot_be_read_is_a_data_error_that_names_it(
    source: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text.parquet").write_text("no table")
    with pytest.raises(DataError) as caught:
        [read_item(item.image) for item in find_items([source])]
    assert said in str(caught.value)


def test_broken_images_are_data_errors(bucket: str) -> None:
    store = fsspec.filesystem("memory")
    store.pipe_file("/bucket/empty.png", b"")
    store.pipe_file("/bucket/cut.png", encoded(1)[:50])
    store.pipe_file("/bucket/text.png", b"no image")
    for name, said in (("empty", "is empty"), ("cut", "cut off"), ("text", "is not an image")):
        with pytest.raises(DataError, match=rf"{bucket}/{name}.png {said}|broken or {said}"):
            to_image(read_item(f"{bucket}/{name}.png"))
