"""The processes of a command: how one learns that it is one of several, and what they share."""

from __future__ import annotations

import pytest

from flmm_core.cli import main
from flmm_core.errors import UsageError
from flmm_core.world import World, _adopt_slurm, check_device, part

Patch = pytest.MonkeyPatch
LAUNCHERS = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture(autouse=True)
def alone(monkeypatch: Patch) -> None:
    for name in LAUNCHERS:
        monkeypatch.setenv(name, "")  # so that it is undone
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("items", "count"), [(10, 3), (2, 3), (0, 2), (7, 1), (8, 4)])
def test_parts_are_all_items_in_order(items: int, count: int) -> None:
    parts = [part(range(items), number, count) for number in range(count)]
    assert [item for each in parts for item in each] == list(range(items))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    assert len(parts[0]) == max(map(len, parts))  # the main process is never the idle one


def test_one_process_agrees_with_itself() -> None:
    world = World.join()
    assert (world.size, world.is_main, world.title("cpu")) == (1, True, "")
    assert (world.gather(3), world.tell(4), world.any(True)) == ([3], 4, True)
    with pytest.raises(ZeroDivisionError), world.agreed():
        raise ZeroDivisionError
    world.close()


def test_accelerate_launch_of_one_process_is_told(monkeypatch: Patch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert World.join().title("cpu").startswith("1 process ")


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("gpu7", "gpu7"),
        ("gpu[03-05,9],cpu1", "gpu03"),
        ("a,b[1-2]", "a"),
        ("rack[1-2]n[03-08,11]", "rack1n03"),
    ],
)
def test_srun_starts_a_world(nodes: str, first: str) -> None:
    environment = {
        "SLURM_STEP_NUM_TASKS": "8", "SLURM_PROCID": "5", "SLURM_LOCALID": "1",
        "SLURM_STEP_TASKS_PER_NODE": "4(x2)", "SLURM_STEP_NODELIST": nodes,
        "SLURM_JOB_ID": "123456", "SLURM_NTASKS": "8",
    }  # fmt: skip
    found = dict(environment)
    _adopt_slurm(found)
    assert {name: found[name] for name in LAUNCHERS} == {
        "RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4",
        "MASTER_ADDR": first, "MASTER_PORT": "23456",
    }  # fmt: skip
    for more in ({"SLURM_STEP_NUM_TASKS": "1"}, {"RANK": "0", "WORLD_SIZE": "2"}):
        kept = environment | more  # a single task, or torchrun in it
        _adopt_slurm(kept)
        assert kept == environment | more
    bound = environment | {"SLURM_GPUS_PER_TASK": "1"}  # the only GPU that it sees is number 0
    _adopt_slurm(bound)
    assert (bound["LOCAL_RANK"], bound["LOCAL_WORLD_SIZE"]) == ("0", "1")


def test_a_batch_script_is_one_process() -> None:
    script = {"SLURM_NTASKS": "8", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}
    found = dict(script)
    _adopt_slurm(found)
    assert found == script


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"WORLD_SIZE": "2"}, "WORLD_SIZE is 2, but there is no RANK and no MASTER_ADDR."),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number."),
    ],
)
@pytest.mark.parametrize("command", [["train", "--backbone", "qwen"], ["eval", "run"]])
def test_half_an_environment_is_no_launcher(
    variables: dict[str, str],
    message: str,
    command: list[str],
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert main(command) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"flmm: {message}"


def test_each_process_needs_a_device(monkeypatch: Patch) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    check_device("auto", 2)
    check_device("cpu", 8)
    for device, processes, found in (("auto", 3, "has 2"), ("cuda", 4, "has 2")):
        with pytest.raises(UsageError, match=found):
            check_device(device, processes)
    with pytest.raises(UsageError, match="cannot share the device 'cuda:1'"):
        check_device("cuda:1", 2)


def test_processes_without_gpus_get_none(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--backbone", "qwen", "--processes", "2", "--device", "cuda"]
    assert main(arguments) == 2
    assert "The device 'cuda' cannot be used." in capsys.readouterr().err
