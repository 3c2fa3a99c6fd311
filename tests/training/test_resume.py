"""What a resumed run may change, and where its settings come from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from flmm_core.cli import main
from flmm_core.config import RunConfig, load_config, option_name, settings
from flmm_core.config.resume import MAY_CHANGE, NOT_OF_A_RUN, changed_settings, load_resumed
from flmm_core.errors import UsageError
from flmm_core.files import write_text
from tests.values import other_value

Capture = pytest.CaptureFixture[str]
TRAINING = Path(__file__).parents[2] / "docs" / "training.md"


@pytest.fixture
def begun(tmp_path: Path) -> RunConfig:
    """The settings of a run that has begun; its folder has nothing else."""
    config, _ = load_config(None, {"backbone": "qwen", "output": tmp_path / "run"})
    write_text(config.output / "config.yaml", config.to_yaml())
    return config


def changed(begun: RunConfig, key: str, value: Any) -> RunConfig:
    given: dict[str, Any] = {"backbone": "qwen", "output": begun.output}
    if isinstance(value, dict):
        return load_config(None, given | {f"{key}.{name}": one for name, one in value.items()})[0]
    return load_config(None, given | {key: value})[0]


OTHERS = {
    "backbone": "llava_next", "refiner": "none", "head.presence": False, "dtype": "float16",
    "cache_memory": 0.0, "bucket": False,
}  # fmt: skip


@pytest.mark.parametrize("setting", settings(), ids=lambda setting: setting.key)
def test_a_setting_may_change_or_is_named(setting: Any, begun: RunConfig) -> None:
    if setting.key == "output":
        return  # it is where the run is looked for
    value = OTHERS.get(setting.key, other_value(setting))
    other = changed(begun, setting.key, value)
    if setting.key in MAY_CHANGE:
        found = changed_settings(begun.output, other)
        assert set(found) == ({setting.key} - NOT_OF_A_RUN)
        return
    with pytest.raises(UsageError) as error:
        changed_settings(begun.output, other)
    first, *lines = str(error.value).splitlines()
    assert first == f"The run in '{begun.output}' cannot be resumed with other settings."
    (line, *_) = (line for line in lines if line.startswith(f"  {option_name(setting.key)}"))
    assert line.endswith(" now")
    assert " in the run, " in line


@pytest.mark.parametrize(
    ("unknown", "key", "meant", "told"),
    [
        (["caption_mode"], "caption_mode", "pieces", "--caption-mode: 'pieces' in the run"),
        (["presence", "absent_share"], "head.presence", False, "--absent-share: 0.0 in the run"),
        (["cache_memory"], "cache_memory", 0.0, "--cache-memory: 'none' in the run, 'some' now"),
    ],
)
def test_a_run_from_before_a_setting_goes_on_as_it_began(
    begun: RunConfig, unknown: list[str], key: str, meant: object, told: str
) -> None:
    path = begun.output / "config.yaml"
    lines = path.read_text().splitlines(keepends=True)
    known = [line for line in lines if line.strip().partition(":")[0] not in unknown]
    assert len(lines) - len(known) == len(unknown)
    write_text(path, "".join(known))
    assert changed_settings(begun.output, changed(begun, key, meant)) == {}
    with pytest.raises(UsageError, match=told):
        changed_settings(begun.output, begun)
    resumed, _ = load_resumed(None, {"output": str(begun.output), "resume": True})
    assert changed_settings(begun.output, resumed) == {}


def test_the_message_has_both_values_and_says_what_may_change(begun: RunConfig) -> None:
    with pytest.raises(UsageError) as error:
        changed_settings(begun.output, changed(begun, "batch_size", 3))
    run = begun.output
    assert str(error.value) == (
        f"The run in '{run}' cannot be resumed with other settings.\n"
        "  --batch-size: 8 in the run, 3 now\n"
        f"`flmm train --resume --output {run}` resumes it as it began; these may change: "
        "--accumulate, --attention, --clip-norm, --device, --device-map, --eval-data, --keep, "
        "--learning-rate, --log-every, --log-with, --max-hours, --max-skipped, --patience, "
        "--pictures, --refiner-learning-rate, --save-every, --weight-decay, --workers.\n"
        f"If a path has only moved, correct it in '{run / 'config.yaml'}'. For anything else give "
        "another --output."
    )


def test_a_cache_may_move_but_neither_come_nor_go(begun: RunConfig) -> None:
    cached = changed(begun, "cache", "a/cache")
    with pytest.raises(UsageError, match=r"--cache: none in the run, 'a cache' now"):
        changed_settings(begun.output, cached)
    write_text(begun.output / "config.yaml", cached.to_yaml())
    changed_settings(begun.output, changed(begun, "cache", "b/cache"))
    with pytest.raises(UsageError, match=r"--cache: 'a cache' in the run, none now"):
        changed_settings(begun.output, begun)


def test_another_model_is_accepted_with_force(begun: RunConfig) -> None:
    other = begun.model_copy(update={"model": "other", "force": True})
    assert changed_settings(begun.output, other) == {"model": ("tiny", "other")}


def test_settings_that_are_not_repeated_are_as_the_run_began(
    tmp_path: Path, capsys: Capture
) -> None:
    given = {"backbone": "qwen", "output": tmp_path / "run", "steps": 77, "head.base_channels": 9}
    config, _ = load_config(None, given)
    write_text(config.output / "config.yaml", config.to_yaml())
    resume = ["train", "--resume", "--output", str(config.output), "--print-config"]
    assert main([*resume, "--learning-rate", "0.5"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["learning_rate"] == 0.5
    assert {**shown, "learning_rate": config.learning_rate} == yaml.safe_load(config.to_yaml())
    assert main([*resume, "--backbone", "llava_next"]) == 2
    assert "--backbone: 'qwen' in the run, 'llava_next' now" in capsys.readouterr().err


@pytest.mark.parametrize("options", [["--steps", "9"], ["--refiner", "none"]])
def test_a_dry_run_says_what_cannot_be_resumed(
    begun: RunConfig, capsys: Capture, options: list[str]
) -> None:
    resume = ["train", "--resume", "--output", str(begun.output), "--print-config"]
    assert main([*resume, *options]) == 2
    assert f"  {options[0]}: " in capsys.readouterr().err


def test_a_run_must_be_named_and_exist(tmp_path: Path, capsys: Capture) -> None:
    assert main(["train", "--resume"]) == 2
    assert capsys.readouterr().err == (
        "flmm: --resume does not say which run.\n"
        "Give the run folder with --output, or a --config that names it.\n"
    )
    for more in ([], ["--backbone", "qwen"]):
        assert main(["train", "--resume", "--output", str(tmp_path / "no"), *more]) == 2
        assert capsys.readouterr().err == (
            f"flmm: There is nothing to resume in '{tmp_path / 'no'}'.\n"
            "There is no such folder.\n"
            "Omit --resume to begin a run.\n"
        )
    assert not (tmp_path / "no").exists()


def test_the_documentation_lists_what_may_change() -> None:
    (line,) = (
        line for line in TRAINING.read_text().splitlines() if line.startswith("May change: ")
    )
    listed = {part.strip("`.,") for part in line.removeprefix("May change: ").split()}
    assert listed == {option_name(key) for key in MAY_CHANGE - NOT_OF_A_RUN}


def test_a_resumed_run_may_keep_more_or_fewer_features_in_memory(begun: RunConfig) -> None:
    assert begun.cache_memory > 0
    assert changed_settings(begun.output, changed(begun, "cache_memory", 0.001)) == {}
