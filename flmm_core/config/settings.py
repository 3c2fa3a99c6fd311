"""The settings of a run as pydantic models."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo

from flmm_core.config.skip_limit import MAX_SKIPPED, SkipLimit
from flmm_core.config.yaml_files import dump_yaml
from flmm_core.segment import CaptionMode
from flmm_core.spec import DEFAULT_PROMPT, Attention, DeviceMap, Quantize

BATCH_SIZE = 8
TRACKERS = ("tensorboard", "wandb", "trackio", "mlflow")
"""What `--log-with` sends figures to; each is the name of its package."""

STEPS = 1000
"""Of a run for which neither steps nor epochs are given."""

ProtocolName = Literal["flmm-paper", "standard"]
UserPath = Annotated[Path, AfterValidator(Path.expanduser)]
Names = Annotated[
    list[str], BeforeValidator(lambda given: [given] if isinstance(given, str) else given)
]


def _rooted(given: list[str], info: ValidationInfo) -> list[str]:
    """Sources whose relative paths start from `data_root`."""
    root = info.data.get("data_root")
    if root is None:
        return given
    parts = ((text, *text.partition(":")) for text in given)
    return [
        f"{name}:{_joined(root.absolute(), place)}" if colon else text
        for text, name, colon, place in parts
    ]


def _joined(root: Path, place: str) -> str:
    """A path with what follows it, below a folder: "." is the folder itself."""
    path, end = re.fullmatch(r"(.*?)([@,].*)?", place, re.DOTALL).groups()  # type: ignore[union-attr]
    return f"{root / Path(path).expanduser()}{end or ''}"


Sources = Annotated[Names, AfterValidator(_rooted)]

BaseChannels = Annotated[int, Field(ge=1, le=4096)]
EnlargeTo = Annotated[int, Field(ge=8, le=4096)]
PoolName = Literal["mean", "max", "learned"]
PoolEnds = Annotated[int, Field(ge=1, le=16)]


def _workers(given: Any) -> Any:
    number = isinstance(given, int) and not isinstance(given, bool) and given >= 0
    if given != "auto" and not number:
        raise ValueError(f"must be auto or an integer >= 0, not {given!r}")
    return given


def _batch_size(given: Any) -> Any:
    number = isinstance(given, int) and not isinstance(given, bool) and given >= 1
    if given != "auto" and not number:
        raise ValueError(f"must be auto or an integer >= 1, not {given!r}")
    return given


def _trackers(given: Any) -> Any:
    texts = given if isinstance(given, list) else [given]
    names = [name.strip() for text in texts for name in str(text).split(",") if name.strip()]
    for name in names:
        if name not in TRACKERS:
            raise ValueError(f"{name!r} is none of {', '.join(TRACKERS)}")
    return list(dict.fromkeys(names))


BatchSize = Annotated[int | Literal["auto"], BeforeValidator(_batch_size)]
Workers = Annotated[int | Literal["auto"], BeforeValidator(_workers)]
Trackers = Annotated[list[str], BeforeValidator(_trackers)]
MaxSkipped = Annotated[str, BeforeValidator(lambda given: SkipLimit.parse(given).text)]


def _split(given: Any) -> Any:
    """Names separated by commas, or a list of such."""
    texts = [given] if isinstance(given, str) else given
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        return given
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _at_home(given: str | None) -> str | None:
    return given and os.path.expanduser(given)  # noqa: PTH111 -- it may be a hub id


Parts = Annotated[list[str], BeforeValidator(_split)]


def _parts(given: list[str] | None, info: ValidationInfo) -> list[str] | None:
    refiner = str(info.data.get("refiner", "none"))
    known = ["head", "presence", "keywords", "text", *([] if refiner == "none" else [refiner])]
    wrong = [name for name in given or () if name not in known]
    if wrong or given == []:
        named = f"'{wrong[0]}'" if wrong else "nothing"
        raise ValueError(f"{named} is no part of the head; its parts: {', '.join(known)}")
    return given


def _steps(given: int, info: ValidationInfo) -> int:
    if not given and not info.data.get("epochs"):  # else they are known with the data
        raise ValueError("should be greater than or equal to 1, not 0")
    return given


def _patience(given: int | None, info: ValidationInfo) -> int | None:
    if given and not info.data.get("val_data"):
        raise ValueError(f"{given} validations need data: give --val-data")
    return given


class Section(BaseModel):
    """A group of settings. Unknown keys are errors; every field has a line of help."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class HeadConfig(Section):
    """The mask head."""

    base_channels: BaseChannels = Field(64, description="Channels of the U-Net's first stage.")
    enlarge_to: EnlargeTo = Field(
        64, description="Upsample smaller attention maps to this longest side, in cells."
    )
    pool: PoolName = Field(
        "mean",
        description="How attention is pooled over the tokens of a phrase: the mean as in the paper,"
        " the maximum, or the mean with learned weights for the last tokens.",
    )
    pool_ends: PoolEnds = Field(
        1, description="How many last tokens of a phrase --head-pool learned can weigh apart."
    )
    paper_rounding: bool = Field(
        False,
        description="Round as the original F-LMM code does; needed to reproduce its heads exactly.",
    )
    presence: bool = Field(
        default_factory=lambda known: not known.get("paper_rounding"),
        description="Learn to tell whether a phrase names anything in the image. Default: on,"
        " unless --head-paper-rounding.",
    )
    keywords: bool = Field(
        False,
        description="Learn from narrations which words of a text to ground (--phrases keywords).",
    )


