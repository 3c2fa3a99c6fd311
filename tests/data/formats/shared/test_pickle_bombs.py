"""Pickles of few bytes whose contents never end."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from flmm_core.data.formats.shared.plain_pickle import read_plain_pickle
from flmm_core.data.tools.check import check_source
from flmm_core.errors import DataError
from tests.data.conftest import Distributed

TIMES = 60


def twice(kind: str) -> bytes:
    """A container of twice a container of twice a container ..., by numbers in the memo."""
    code = b"\x80\x02" + (b"]q\x00" if kind == "list" else b")q\x00")
    for number in range(TIMES):
        inner = b"h" + bytes([number])
        both = b"(" + 2 * inner + b"l" if kind == "list" else 2 * inner + b"\x86"
        code += both + b"q" + bytes([number + 1])
    return code + b"."


BOMBS = {
    "lists": twice("list"),
    "tuples": twice("tuple"),
    "a key": twice("tuple")[:-1] + b"}h" + bytes([TIMES]) + b"K\x01s.",
    "a set": twice("tuple")[:-1] + b"\x8f(h" + bytes([TIMES]) + b"\x90.",
    "doubled": b"\x80\x02)" + TIMES * b"2\x86" + b".",
    "itself": b"\x80\x02]q\x00h\x00a.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_contents_without_end_are_refused(bomb: str, tmp_path: Path) -> None:
    path = tmp_path / "refs(unc).p"
    path.write_bytes(BOMBS[bomb])
    with pytest.raises(DataError) as error:
        read_plain_pickle(path)
    assert error.value.asked == f"The file {path} is not a whole pickle."


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_check_of_such_a_file_ends(bomb: str, distributed: Distributed) -> None:
    distributed.save()
    distributed.refs_path.write_bytes(BOMBS[bomb])
    report = check_source(f"refcoco:{distributed.root}@val")
    assert len(report.faults) == 1


def test_nested_deeper_than_any_recursion(distributed: Distributed) -> None:
    distributed.save()
    code = b"\x80\x02]" + b"]" * 100_000 + b"a" * 100_000 + b"."
    distributed.refs_path.write_bytes(code)
    (fault,) = check_source(f"refcoco:{distributed.root}@val").faults[:1]
    assert len(str(fault)) < 1000


def test_a_container_may_stand_in_several_places(tmp_path: Path) -> None:
    sentences = [{"sent": "left cup", "tokens": ["left", "cup"]}]
    refs = [{"ref_id": number, "sentences": sentences} for number in range(1000)]
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "refs(unc).p").write_bytes(pickle.dumps(refs, protocol))
        assert read_plain_pickle(tmp_path / "refs(unc).p") == refs
