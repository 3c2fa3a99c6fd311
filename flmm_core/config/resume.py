"""What a resumed run may change: everything else must be as the run began."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from flmm_core.config.listing import option_name
from flmm_core.config.resolve import flat, load_config
from flmm_core.config.settings import RunConfig
from flmm_core.config.yaml_files import read_yaml
from flmm_core.errors import UsageError
from flmm_core.spec import BackboneSpec

CONFIG = "config.yaml"
"""The resolved settings in a run folder."""

NOT_OF_A_RUN = frozenset({"output", "resume", "force", "strict", "check"})
"""Settings of a command; the folder of a run may have been moved."""
MAY_CHANGE = NOT_OF_A_RUN | frozenset(
    {
        "device", "device_map", "attention", "workers", "max_skipped", "accumulate",
        "learning_rate", "refiner_learning_rate", "weight_decay", "clip_norm",
        "log_every", "log_with", "save_every", "keep", "patience", "max_hours",
        "eval_data", "pictures",
    }
)  # fmt: skip
"""Settings that a resumed run takes from its new command; any other may not differ."""

EARLIER = {
    "caption_mode": "pieces",
    "head.presence": False,
    "head.keywords": False,
    "ema": 0.0,
    "cache_memory": 0.0,
    "refine_at_most": None,
}
"""What a run meant by settings that its `config.yaml` does not have, from before they existed."""


def load_resumed(
    path: Path | None,
    overrides: Mapping[str, Any],
    find_backbone: Callable[[str], BackboneSpec] | None = None,
) -> tuple[RunConfig, BackboneSpec]:
    """The settings of a run that goes on: what is not given is as the run began.

    Args:
        path: A YAML file instead of the run's own `config.yaml`.
        overrides: As for `load_config`; without a file, "output" names the run.
        find_backbone: As for `load_config`.

    Raises:
        UsageError: The run is not named or does not exist, or a setting may not change.
        ConfigError: As for `load_config`.
    """
    if path is None and "output" not in overrides:
        raise UsageError(
            "--resume does not say which run.",
            repair="Give the run folder with --output, or a --config that names it.",
        )
    own = Path(overrides["output"]).expanduser() / CONFIG if path is None else None
    if own is not None and own.is_file():
        recorded = load_config(own, {}, find_backbone)[0]
        asked = {"backbone": overrides.get("backbone", recorded.backbone)}
        # Otherwise the recorded options of one backbone would be wrong for the other.
        check_changes({"backbone": recorded.backbone}, asked, own.parent)
        path, overrides = own, _of_earlier_version(own) | dict(overrides)
    elif own is not None and "backbone" not in overrides:
        raise nothing_to_resume(own.parent)
    config, spec = load_config(path, overrides, find_backbone)
    if (config.output / CONFIG).is_file():
        changed_settings(config.output, config)
    return config, spec


def _of_earlier_version(path: Path) -> dict[str, Any]:
    """The settings that a run's own file does not have, as they were when it began."""
    recorded = dict(flat(read_yaml(path)[0]))
    return {key: value for key, value in EARLIER.items() if key not in recorded}


def nothing_to_resume(folder: Path) -> UsageError:
    """The error if a folder has no run."""
    return UsageError(
        f"There is nothing to resume in '{folder}'.",
        found=f"It has no {CONFIG}." if folder.is_dir() else "There is no such folder.",
        repair="Omit --resume to begin a run.",
    )


def changed_settings(folder: Path, config: RunConfig) -> dict[str, tuple[Any, Any]]:
    """The settings that differ from those in a run folder: (before, now) by dotted key.

    Raises:
        UsageError: One of them may not change.
        ConfigError: The recorded settings are broken.
    """
    path = folder / CONFIG
    recorded = _values(load_config(path, _of_earlier_version(path))[0])
    given = _values(config)
    check_changes(recorded, given, folder)
    return {
        key: (recorded.get(key), value)
        for key, value in given.items()
        if recorded.get(key) != value and key not in NOT_OF_A_RUN
    }


def check_changes(recorded: Mapping[str, Any], given: Mapping[str, Any], folder: Path) -> None:
    """UsageError if settings differ that may not change, by dotted key."""
    different = [
        f"  {option_name(key)}: {_shown(recorded.get(key))} in the run, "
        f"{_shown(given.get(key))} now"
        for key in dict.fromkeys([*recorded, *given])
        if key not in MAY_CHANGE
        and recorded.get(key) != given.get(key)
        and not (key == "model" and given.get("force"))
    ]
    if different:
        allowed = sorted(option_name(key) for key in MAY_CHANGE - NOT_OF_A_RUN)
        raise UsageError(
            f"The run in '{folder}' cannot be resumed with other settings.",
            found="\n".join(different),
            repair=f"`flmm train --resume --output {folder}` resumes it as it began; these may "
            f"change: {', '.join(allowed)}.\nIf a path has only moved, correct it in "
            f"'{folder / CONFIG}'. For anything else give another --output.",
        )


def _values(config: RunConfig) -> dict[str, Any]:
    """The settings by dotted key, as in `config.yaml`; of a cache, only whether there is one.

    So of features in memory, which decides whether samples are observed one by one.
    """
    values = dict(flat(config.model_dump(mode="json")))
    if config.epochs is not None:  # steps follow from them and from the data
        del values["steps"]
    values["batch_size"] = config.samples_per_step
    # It may lie elsewhere now; whether it holds the same is checked when it is opened.
    memory = "some" if config.cache_memory else "none"
    return values | {"cache": "a cache" if config.cache else None, "cache_memory": memory}


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "none" if value is None else repr(value) if isinstance(value, str) else str(value)