def _drawn(*splits: str) -> Callable[[dict[str, Any]], list[str]]:
    """These splits of the drawn scenes if the run trains on drawn scenes only, else none."""

    def make(known: dict[str, Any]) -> list[str]:
        drawn = all(source.startswith("shapes@") for source in known.get("data", []))
        return [f"shapes@{split}" for split in splits] if drawn else []

    return make


class RunConfig(Section):
    """Everything that decides a training run."""

    backbone: str = Field(description="Family of vision-language models (see `flmm backbones`).")
    model: str = Field("tiny", description="Model: an alias, a hub id or a local folder.")
    revision: str = Field("main", description="Branch, tag or commit of a model on the hub.")
    adapter: str = Field(
        "none",
        description="Adapter (LoRA) to apply to the model: a folder, or a hub id (NAME@REVISION).",
    )
    quantize: Quantize = Field(
        "none", description="Load the layers of the language model in 8 or 4 bits (bitsandbytes)."
    )
    options: dict[str, Any] = Field(
        {}, description="Option of the backbone (see `flmm backbones show`); repeatable."
    )
    precision: Literal["float32", "bf16"] = Field(
        "float32",
        description="bf16: train the head with bfloat16 autocast, and load the frozen model in"
        " bfloat16 unless --dtype says otherwise.",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default_factory=lambda known: "bfloat16" if known.get("precision") == "bf16" else "auto",
        description="Dtype of the frozen model's weights. Default: auto = float32 on a CPU, else as"
        " they are stored; bfloat16 with --precision bf16.",
    )
    device: str = Field("auto", description="Device: auto, cpu, cuda, cuda:1 or mps.")
    device_map: DeviceMap = Field(
        "none", description="Spread a large model over all devices; none = all on --device."
    )
    attention: Attention = Field(
        "auto",
        description="Attention of the vision encoder and of answers; while phrases are grounded,"
        " the language model always uses sdpa.",
    )
    prompt: str = Field(DEFAULT_PROMPT, description="The user's turn that precedes the caption.")
    system: str | None = Field(
        None,
        description="The system message before it. Default: the chat template's own, if any.",
    )
    caption_mode: CaptionMode = Field(
        "whole",
        description="Tokenize a caption whole, as the model's own answer, or its pieces one by"
        " one, as the original F-LMM does.",
    )

    data_root: UserPath | None = Field(
        None, description="Folder that relative paths of all data start from."
    )
    data: Sources = Field(
        ["shapes@train"], min_length=1, description="Train on NAME[:PATH][@SPLIT]; repeatable."
    )
    val_data: Sources = Field(
        default_factory=_drawn("val"),
        description="Validate checkpoints on this data to select the best; repeatable. Default:"
        " shapes@val when training on drawn scenes.",
    )
    eval_data: Sources = Field(
        default_factory=_drawn("test", "hard"),
        description="Evaluate the trained head on this data; repeatable. Default: shapes@test and"
        " shapes@hard when training on drawn scenes.",
    )
    max_skipped: MaxSkipped = Field(
        MAX_SKIPPED,
        description="How much of a data source may be left out because it cannot be used: a number"
        " of items, or a share (1%); more is an error.",
    )
    protocol: ProtocolName = Field(
        "standard",
        description="Evaluation captions: one per sentence (standard), or one per image with the"
        " first sentence of each object (flmm-paper).",
    )
    train_protocol: ProtocolName = Field(
        "flmm-paper",
        description="Training captions, as for --protocol; one caption per image is cheaper.",
    )

    refiner: str = Field(
        "sam",
        description="What sharpens the coarse masks (see `flmm refiners`): NAME or NAME:VALUE, for"
        " example none, sam:tiny or sam:vit_l.",
    )
    refiner_options: dict[str, Any] = Field(
        {}, description="Option of the refiner (see `flmm refiners show`); repeatable."
    )
    refiner_weights: UserPath | None = Field(
        None,
        description="The refiner's pretrained weights, a file, a folder or, of sam2, a hub id;"
        " required by all sizes but tiny.",
    )
    head: HeadConfig = HeadConfig()
    absent_share: float = Field(
        default_factory=lambda known: 0.2 if getattr(known.get("head"), "presence", 0) else 0.0,
        ge=0,
        le=0.8,
        description="Share of the training and validation phrases that name nothing, borrowed from"
        " other images if the data has none. Default: 0.2, or 0 with --no-head-presence.",
    )

    init_head: Annotated[str | None, AfterValidator(_at_home)] = Field(
        None,
        description="Begin with the weights of this trained head: a run, a head's folder or a hub"
        " id.",
    )
    train: Annotated[Parts | None, AfterValidator(_parts)] = Field(
        None,
        description="Train these parts only: head (the mask head, presence and keywords), presence,"
        " keywords, text (the text prompts), or the refiner by its name; separated by commas."
        " Default: all.",
    )

    output: UserPath = Field(
        default_factory=lambda known: Path(
            "runs", f"{known.get('backbone', 'run')}-{time.strftime('%Y%m%d-%H%M%S')}"
        ),
        description="Run folder. Default: runs/BACKBONE-TIME.",
    )
    resume: bool = Field(
        False, description="Resume the run in the output folder with its settings."
    )
    force: bool = Field(
        False, description="Go on behind another model than the head's, after a warning."
    )
    strict: bool = Field(
        False,
        description="Refuse a model that does otherwise than when the head was trained, as under"
        " another version of transformers; otherwise that is a warning.",
    )
    check: bool = Field(
        True, description="Check on a drawn image that the model does what its backbone promises."
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed.")
    epochs: float | None = Field(
        None, gt=0, description="Passes over the training data, instead of --steps."
    )
    steps: Annotated[int, AfterValidator(_steps)] = Field(
        default_factory=lambda known: 0 if known.get("epochs") else STEPS,
        ge=0,
        description=f"Optimizer steps. Default: {STEPS}.",
    )
    batch_size: BatchSize = Field(
        BATCH_SIZE,
        description="Samples per step, of all processes together; auto = "
        f"{BATCH_SIZE}, in as many parts (--accumulate) as the memory needs.",
    )
    accumulate: int = Field(
        1,
        ge=1,
        description="Parts that a process takes its samples of a step in, one after the other: less"
        " memory, the same sum.",
    )
    bucket: bool = Field(
        False, description="Batch samples of similar image size and caption length."
    )
    refine_at_most: int | None = Field(
        None,
        ge=1,
        description="Refine at most this many masks of an image in a step, chosen at random: less"
        " time and memory. Default: all.",
    )
    cache: UserPath | None = Field(
        None, description="Read features from this cache (see `flmm cache build`)."
    )
    cache_memory: float = Field(
        0.0,
        ge=0,
        description="Keep features in memory once they are known, up to this many GB (observed one"
        " by one, as with --exact); 0 = none.",
    )
    exact: bool = Field(
        False,
        description="Run the frozen models sample by sample, as `flmm cache build` does, for a"
        " bit-identical head.",
    )
    workers: Workers = Field(
        "auto", description="DataLoader workers; auto = 0 on CPU, else by available CPU cores."
    )
    learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate of AdamW.")
    refiner_learning_rate: float | None = Field(
        None,
        gt=0,
        description="Peak learning rate of the refiner. Default: the same as --learning-rate.",
    )
    weight_decay: float = Field(0.01, ge=0, description="Weight decay of AdamW.")
    clip_norm: float = Field(1.0, gt=0, description="Maximum gradient norm.")
    ema: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Validate and keep an exponential moving average of the weights with this decay"
        " (0.999); 0 = the weights of the last step.",
    )
    warmup: float = Field(0.03, ge=0, le=1, description="Warmup, as a fraction of all steps.")
    log_every: int = Field(10, ge=1, description="Steps between lines of metrics.jsonl.")
    log_with: Trackers = Field(
        [],
        description="Send the figures of metrics.jsonl there, too: tensorboard, wandb, trackio or"
        " mlflow; several with commas between.",
    )
    save_every: int = Field(500, ge=1, description="Steps between checkpoints.")
    keep: int = Field(2, ge=1, description="Newest checkpoints to keep, besides the best one.")
    patience: Annotated[int | None, AfterValidator(_patience)] = Field(
        None,
        ge=1,
        description="Stop training after this many validations without a better one.",
    )
    max_hours: float | None = Field(
        None,
        gt=0,
        description="Save and stop training after this many hours, as Ctrl-C does; --resume goes"
        " on, for as long again.",
    )
    pictures: int = Field(8, ge=0, description="Example images to draw at the end of the run.")

    @property
    def samples_per_step(self) -> int:
        """`batch_size` as a number."""
        return BATCH_SIZE if self.batch_size == "auto" else self.batch_size

    def to_yaml(self) -> str:
        """The whole configuration, readable by `--config`, without settings of a command."""
        return dump_yaml(
            self.model_dump(mode="json", exclude={"resume", "force", "strict", "check"})
        )
