from __future__ import annotations

import contextlib
import os
import pickle
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_core.data.formats.shared.plain_pickle import read_plain_pickle
from flmm_core.errors import DataError

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=50)
@given(plain, st.integers(0, 5))
def test_plain_containers_come_back(
    tmp_path_factory: pytest.TempPathFactory, value: object, protocol: int
) -> None:
    path = tmp_path_factory.mktemp("pickles") / "refs.p"
    path.write_bytes(pickle.dumps(value, protocol))
    assert read_plain_pickle(path) == value


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (b"S'caf\\xc3\\xa9'\n.", "café"),  # Python 2, protocol 0, UTF-8
        (b"U\x04caf\xe9.", "café"),  # Python 2, protocol 1, Latin-1
        (b"\x80\x02U\x05caf\xc3\xa9q\x00.", "café"),  # Python 2, protocol 2, UTF-8
        (b"Vcaf\\u00e9\n.", "café"),  # a unicode string of Python 2
    ],
)
def test_strings_of_python_2(tmp_path: Path, data: bytes, text: str) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    assert read_plain_pickle(path) == text


class Bomb:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_that_would_run_a_command_is_refused(tmp_path: Path, protocol: int) -> None:
    marker, path = tmp_path / "was-run", tmp_path / "refs(unc).p"
    data = pickle.dumps([{"ref_id": 1, "split": "val"}, Bomb(marker)], protocol)
    path.write_bytes(data)
    with pytest.raises(DataError) as caught:
        read_plain_pickle(path)
    assert not marker.exists()
    assert str(caught.value) == (
        f"The file {path} is not a plain data file: it asks for the Python object "
        f"'{os.system.__module__}.system'.\n"
        "A refs file holds only lists, dicts, strings and numbers. Nothing in it was run.\n"
        "Do not use this file; get a new copy from a publisher you trust."
    )
    pickle.loads(data)
    assert marker.exists(), "the pickle would have done nothing, so the test has shown nothing"


@pytest.mark.parametrize(
    ("data", "asked"),
    [
        (b"(S'1+1'\ni__builtin__\neval\n.", "__builtin__.eval"),  # INST
        (b"c__builtin__\neval\n(S'1+1'\ntR.", "__builtin__.eval"),  # GLOBAL, REDUCE
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93.", "builtins.eval"),  # STACK_GLOBAL
        (b"ccollections\nOrderedDict\n)R.", "collections.OrderedDict"),  # harmless, but code
    ],
)
def test_every_door_to_code_is_shut(tmp_path: Path, data: bytes, asked: str) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    with pytest.raises(DataError, match=f"asks for the Python object '{asked}'"):
        read_plain_pickle(path)


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_a_pickle_cut_anywhere_is_refused(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "refs.p"
    whole = pickle.dumps([{"ref_id": 1, "sentences": ["a", "b"]}], protocol)
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(DataError, match="is not a whole pickle") as caught:
            read_plain_pickle(path)
        assert f"It has {length} bytes; reading them ended with: " in caught.value.found


@settings(max_examples=300)
@given(st.binary(max_size=60))
def test_noise_never_raises_anything_else(
    tmp_path_factory: pytest.TempPathFactory, noise: bytes
) -> None:
    path = tmp_path_factory.mktemp("noise") / "refs.p"
    path.write_bytes(noise)
    with contextlib.suppress(DataError):
        read_plain_pickle(path)


@pytest.mark.parametrize(
    "data",
    [
        b"Ntr\xff\xff\xff\x7f.",  # memo number 2,147,483,647
        b"]p99999999999\n.",
        b"\x96\x00\x00\x00\x00\x10\x00\x00\x00.",  # a bytearray of 64 GiB
        b"X\xff\xff\xff\x7f.",  # a string of 2 GiB
    ],
)
def test_few_bytes_cannot_reserve_much_memory(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        with contextlib.suppress(DataError):
            read_plain_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


def test_outside_references_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    path.write_bytes(b"Psomewhere\n.")
    with pytest.raises(DataError, match="refers to an object outside the file"):
        read_plain_pickle(path)


def test_a_file_of_insane_size_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "refs.p"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(DataError) as caught:
        read_plain_pickle(path)
    assert str(caught.value) == (
        f"The file {path} is too large to be a refs file.\n"
        "It has 268,435,457 bytes; the limit is 268,435,456.\n"
        "Get a new copy from a publisher you trust."
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        read_plain_pickle(tmp_path / "refs.p")
    assert str(caught.value) == (
        f"The file {tmp_path / 'refs.p'} cannot be read.\nNo such file or directory."
    )
