"""`flmm annotate` but for Ray: what is planned, kept, counted and refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from flmm_core.annotate import on_ray
from flmm_core.annotate.plan import Block
from flmm_core.annotate.worker import Annotator, Job, Outcome
from flmm_core.cli import main
from flmm_core.errors import RunError, WeightsError
from flmm_core.files import LOCK
from flmm_core.pipeline.grounder import Grounder

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def photos(scenes: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in scenes[:4]:
        shutil.copy(path, folder / path.name)
    (folder / "a-broken.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def ran(grounder: Grounder, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the blocks that were made, in this process."""
    made: list[int] = []

    def run(blocks: Sequence[Block], job: Job, *_: Any) -> Iterator[Outcome]:
        worker = Annotator(job)
        for block in blocks:
            made.append(block.number)
            yield Outcome(**json.loads(worker({"block": block.to_json()})["outcome"]))

    monkeypatch.setattr(Grounder, "from_pretrained", lambda *_, **__: grounder)
    monkeypatch.setattr(on_ray, "_run", run)
    monkeypatch.setattr(on_ray, "_cluster", lambda *_: nullcontext())
    return made


def command(head: Path, output: Path, *arguments: object) -> int:
    given = [*map(str, arguments), "--head", str(head), "--output", str(output)]
    return main(["annotate", *given, "--block-size", "2"])


def images(out: Path) -> list[str]:
    shards = sorted(out.glob("part-*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    return [Path(row["image_path"]).name for row in rows]


def test_a_second_run_does_what_is_missing_and_new(
    ran: list[int], photos: Path, head: Path, tmp_path: Path, scenes: list[Path], capsys: Capture
) -> None:
    out = tmp_path / "out"
    assert command(head, out, photos, "-p", "ring", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert told == {"images": 4, "left_out": 1, "shards": 3, "made": 3}
    assert ran == [0, 1, 2]
    first = images(out)
    assert sorted(first) == sorted(path.name for path in scenes[:4])
    (line,) = (out / "left-out.jsonl").read_text().splitlines()
    assert json.loads(line)["image"] == str(photos / "a-broken.png")

    (out / "part-000001.parquet").unlink()
    shutil.copy(scenes[4], photos / "0-new.png")
    assert command(head, out, photos, "-p", "ring", "--json") == 0
    assert json.loads(capsys.readouterr().out)["made"] == 2
    assert ran == [0, 1, 2, 1, 3]
    assert images(out) == [*first, "0-new.png"]
    assert command(head, out, photos, "-p", "ring") == 0
    assert capsys.readouterr().out.startswith(f"{out}: 5 images in 4 shards\n1 cannot be used")
    assert ran == [0, 1, 2, 1, 3]
    assert not (out / LOCK).exists()

    assert command(head, out, photos, "-p", "star") == 2
    assert "made with other settings.\nphrases: ['ring'] then, ['star'] now" in (
        capsys.readouterr().err
    )


def test_blocks_that_were_given_up_are_an_error_and_tried_again(
    ran: list[int], photos: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Annotator.annotate

    def dying(self: Annotator, block: Block) -> Outcome:
        return Outcome(1, given_up="It died.") if block.number == 1 else real(self, block)

    monkeypatch.setattr(Annotator, "annotate", dying)
    job_error = pytest.raises(RunError, match="1 of 3 blocks of images are not annotated")
    with monkeypatch.context() as patch, job_error as caught:
        patch.setenv("FLMM_DEBUG", "1")  # main raises
        command(head, tmp_path / "out", photos, "-p", "ring")
    assert caught.value.found == "part-000001: It died."
    monkeypatch.setattr(Annotator, "annotate", real)
    assert command(head, tmp_path / "out", photos, "-p", "ring") == 0
    assert ran == [0, 1, 2, 1]


def test_what_a_worker_meets_is_told_as_it_is(
    ran: list[int],
    photos: Path,
    head: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: Capture,
) -> None:
    for error, code, said in (
        (WeightsError("The head was trained behind another model."), 3, "behind another model."),
        (OSError(errno.ENOSPC, "No space left on device", "x"), 1, "No space left on device."),
    ):

        def fail(*_: Any, raised: Exception = error, **__: Any) -> None:
            raise raised

        monkeypatch.setattr(Grounder, "from_pretrained", fail)
        assert command(head, tmp_path / "out", photos, "-p", "ring") == code
        assert said in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("part-*.parquet"))


def test_a_name_that_is_no_text_costs_only_its_image(
    ran: list[int], scenes: list[Path], head: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "names"
    folder.mkdir()
    shutil.copy(scenes[0], folder / "good.png")
    try:
        shutil.copy(scenes[1], os.fsencode(folder) + b"/b\xe9.png")
    except OSError:
        pytest.skip("file names of this system are text")
    assert command(head, tmp_path / "out", folder, "-p", "ring") == 0
    assert images(tmp_path / "out") == ["good.png"]
    assert "UTF-8" in (tmp_path / "out" / "left-out.jsonl").read_text()


def test_what_the_model_says_itself_is_annotated(
    ran: list[int], photos: Path, head: Path, grounder: Grounder, tmp_path: Path, capsys: Capture
) -> None:
    out, question = tmp_path / "out", "What is there?"
    words = ("--ask", question, "--finder", "keyword", "--max-new-tokens", "6")
    assert command(head, out, photos, *words) == 2
    assert "keyword" in capsys.readouterr().err
    words = ("--ask", question, "--max-new-tokens", "6")
    assert command(head, out, photos, *words) == 0
    shards = sorted(out.glob("part-*.parquet"))
    rows = [row for shard in shards for row in pq.read_table(shard).to_pylist()]
    assert len(rows) == 4
    for row in rows:
        answer = grounder.chat(row["image_path"], question, max_new_tokens=6)
        assert row["answer"] == answer.text
        assert [thing["phrase"] for thing in row["objects"]] == [span.phrase for span in answer]
    assert command(head, out, photos, *words, "-p", "ring") == 2
    assert "--ask and -p contradict each other." in capsys.readouterr().err
    assert command(head, tmp_path / "coco", photos, *words, "--format", "coco") == 0
    images = json.loads((tmp_path / "coco" / "part-000001.json").read_text())["images"]
    told = {row["image_path"]: row["answer"] for row in rows}
    assert all(image["answer"] == told[image["file_name"]] for image in images)


def test_what_is_wrong_is_told_before_ray_starts(
    photos: Path, head: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr(on_ray, "_run", None)
    out = tmp_path / "out"
    for arguments, code, said in (
        ((photos,), 3, "There is no phrase for the image"),
        ((tmp_path / "none", "-p", "a"), 3, "none cannot be read.\nThere is no such file."),
        ((photos, "-p", " "), 2, "Phrase 1 is empty."),
        ((photos, "-p", "a", "--dtype", "float99"), 2, "float99"),
    ):
        assert command(head, out, *arguments) == code
        assert said in capsys.readouterr().err
    assert command(tmp_path, out, photos, "-p", "a") == 3
    assert "There is no trained head in" in capsys.readouterr().err
    monkeypatch.setitem(__import__("sys").modules, "ray", None)
    monkeypatch.delitem(__import__("sys").modules, "ray.data", raising=False)
    assert command(head, out, photos, "-p", "a") == 3
    assert 'pip install "flmm[ray]"' in capsys.readouterr().err
