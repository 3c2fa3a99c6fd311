"""Resolve a run's settings: defaults < the model's defaults < YAML file < command line.

All problems of a configuration are collected and reported together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from flmm_core.config.listing import PLUGIN_OPTIONS, option_name, settings
from flmm_core.config.settings import RunConfig, Section
from flmm_core.config.shipped import find_config
from flmm_core.config.yaml_files import read_yaml
from flmm_core.errors import ConfigError, did_you_mean
from flmm_core.plugins import load_backbones, load_refiners
from flmm_core.spec import BackboneSpec, PluginSpec, RefinerSpec

Given = dict[str, tuple[Any, str]]
"""By dotted key, a value and where it was written."""

RIVALS = {"epochs": "steps", "steps": "epochs"}
"""The one that is given later counts; a file may have both, if its epochs have become steps."""

RENAMED = {"sam": "refiner_options"}
"""Settings of older versions."""


def load_config(
    path: Path | None,
    overrides: Mapping[str, Any],
    find_backbone: Callable[[str], BackboneSpec] | None = None,
    find_refiner: Callable[[str], RefinerSpec] | None = None,
) -> tuple[RunConfig, BackboneSpec]:
    """Resolve a run's settings: defaults < the model's defaults < the file < the overrides.

    Args:
        path: A YAML file, the name of a configuration that comes with flmm, or None.
        overrides: By dotted key, the settings of the command line.
        find_backbone: `Registry.get`, by default of the installed backbones.
        find_refiner: The same for refiners.

    Raises:
        ConfigError: All problems at once, each with where it was written.
        UsageError: The backbone or the refiner is unknown.
    """
    file = {} if path is None else _read(path)
    command_line = {key: (value, option_name(key)) for key, value in flat(overrides)}
    name, model = ((file | command_line).get(key, (None, ""))[0] for key in ("backbone", "model"))
    backbone = (find_backbone or load_backbones().get)(name) if isinstance(name, str) else None
    defaults = _model_defaults(backbone, model)
    everything = defaults | file | command_line
    chosen, _ = everything.get("refiner", (RunConfig.model_fields["refiner"].default, ""))
    refiner: RefinerSpec | None = None
    if isinstance(chosen, str):  # NAME or NAME:VALUE
        refiner = (find_refiner or load_refiners().get)(chosen.partition(":")[0])

    problems: list[str] = []
    given: Given = {}
    for source in (_known(defaults, refiner), file, command_line):
        for key, rival in RIVALS.items():
            if source.get(key, (None, ""))[0] is not None and rival not in source:
                given.pop(rival, None)
        given |= _for_refiner(source, refiner, chosen, problems) if refiner else source
    if command_line.get("epochs") and command_line.get("steps"):
        problems.append("--steps: contradicts --epochs; give one of them.")
    tree = _nested({key: value for key, (value, _) in given.items()})
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += _problems(error, given, RunConfig)
    specs: dict[str, PluginSpec | None] = {"options": backbone, "refiner_options": refiner}
    resolved: dict[str, Any] = {}
    for setting, spec in specs.items():
        options = tree.get(setting, {})
        if spec and isinstance(options, dict):
            try:
                resolved[setting] = spec.options.model_validate(options).model_dump(mode="json")
            except ValidationError as error:
                problems += _problems(error, given, spec.options, f"{setting}.")
    if problems or config is None or backbone is None:
        count = "One problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            f"{count} in the configuration.",
            found="\n".join(f"  {problem}" for problem in problems),
            repair="`flmm train --help` lists every setting.",
        )
    return config.model_copy(update=resolved), backbone


def _read(path: Path) -> Given:
    path = find_config(path)
    content, lines = read_yaml(path)
    places = {key: f", line {line}" for key, line in lines.items()}
    return {key: (value, f"{path}{places.get(key, '')}: {key}") for key, value in flat(content)}


def _model_defaults(backbone: BackboneSpec | None, model: Any) -> Given:
    alias = model or "tiny"
    info = backbone.models.get(alias) if backbone and isinstance(alias, str) else None
    defaults = info.defaults if info else {}
    return {key: (value, f"defaults of model '{alias}': {key}") for key, value in defaults.items()}


def _known(defaults: Given, refiner: RefinerSpec | None) -> Given:
    """A model's defaults without options that the chosen refiner does not have."""
    fields = refiner.options.model_fields if refiner else {}
    return {
        key: default
        for key, default in defaults.items()
        if not key.startswith("refiner_options.") or key.partition(".")[2] in fields
    }


