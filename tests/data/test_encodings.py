"""JSON as Windows saves it, in every format: with a byte order mark, as UTF-16, in GB 18030."""

from __future__ import annotations

from pathlib import Path

import pytest

from flmm_core.data.drawn.writing import draw_images
from flmm_core.data.formats import FORMATS, writable_formats
from flmm_core.data.records import decode, parse_json
from flmm_core.data.sample import Sample
from flmm_core.data.sources import open_source
from flmm_core.errors import DataError


@pytest.mark.parametrize("form", writable_formats())
def test_every_reader_reads_them_alike(form: str, tmp_path: Path) -> None:
    FORMATS[form].write(tmp_path, draw_images(2, 11, extras=FORMATS[form].extras))
    texts = {}
    for file in tmp_path.rglob("*.json*"):
        texts[file] = file.read_text(encoding="utf-8").replace("the ", "那个")
    encodings = ["utf-8", "utf-8-sig", "utf-16", "gb18030"]
    if form == "jsonl":
        encodings.remove("utf-16")  # its lines would not be lines
    if form == "reasonseg":
        encodings.remove("gb18030")  # cp1252 is what its publishers read
    samples: list[list[Sample]] = []
    for encoding in encodings:
        for file, text in texts.items():
            file.write_bytes(text.encode(encoding))
        samples.append(list(open_source(f"{form}:{tmp_path}@train")))
    if form != "refcoco":  # its words are in the pickle
        assert any("那个" in sample.caption for sample in samples[0])
    assert all(others == samples[0] for others in samples[1:])


@pytest.mark.parametrize("text", ["杯子", "红色的杯子，在桌子上。", "a 杯 of té"])
def test_chinese_is_recognized(text: str) -> None:
    assert decode(text.encode("gb18030"), "the file x") == text


@pytest.mark.parametrize("text", ["Café", "naïve Tür", "la tête à l’envers"])
def test_another_encoding_is_not_guessed(text: str) -> None:
    data = f'{{"label": "{text}"}}'.encode("cp1252")
    with pytest.raises(DataError) as caught:
        parse_json(data, "the file x")
    assert (caught.value.asked, caught.value.repair) == (
        "The file x is not in UTF-8.",
        "Save it as UTF-8.",
    )
    assert parse_json(data, "the file x", "cp1252") == {"label": text}


def test_a_character_cut_off_is_no_other_encoding() -> None:
    with pytest.raises(DataError, match="cut off"):
        parse_json('{"label": "杯"}'.encode()[:13], "the file x")
