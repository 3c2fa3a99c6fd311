"""The commands and the Python of the pages run, on drawn images and toy models, in one process."""

from __future__ import annotations

import io
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from flmm_core.cli import main
from flmm_core.evaluation.scores import SCORES
from flmm_core.pipeline.backbone import sampling
from tests.cached import made_once
from tests.docs.pages import ROOT, SHELL, Block, blocks, commands, every_block
from tests.docs.stand_ins import arguments, replaced, small_run

Capture = pytest.CaptureFixture[str]

OWN = {
    "docs/backbones.md": "tests/docs/test_walkthrough.py",
    "docs/benchmark.md": "tests/benchmark/test_benchmark.py",
    "docs/data.md": "tests/data/test_docs.py",
    "docs/gpus.md": "tests/docs/test_gpus.py",
}
"""Pages whose blocks tests of their own run."""
OWN_BLOCKS = {
    ("docs/serve.md", "import httpx"): "tests/serving/test_docs.py",
    ("docs/serve.md", "from openai import"): "tests/serving/test_docs.py",
}  # fmt: skip
"""Python that needs a running server, and who runs it."""
OPEN = {
    "annotate": "starts Ray; tests/annotate/test_ray.py",
    "demo": "stays open; tests/cli/test_demo.py",
    "doctor": "imports every library there is; tests/cli/test_doctor.py",
    "serve": "stays open; tests/serving/test_server.py",
    "import-flmm": "needs the original's file; tests/cli/test_original_commands.py",
    "export-flmm": "needs an imported head; tests/cli/test_original_commands.py",
}
"""Commands that are parsed only, with the reason and who runs them."""
ANSWER = 6
"""Tokens of an answer: random weights would not end it."""
EXAMPLES = sorted({block.page for block in every_block() if block.page.startswith("examples/")})
"""Distributions of their own, which are not installed here: their tests run the kit on them."""
PAGES = sorted({b.page for b in every_block(*SHELL, "python")} - OWN.keys() - set(EXAMPLES))


@pytest.fixture(scope="module")
def run(random_twin: Path, drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a head that was trained for two steps."""

    def make(folder: Path) -> None:
        folder.mkdir()
        file = folder / "run.yaml"
        file.write_text(yaml.safe_dump(small_run(folder / "run", random_twin, drawn)))
        assert main(["train", "--config", str(file)]) == 0

    return made_once(tmp_path_factory, "pages-run", make)


@pytest.fixture
def place(run: Path, drawn: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with what the pages take for granted: images, runs, settings."""
    monkeypatch.chdir(tmp_path)
    for name in ("photo.jpg", "a.jpg", "b.jpg", "sub/b.jpg", "photos/c.jpg", "more/on/d.png"):
        Path(name).parent.mkdir(exist_ok=True, parents=True)
        with Image.open(sorted(drawn.rglob("*.png"))[0]) as image:
            image.convert("RGB").save(name)
    monkeypatch.setattr(sampling, "LONGEST", ANSWER)
    for name in ("first", "qwen", "qwen-...", "mine"):
        Path("runs").mkdir(exist_ok=True)
        Path("runs", name).symlink_to(run / "run")
    Path("run.yaml").symlink_to(run / "run.yaml")
    things = {"phrase": "red ring", "there": True}
    table = pa.Table.from_pylist([{"image_path": "a.jpg", "objects": [things]}])
    pq.write_table(table, "annotations")  # what `flmm annotate` would have written
    (requests,) = (block for block in blocks("docs/ground.md") if block.language == "json")
    Path("requests.jsonl").write_text(requests.text)
    return tmp_path


def on_stand_ins(given: list[str], twin: Path, drawn: Path) -> list[str]:
    """A command of a page as it can run here."""
    name = given[0]
    if name == "train":
        return [*replaced(given, (r"--processes \d+", "")), "--print-config"]
    small = replaced(
        given,
        (r"(refcoco:/data/coco|shapes)@[\w-]+", f"refcoco:{drawn}@train"),
        (r" --refiner-weights \S+", ""),
        (r"--model Qwen/\S+", f"--model {twin}"),
        (r"(?<= )(RUN|runs/\.\.\.|me/qwen-head(@v1)?|heads/deepseek)(?= |$)", "runs/first"),
    )
    if name in ("chat", "explain") and "--model" not in small and "--head" not in small:
        small += ["--model", str(twin)]
    if name == "chat" or "--ask" in given:
        small += ["--max-new-tokens", str(ANSWER)]
    if name == "push":
        small = [*given, "--model", "Qwen/Qwen2.5-VL-3B-Instruct"]
        small += [] if "--dry-run" in given else ["--dry-run"]
    return small


@pytest.fixture
def scores() -> Iterator[None]:
    """The table of scores, to which a page adds one, is as before."""
    before = dict(SCORES)
    yield
    SCORES.clear()
    SCORES.update(before)


@pytest.mark.parametrize("page", PAGES)
def test_a_page_runs(
    page: str, place: Path, scores: None, random_twin: Path, drawn: Path, capsys: Capture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """From its first block to its last, in one folder; Python blocks share their names."""
    names: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        if block.language == "python" and not _has_own(block):
            exec(compile(block.text, block.place, "exec", dont_inherit=True), names)
        for words in commands(block) if block.language in SHELL else ():
            given = arguments(words)
            if given is None or given[0] in OPEN or "parquet:" in " ".join(given):
                continue
            if given[:2] == ["backbones", "check"] and "DIR" in given:
                continue  # a model of one's own; the kit's own tests run it on many
            typed = io.TextIOWrapper(io.BytesIO(b"photos/c.jpg\n"))
            monkeypatch.setattr(sys, "stdin", typed)
            small = on_stand_ins(given, random_twin, drawn)
            assert main(small) == 0, (block.place, shlex.join(small), capsys.readouterr().err)


def _has_own(block: Block) -> bool:
    return any(block.page == page and begin in block.text for page, begin in OWN_BLOCKS)


def test_who_runs_the_rest_does() -> None:
    for (page, begin), file in OWN_BLOCKS.items():
        assert [b for b in blocks(page) if begin in b.text and b.language == "python"], page
        assert begin in (ROOT / file).read_text() or Path(page).name in (ROOT / file).read_text()
    for page, file in OWN.items():
        assert (ROOT / page).exists()
        assert Path(page).name in (ROOT / file).read_text(), file
    for block in blocks("docs/data.md"):  # its files are read one by one
        assert block.file or block.language in ("sh", "indented"), block.place
    for page in EXAMPLES:
        (test,) = (ROOT / page).parent.glob("tests/test_conformance.py")
        assert "BackboneConformance" in test.read_text()
    for reason in OPEN.values():
        assert (ROOT / reason.partition("; ")[2]).is_file()
