"""A damaged optimizer state is an error: nothing is loaded, no code is run."""

from __future__ import annotations

import os
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flmm_core.errors import WeightsError
from flmm_core.training.optimizer_file import ABOUT, STATE, read_optimizer, write_optimizer


def trained(learning_rate: float = 0.1, width: int = 3) -> torch.optim.AdamW:
    """An optimizer after two steps; one weight has never had a gradient."""
    torch.manual_seed(0)
    layer, unused = nn.Linear(4, width), nn.Parameter(torch.zeros(2))
    optimizer = torch.optim.AdamW(
        [
            {"params": layer.parameters(), "highest": learning_rate},
            {"params": [unused], "highest": 1.0},
        ],
        lr=learning_rate,
    )
    for _ in range(2):
        optimizer.zero_grad()
        layer(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()
    return optimizer


def values(optimizer: torch.optim.Optimizer) -> list[float]:
    states = optimizer.state_dict()["state"].values()
    return [n for state in states for value in state.values() for n in value.flatten().tolist()]


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    write_optimizer(tmp_path, 2, trained())
    return tmp_path


def refused(checkpoint: Path, optimizer: torch.optim.Optimizer) -> str:
    before = values(optimizer)
    with pytest.raises(WeightsError) as error:
        read_optimizer(checkpoint, optimizer)
    assert values(optimizer) == before
    first = str(error.value).splitlines()[0]
    assert first == f"The optimizer state in '{checkpoint / STATE}' cannot be used."
    return str(error.value)


def test_a_state_goes_on_with_new_rates(checkpoint: Path) -> None:
    whole, fresh = trained(), trained(learning_rate=0.5)
    fresh.state.clear()
    state = read_optimizer(checkpoint, fresh)
    assert state.step == 2
    assert values(fresh) == []
    state.load_into(fresh)
    assert values(fresh) == values(whole)
    assert [group["highest"] for group in fresh.param_groups] == [0.5, 1.0]
    assert fresh.param_groups[0]["lr"] == 0.5


def test_every_flipped_bit_and_every_cut_is_noticed(checkpoint: Path) -> None:
    content, optimizer = (checkpoint / STATE).read_bytes(), trained()
    chance = random.Random(1)
    for _ in range(200):
        damaged = bytearray(content)
        damaged[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        (checkpoint / STATE).write_bytes(damaged)
        refused(checkpoint, optimizer)
    for length in (0, 1, 100, len(content) // 2, len(content) - 1):
        (checkpoint / STATE).write_bytes(content[:length])
        refused(checkpoint, optimizer)
    (checkpoint / STATE).unlink()
    assert "FileNotFoundError" in refused(checkpoint, optimizer)


def test_without_a_digest_damage_is_an_error_or_does_not_matter(checkpoint: Path) -> None:
    """Checkpoints of earlier versions have none."""
    (checkpoint / ABOUT).unlink()
    content, optimizer = (checkpoint / STATE).read_bytes(), trained()
    read_optimizer(checkpoint, optimizer)
    chance = random.Random(2)
    for _ in range(100):
        damaged = bytearray(content)
        for _ in range(chance.choice((1, 1, 8, 64))):
            damaged[chance.randrange(len(content))] = chance.randrange(256)
        (checkpoint / STATE).write_bytes(damaged)
        try:
            state = read_optimizer(checkpoint, optimizer)
        except WeightsError:
            continue
        state.load_into(optimizer)
        optimizer.step()


class Runs:
    """Unpickled, it creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


def save_as_pickle(what: Any, path: Path) -> None:
    path.write_bytes(pickle.dumps(what, protocol=2))


@pytest.mark.parametrize("write", [torch.save, save_as_pickle])
def test_code_is_not_run(checkpoint: Path, write: Callable[[Any, Path], object]) -> None:
    (checkpoint / ABOUT).unlink()
    write({"step": 2, "optimizer": Runs(checkpoint / "ran")}, checkpoint / STATE)
    refused(checkpoint, trained())
    assert not (checkpoint / "ran").exists()


def spoiled(change: Callable[[Any], object]) -> Any:
    whole = {"step": 2, "optimizer": trained().state_dict()}
    change(whole)
    return whole


@pytest.mark.parametrize(
    ("change", "found"),
    [
        (lambda w: w.update(step=-1), "the step is -1"),
        (lambda w: w.update(step=True), "the step is True"),
        (lambda w: w.pop("step"), "KeyError"),
        (lambda w: w.update(optimizer=None), "TypeError"),
        (lambda w: w["optimizer"].update(state=[]), "its states are not those of 3 parameters"),
        (lambda w: w["optimizer"]["state"].update({7: {}}), "not those of 3 parameters"),
        (lambda w: w["optimizer"]["state"].update({0: {}}), "parameter 0 has []"),
        (lambda w: w["optimizer"]["state"].update({0: None}), "TypeError"),
        (lambda w: w["optimizer"]["state"][0].update(exp_avg=0.5), "exp_avg of parameter 0 is not"),
        (
            lambda w: w["optimizer"]["state"][0].update(exp_avg=torch.zeros(3, 5)),
            "exp_avg of parameter 0 is not a tensor of shape (3, 4)",
        ),
        (
            lambda w: w["optimizer"]["state"][1]["exp_avg_sq"].fill_(torch.nan),
            "exp_avg_sq of parameter 1 has values that are not finite numbers",
        ),
        (
            lambda w: w["optimizer"]["state"][1].update(exp_avg=torch.zeros(3, dtype=torch.int8)),
            "exp_avg of parameter 1 has values that are not finite numbers",
        ),
        (lambda w: w["optimizer"]["state"][0]["exp_avg_sq"].fill_(-1), "is negative"),
    ],
)  # fmt: skip
def test_a_state_of_something_else_is_refused(
    change: Callable[[Any], object], found: str, checkpoint: Path
) -> None:
    (checkpoint / ABOUT).unlink()
    torch.save(spoiled(change), checkpoint / STATE)
    assert found in refused(checkpoint, trained())


def test_a_state_of_another_head_is_refused(checkpoint: Path) -> None:
    assert "of shape (5, 4)" in refused(checkpoint, trained(width=5))
