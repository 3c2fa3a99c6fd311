"""The settings of a run: pydantic models <- defaults < model's defaults < YAML < command line.

YAML stops here: everything below takes plain numbers and built parts. All problems of a
configuration are collected and reported together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from flmm_core.config.yaml_files import dump_yaml, read_yaml
from flmm_core.errors import ConfigError, did_you_mean
from flmm_core.spec import DEFAULT_PROMPT, BackboneSpec

Protocol = Literal["flmm-paper", "standard"]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Names = Annotated[
    list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]


def _workers(given: Any) -> Any:
    number = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    if given != "auto" and not number:
        raise ValueError(f"must be auto or a number from 0, not {given!r}")
    return given


Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers)]


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; every field has a line of help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadConfig(Section):
    """The mask head."""

    base_channels: int = Field(64, ge=1, description="Channels of the U-Net's first stage.")
    enlarge_to: int = Field(64, ge=8, description="Maps smaller than this are enlarged to it.")
    pool: Literal["mean", "max"] = Field(
        "mean", description="How a phrase's attention is pooled over its tokens."
    )
    paper_rounding: bool = Field(
        False, description="Round as the original code does; needed to reuse its heads exactly."
    )


class SamConfig(Section):
    """What the refiner shows to SAM."""

    mask: bool = Field(True, description="Prompt SAM with the coarse mask.")
    box: bool = Field(True, description="Prompt SAM with the coarse mask's box.")
    text: bool = Field(True, description="Prompt SAM with the phrase's hidden states.")
    half: bool = Field(False, description="Encode images for SAM in bfloat16.")
    multimask: bool = Field(
        False, description="Let SAM draw three masks and keep the one nearest to the coarse mask."
    )


def _drawn(*splits: str) -> Callable[[dict[str, Any]], list[str]]:
    """Splits of the drawn scenes, for a run that is trained on such; else nothing."""

    def make(known: dict[str, Any]) -> list[str]:
        drawn = all(source.startswith("shapes@") for source in known.get("data", []))
        return [f"shapes@{split}" for split in splits] if drawn else []

    return make


class RunConfig(Section):
    """Everything that decides a training run."""

    backbone: str = Field(description="Family of vision-language models (see `flmm backbones`).")
    model: str = Field("tiny", description="Model: an alias, a hub id or a local folder.")
    options: dict[str, Any] = Field({}, description="The backbone's own setting.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number type of the frozen model's weights."
    )
    device: str = Field("auto", description="Where to compute: auto, cpu, cuda, cuda:1, mps.")
    prompt: str = Field(DEFAULT_PROMPT, description="What the model is asked before the caption.")

    data: Names = Field(
        ["shapes@train"], min_length=1, description="Train on NAME[:PATH][@SPLIT]; repeatable."
    )
    val_data: Names = Field(
        default_factory=_drawn("val"),
        description="Measure checkpoints on these, to keep the best; repeatable. By default"
        " shapes@val, if trained on drawn scenes.",
    )
    eval_data: Names = Field(
        default_factory=_drawn("test", "hard"),
        description="Measure the trained head on these; repeatable. By default shapes@test and"
        " shapes@hard, if trained on drawn scenes.",
    )
    protocol: Protocol = Field(
        "standard",
        description="Score each sentence alone (standard), or each object's first sentence and"
        " all objects of an image in one caption (flmm-paper).",
    )
    train_protocol: Protocol = Field(
        "flmm-paper",
        description="The same of the captions to train on; one caption an image costs less.",
    )

    refiner: Literal["none", "sam:tiny", "sam:vit_b", "sam:vit_l", "sam:vit_h"] = Field(
        "sam:tiny", description="What sharpens the coarse masks."
    )
    refiner_weights: UserPath | None = Field(
        None, description="SAM's own .pth file; needed for vit_b, vit_l and vit_h."
    )
    head: HeadConfig = HeadConfig()
    sam: SamConfig = SamConfig()

    output: UserPath = Field(
        default_factory=lambda known: Path(
            "runs", f"{known.get('backbone', 'run')}-{time.strftime('%Y%m%d-%H%M%S')}"
        ),
        description="Run folder; by default runs/BACKBONE-TIME.",
    )
    resume: bool = Field(False, description="Continue the run in the output folder.")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random.")
    steps: int = Field(1000, ge=1, description="Optimizer steps.")
    batch_size: int = Field(8, ge=1, description="Samples of one step.")
    bucket: bool = Field(
        False, description="Put samples of like image sizes and caption lengths together."
    )
    cache: UserPath | None = Field(
        None, description="Read features from here (flmm cache build) instead of making them."
    )
    exact: bool = Field(
        False,
        description="Run the frozen parts sample by sample, as a cache is built: the same head,"
        " bit for bit.",
    )
    workers: Workers = Field(
        "auto",
        description="Processes that read images; 0: the main one. By itself 0 if the model runs"
        " on the CPU, else by the CPUs that may be used.",
    )
    learning_rate: float = Field(1e-4, gt=0, description="Highest learning rate of AdamW.")
    refiner_learning_rate: float | None = Field(
        None, gt=0, description="The same of SAM's trained parts; by default equal."
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    clip_norm: float = Field(1.0, gt=0, description="Gradients are clipped to this norm.")
    warmup: float = Field(0.03, ge=0, le=1, description="Part of the steps that warms up.")
    log_every: int = Field(10, ge=1, description="Steps between two lines of metrics.jsonl.")
    save_every: int = Field(500, ge=1, description="Steps between two checkpoints.")
    pictures: int = Field(8, ge=0, description="Images drawn at the end, side by side.")

    def to_yaml(self) -> str:
        """The whole configuration, as `--config` reads it; but whether to resume is said anew."""
        return dump_yaml(self.model_dump(mode="json", exclude={"resume"}))


@dataclass(frozen=True)
class Setting:
    """One field of a configuration: what options, help pages and messages are made of.

    Attributes:
        key: Dotted ("head.pool").
        type: As annotated, without Optional and Annotated's extras.
        default: None where there is none, or where it is made on the spot.
        help: One line.
    """

    key: str
    type: Any
    default: Any
    help: str


def settings(model: type[BaseModel] = RunConfig, prefix: str = "") -> Iterator[Setting]:
    """Every setting of a configuration, sections unfolded, in order."""
    for name, field in model.model_fields.items():
        kind: Any = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield from settings(kind, f"{prefix}{name}.")
            continue
        if type(None) in get_args(kind):
            kind = next(arm for arm in get_args(kind) if arm is not type(None))
        if get_origin(kind) is Annotated:
            kind = get_args(kind)[0]
        default = None if field.is_required() or field.default_factory else field.default
        yield Setting(prefix + name, kind, default, field.description or "")


def load_config(
    path: Path | None,
    overrides: Mapping[str, Any],
    find_backbone: Callable[[str], BackboneSpec],
) -> tuple[RunConfig, BackboneSpec]:
    """Resolve a run's settings: defaults < the model's own < the file < the command line.

    Args:
        path: A YAML file, or None.
        overrides: By dotted key; what the command line sets.
        find_backbone: Gives a backbone by name (`Registry.get`), or raises UsageError.

    Raises:
        ConfigError: All problems at once, each with where it was written and its key.
        UsageError: The backbone is unknown.
    """
    given: dict[str, tuple[Any, str]] = {}
    if path is not None:
        content, lines = read_yaml(path)
        for key, value in _flat(content):
            line = f", line {lines[key]}" if key in lines else ""
            given[key] = value, f"{path}{line}: {key}"
    for key, value in overrides.items():
        given[key] = value, option_name(key)
    name, model = (given.get(key, (None, ""))[0] for key in ("backbone", "model"))
    spec = find_backbone(name) if isinstance(name, str) else None
    info = spec.models.get(model or "tiny") if spec and isinstance(model, str | None) else None
    for key, value in (info.defaults if info else {}).items():
        given.setdefault(key, (value, f"defaults of model '{model or 'tiny'}': {key}"))

    problems: list[str] = []
    tree = _nested({key: value for key, (value, _) in given.items()})
    config: RunConfig | None = None
    try:
        config = RunConfig.model_validate(tree)
    except ValidationError as error:
        problems += _problems(error, given, RunConfig)
    options = tree.get("options", {})
    if spec and isinstance(options, dict):
        try:
            options = spec.options.model_validate(options).model_dump(mode="json")
        except ValidationError as error:
            problems += _problems(error, given, spec.options, "options.")
    if problems or config is None or spec is None:
        count = "One problem" if len(problems) == 1 else f"{len(problems)} problems"
        raise ConfigError(
            f"{count} in the configuration.",
            found="\n".join(f"  {problem}" for problem in problems),
            repair="`flmm train --help` lists every setting.",
        )
    return config.model_copy(update={"options": options}), spec


def option_name(key: str) -> str:
    """The command-line option of a dotted key: "head.pool" is --head-pool."""
    if key.startswith("options."):
        return "--" + key.replace(".", " ", 1)
    return "--" + key.replace(".", "-").replace("_", "-")


def _flat(
    content: Mapping[str, Any], model: type[BaseModel] = RunConfig, prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; only sections and `options` are unfolded."""
    for name, value in content.items():
        field = model.model_fields.get(name)
        kind = field.annotation if field else None
        if isinstance(kind, type) and issubclass(kind, Section) and isinstance(value, dict | None):
            yield from _flat(value or {}, kind, f"{prefix}{name}.")
        elif (prefix, name) == ("", "options") and isinstance(value, dict | None):
            yield from ((f"options.{key}", inner) for key, inner in (value or {}).items())
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
    error: ValidationError,
    given: Mapping[str, tuple[Any, str]],
    model: type[BaseModel],
    prefix: str = "",
) -> Iterator[str]:
    """One line a problem: where it was written, what was found, what repairs it."""
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
            same_leaf = [known for known in keys if known.rpartition(".")[2] == key]
            hint = f"Did you mean '{same_leaf[0]}'?" if same_leaf else did_you_mean(key, keys)
            yield f"{where}: unknown setting. {hint}".rstrip()
        elif found["type"] == "value_error":
            yield f"{where}: {found['ctx']['error']}."
        elif found["type"] == "model_type":
            yield f"{where}: must hold settings of its own, not {found['input']!r}."
        else:
            yield f"{where}: {found['msg'].removeprefix('Input ')}, not {found['input']!r}."
