"""A damaged head is refused: what is loaded is what was written, and nothing of it is run.

FLMM_DAMAGES=2000 pytest tests/pipeline/test_damaged_heads.py -s      # more cases, with figures
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import shutil
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from flmm_core.errors import FlmmError, WeightsError
from flmm_core.evaluation.calibration import Judgements, fit_confidence
from flmm_core.files import SEAL, sealed
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.confidence import FILE as CONFIDENCE
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import CONFIG, WEIGHTS
from tests.flows import fresh_grounder

DAMAGES = int(os.environ.get("FLMM_DAMAGES", "60"))
Damage = Callable[[random.Random, Path], None]


@pytest.fixture(scope="module")
def head(random_twin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    recipe = Recipe("qwen", str(random_twin), base_channels=4, enlarge_to=16, channels=(0, 3, 5))
    grounder = fresh_grounder(recipe)
    grounder.info = replace(grounder.info, model=grounder.backbone.identity())
    rng = np.random.default_rng(0)
    evidence, absent = rng.random(300), rng.random(300) < 0.3
    right = (rng.random(300) < evidence) & ~absent
    grounder.confidence = fit_confidence(
        Judgements(evidence.tolist(), right.tolist(), absent.tolist())
    )
    folder = tmp_path_factory.mktemp("heads") / "head"
    return grounder.save_pretrained(folder, steps=3, data=["shapes@train"])


@pytest.fixture(scope="module")
def earlier(head: Path) -> Path:
    """The same head as an earlier version wrote it: without digests, without its model."""
    folder = Path(shutil.copytree(head, head.with_name("earlier")))
    content = json.loads((folder / CONFIG).read_text())
    for key in (SEAL, "weights_sha256", "model"):
        del content[key]
    (folder / CONFIG).write_text(json.dumps({**content, "format": 2}))
    content = json.loads((folder / CONFIDENCE).read_text())
    del content[SEAL]
    (folder / CONFIDENCE).write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("base_channels", 704, "conv.weight is (4, 3, 3, 3) instead of (704, 3, 3, 3)"),
        ("base_channels", 10**6, "recipe.base_channels: Input should be less than or equal to"),
        ("base_channels", "4", "recipe.base_channels: Input should be a valid integer"),
        ("enlarge_to", 10**6, "recipe.enlarge_to: Input should be less than or equal to"),
        ("pool", "maximum", "recipe.pool: Input should be 'mean', 'max' or 'learned'"),
        ("pool_ends", 10**6, "recipe.pool_ends: Input should be less than or equal to 16"),
        ("channels", [0, 3, 99], "channels [99] of 16"),
        ("channels", [0, 3], "conv.weight is (4, 3, 3, 3) instead of (4, 2, 3, 3)"),
        ("prompt", None, "recipe.prompt: Input should be a valid string"),
        ("widths", 3, "recipe.widths: Unexpected keyword argument"),
    ],
)
def test_settings_are_checked_before_anything_is_allocated(
    earlier: Path, tmp_path: Path, key: str, value: Any, reason: str
) -> None:
    copy = Path(shutil.copytree(earlier, tmp_path / "copy"))
    content = json.loads((copy / CONFIG).read_text())
    content["recipe"][key] = value
    (copy / CONFIG).write_text(json.dumps(content))
    before = peak()
    with pytest.raises(WeightsError) as error:
        Grounder.from_pretrained(copy)
    assert reason in str(error.value)
    assert peak() - before < 50 << 10  # KiB; a U-Net of 704 channels has 3.8 GB


# --- damages of any file ----------------------------------------------------------------------


def any_file(rng: random.Random, folder: Path) -> Path:
    return folder / rng.choice((CONFIG, CONFIDENCE, WEIGHTS, WEIGHTS))


def flipped_bits(rng: random.Random, folder: Path) -> None:
    path = any_file(rng, folder)
    data = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 1, 1, 20))):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def cut_off(rng: random.Random, folder: Path) -> None:
    path = any_file(rng, folder)
    data = path.read_bytes()
    path.write_bytes(data[: rng.choice((0, 1, len(data) - 1, rng.randrange(len(data))))])


def zeroed(rng: random.Random, folder: Path) -> None:
    path = any_file(rng, folder)
    data = bytearray(path.read_bytes())
    start = rng.randrange(len(data))
    end = min(len(data), start + rng.choice((1, 64, 4096, len(data))))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)


class Payload:
    """Writes a file where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self.marker,)


def replaced(rng: random.Random, folder: Path) -> None:
    path = any_file(rng, folder)
    data = path.read_bytes()
    path.write_bytes(
        rng.choice((
            pickle.dumps(Payload(folder / "was-run")),
            data[::-1], b"\xff\xfe" + data, b"\xef\xbb\xbf" + data, data + data, data + b"\0",
            b"[" * 100_000, b'{"a":' * 100_000, b"null", b"[]", b"{}", b"0" * 5000, b"NaN",
            b"\x00" * len(data), b"\x80" * 1000,
        ))
    )  # fmt: skip


# --- the header of the weights ----------------------------------------------------------------