def _for_refiner(source: Given, refiner: RefinerSpec, chosen: str, problems: list[str]) -> Given:
    """What a source sets for the chosen refiner, `NAME:VALUE` split into name and option.

    Options and weights that stand beside the name of another refiner are left out.
    """
    kept = dict(source)
    text, where = kept.pop("refiner", (refiner.name, ""))
    name, colon, value = str(text).partition(":")
    wanted = chosen.partition(":")[2]
    own = value or kept.get(f"refiner_options.{refiner.shorthand}", (wanted, ""))[0]
    if name != refiner.name or wanted not in ("", own):  # its weights are those of another one
        kept.pop("refiner_weights", None)
    if name != refiner.name:
        return {k: v for k, v in kept.items() if not k.startswith("refiner_options.")}
    option = f"refiner_options.{refiner.shorthand}"
    if colon and not refiner.shorthand:
        problems.append(f"{where}: refiner '{name}' takes no value, not '{text}'.")
    elif colon and kept.get(option, (value, ""))[0] != value:
        problems.append(f"{kept[option][1]}: contradicts {where} '{text}'.")
    elif colon:
        kept[option] = value, where
    return {**kept, "refiner": (name, where)}


def flat(
    content: Mapping[str, Any], model: type[BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; sections and plugin options are unfolded."""
    for name, value in content.items():
        field = model.model_fields.get(name)
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict | None):
            yield from flat(value or {}, kind, f"{prefix}{name}.")
        elif not prefix and name in PLUGIN_OPTIONS and isinstance(value, dict | None):
            yield from ((f"{name}.{key}", inner) for key, inner in (value or {}).items())
        else:
            yield f"{prefix}{name}", value


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *parents, leaf = key.split(".")
        node = tree
        for parent in parents:
            if not isinstance(node.get(parent), dict):
                node[parent] = {}
            node = node[parent]
        node[leaf] = value
    return tree


def _problems(
    error: ValidationError, given: Given, model: type[BaseModel], prefix: str = ""
) -> Iterator[str]:
    """One line per problem: where it was written, what was found, what repairs it."""
    keys = [prefix + setting.key for setting in settings(model)]
    for found in error.errors():
        if found["type"] == "default_factory_not_called":
            continue
        parts = [str(part) for part in found["loc"] if isinstance(part, str)]
        key = ".".join([*prefix.split(".")[:-1], *parts])
        where = given[key][1] if key in given else key
        if found["type"] == "missing":
            yield f"{where}: missing. Give it with {option_name(key)}."
        elif found["type"] == "extra_forbidden":
            within = (place for other, (_, place) in given.items() if other.startswith(f"{key}."))
            where = next(within, where)
            yield f"{where}: unknown setting. {_hint(key, keys)}".rstrip()
        elif found["type"] == "value_error":
            yield f"{where}: {found['ctx']['error']}."
        elif found["type"] == "model_type":
            yield f"{where}: must hold settings of its own, not {found['input']!r}."
        else:
            yield f"{where}: {found['msg'].removeprefix('Input ')}, not {found['input']!r}."


def _hint(key: str, known: list[str]) -> str:
    same_leaf = [other for other in known if other.rpartition(".")[2] == key]
    near = RENAMED.get(key) or next(iter(same_leaf), None)
    return f"Did you mean '{near}'?" if near else did_you_mean(key, known)
