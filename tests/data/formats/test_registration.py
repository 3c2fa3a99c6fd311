"""A format is added by one file and one entry, without touching another file of the core."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import flmm_core.cli.data
from flmm_core.cli import main
from flmm_core.data import rle
from flmm_core.data.formats import FORMATS, DataFormat
from flmm_core.data.sources import open_source
from flmm_core.errors import UsageError

MINE = """
import json

from flmm_core.data.formats.shared.new_image import checked
from flmm_core.data.records import field, find_file, read_json
from flmm_core.data.sample import AnnotatedImage, GroundedObject
from flmm_core.data import rle


def read(source, findings):
    file = source.path / f"{source.split}.json"
    images = []
    for name, record in read_json(file).items():
        with findings.part():
            path = find_file([source.path], [name], f"The image {name} of {file}", "Add it.")
            size = tuple(field(record, "size", list, f"{name} in {file}"))
            mask = rle.to_rle(field(record, "mask", dict, f"{name} in {file}"), *size)
            thing = GroundedObject(mask, (field(record, "words", str, f"{name} in {file}"),))
            images.append(AnnotatedImage(name, path, size, (thing,)))
    return images


def write(folder, images):
    records = {}
    for new, size in checked(images):
        new.save(folder / new.file_name)
        thing = new.objects[0]
        records[new.file_name] = {
            "size": size, "words": thing.sentences[0], "mask": rle.to_json(thing.read_mask())
        }
    (folder / "train.json").write_text(json.dumps(records))
    return folder
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The format "mine", as if it stood in the table."""
    (tmp_path / "mine_format.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    entry = DataFormat("mine", "my own", module="mine_format")
    monkeypatch.setitem(FORMATS, entry.name, entry)
    # The command reads the table when it is imported.
    monkeypatch.delitem(sys.modules, flmm_core.cli.data.__name__)


@pytest.mark.usefixtures("mine")
def test_a_new_format_is_drawn_read_checked_converted_and_listed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["data", "draw", "scenes", "--format", "mine", "--pictures", "3"]) == 0
    samples = open_source("mine:scenes@train")
    assert len(samples) == 3
    assert rle.decode(samples[0].phrases[0].mask).any()
    assert main(["data", "check", "mine:scenes@train"]) == 0
    assert "mine:scenes@train: no faults; 3 images" in capsys.readouterr().out
    assert main(["data", "convert", "mine:scenes@train", "lines"]) == 0
    converted = open_source("jsonl:lines@train")
    for one, two in zip(samples, converted, strict=True):
        assert one.phrases[0].text == two.phrases[0].text
        assert np.array_equal(rle.decode(one.phrases[0].mask), rle.decode(two.phrases[0].mask))
    Path("scenes/train_plain_000001.png").unlink()
    capsys.readouterr()
    assert main(["data", "check", "mine:scenes@train"]) == 3
    assert "1. The image train_plain_000001.png of scenes/train.json is missing." in (
        capsys.readouterr().out
    )
    assert main(["data", "--help"]) == 0
    assert " mine:PATH@SPLIT my own " in " ".join(capsys.readouterr().out.split())
    assert main(["data", "draw", "--help"]) == 0
    assert "labelme|mine]" in "".join(capsys.readouterr().out.split())
    for text in ("other:x", "mine:scenes"):
        with pytest.raises(UsageError, match="mine:PATH@SPLIT"):
            open_source(text)


def test_every_entry_names_what_there_is() -> None:
    for entry in FORMATS.values():
        assert callable(entry.code.read)
        assert hasattr(entry.code, "write") or not entry.writable


def test_help_loads_no_numpy_and_no_pillow() -> None:
    code = (
        "import sys\n"
        "from flmm_core.cli import main\n"
        "main(['data', 'draw', '--help'])\n"
        "sys.exit(bool({'numpy', 'PIL', 'torch'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