def header(rng: random.Random, folder: Path) -> None:
    """Relabel dtypes, swap tensors, change shapes, names, offsets, or the header's length."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    tensors: dict[str, Any] = json.loads(data[8 : 8 + size])
    names = [name for name in tensors if name != "__metadata__"]
    one = rng.choice(names)
    kind = rng.randrange(6)
    if kind == 0:
        others = ("I32", "U32", "F16", "BF16", "F64", "BOOL", "F8_E4M3", "C64", "X9")
        tensors[one]["dtype"] = rng.choice(others)
    elif kind == 1:
        shape = tensors[one]["shape"]
        same = [name for name in names if name != one and tensors[name]["shape"] == shape]
        two = rng.choice(same or names)
        swapped = tensors[one]["data_offsets"], tensors[two]["data_offsets"]
        tensors[two]["data_offsets"], tensors[one]["data_offsets"] = swapped
    elif kind == 2:
        sides = (0, -1, 1 << 31, 1 << 62, 7, None, "4", [1])
        tensors[one]["shape"] = [rng.choice(sides) for _ in range(rng.randrange(5))]
    elif kind == 3:
        tensors[rng.choice(("x", "", "__metadata__", f"{one}x"))] = tensors.pop(one)
    elif kind == 4:
        tensors[one]["data_offsets"] = [rng.choice((0, 5, 1 << 40)), rng.choice((0, 9, 1 << 62))]
    text = json.dumps(tensors).encode()
    length = len(text) if kind < 5 else rng.choice((0, 1, size + 1, 1 << 20, 1 << 40, 1 << 63))
    path.write_bytes(struct.pack("<Q", length) + text + data[8 + size :])


# --- JSON -------------------------------------------------------------------------------------

DEEP: Any = []
for _ in range(150):
    DEEP = [DEEP]

VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 1.5, 10**9, 2**63, 10**400, 1e308, "", "x", "no/such-model", "\ud800",
    "maximum", "x" * 100_000, [], [0] * 100_000, [[]], {}, {"x": 1}, DEEP, {"a": DEEP},
)  # fmt: skip


def places(content: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    keys = content if isinstance(content, dict) else range(len(content))
    for key in keys:
        yield (*path, key)
        if isinstance(content[key], dict | list):
            yield from places(content[key], (*path, key))


def edited(rng: random.Random, folder: Path) -> dict[str, Any]:
    """Delete a key or give it another value; returns the content that was written."""
    path = folder / rng.choice((CONFIG, CONFIG, CONFIDENCE))
    content: Any = json.loads(path.read_text())
    every = list(places(content))
    *parents, key = rng.choice([place for place in every if len(place) < 3] or every)
    inner = content
    for parent in parents:
        inner = inner[parent]
    if rng.random() < 0.2:
        del inner[key]
    else:
        inner[key] = rng.choice(VALUES)
    path.write_text(json.dumps(content))
    return {path.name: content}


def edited_json(rng: random.Random, folder: Path) -> None:
    edited(rng, folder)


def edited_and_sealed(rng: random.Random, folder: Path) -> None:
    ((name, content),) = edited(rng, folder).items()
    (folder / name).write_text(json.dumps(sealed(content)))


# --- the tests --------------------------------------------------------------------------------


def peak() -> int:
    """The most memory that this process ever had, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def loads(
    head: Path, folder: Path, damages: tuple[Damage, ...], count: int, seed: int
) -> Iterator[tuple[str, Grounder | None]]:
    """Damage and load copies of a head: per case the damage, and what was loaded, if anything.

    Anything but an `FlmmError` ends the test.
    """
    Grounder.from_pretrained(head)
    most = 1.5 * peak()
    for number in range(count):
        rng = random.Random(f"{seed} {number}")
        damage = damages[number % len(damages)]
        copy = Path(shutil.copytree(head, folder / "copy"))
        damage(rng, copy)
        name = f"{damage.__name__}, case {number}"
        grounder, told = None, ""
        try:
            grounder = Grounder.from_pretrained(copy)
        except FlmmError as error:
            told = str(error)
        except BaseException as error:
            error.add_note(f"{name}: not an error that a user can fix")
            raise
        assert len(told) < 5000, f"{name}: a message of {len(told)} characters"
        assert grounder or told.splitlines()[0].endswith((".", "?")), told
        assert not (copy / "was-run").exists(), name
        assert peak() <= most, f"{name}: {peak()} KiB, a good load needs {most / 1.5:.0f}"
        shutil.rmtree(copy)
        yield damage.__name__, grounder


def same(one: Grounder, other: Grounder) -> bool:
    state, wanted = one.head.state_dict(), other.head.state_dict()
    return (
        (one.info, one.confidence) == (other.info, other.confidence)
        and state.keys() == wanted.keys()
        and all(torch.equal(state[name], value) for name, value in wanted.items())
        and all(state[name].dtype == value.dtype for name, value in wanted.items())
    )


def test_nothing_but_what_was_written_is_loaded(head: Path, tmp_path: Path) -> None:
    damages = flipped_bits, cut_off, zeroed, replaced, header, edited_json
    original, good = Grounder.from_pretrained(head), peak()
    counts: Counter[str] = Counter()
    for name, grounder in loads(head, tmp_path, damages, DAMAGES, seed=1):
        assert grounder is None or same(grounder, original), name
        counts[f"{name}: {'refused' if grounder is None else 'loaded, equal'}"] += 1
    peaks = f"peak {peak() / 1024:.0f} MiB, of a good load {good / 1024:.0f}"
    print(f"\n{DAMAGES} damaged heads, {peaks}:", dict(sorted(counts.items())))
    assert sum(counts[f"{damage.__name__}: refused"] for damage in damages) > 0.8 * DAMAGES


def test_a_head_without_digests_never_ends_in_a_traceback(earlier: Path, tmp_path: Path) -> None:
    damages = flipped_bits, cut_off, zeroed, replaced, header, edited_json
    for name, grounder in loads(earlier, tmp_path, damages, DAMAGES // 3, seed=2):
        if grounder is not None:
            state = grounder.head.state_dict().values()
            assert all(value.isfinite().all() for value in state), name


def test_wrong_types_and_ranges_are_refused_before_anything_is_built(
    head: Path, tmp_path: Path
) -> None:
    for _ in loads(head, tmp_path, (edited_and_sealed,), DAMAGES // 3, seed=3):
        pass
