"""From a recipe in plain values to the two halves of the flow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field

from flmm_core.config import BaseChannels, EnlargeTo, PoolEnds, PoolName, RunConfig
from flmm_core.errors import Problems
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.fingerprint import take_fingerprint
from flmm_core.pipeline.backbone.loading import check_loading
from flmm_core.pipeline.backbone.weight_files import check_model_files
from flmm_core.pipeline.backbone.weights import choose_device, find_source
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.hub import LATEST
from flmm_core.pipeline.keywords import KeywordSelector
from flmm_core.pipeline.mask_head import MaskHead
from flmm_core.pipeline.observer import Observer
from flmm_core.pipeline.pooling import LearnedPooling
from flmm_core.pipeline.presence import Presence
from flmm_core.pipeline.refiners.base import ImageEncoder, Refiner
from flmm_core.pipeline.text_prompts import TextPrompts
from flmm_core.pipeline.types import VlmShape
from flmm_core.plugins import load_backbones, load_class, load_refiners, parse_options
from flmm_core.segment import CaptionMode
from flmm_core.spec import DEFAULT_PROMPT, BackboneSpec, Quantize, RefinerOptions


@dataclass(frozen=True)
class Recipe:
    """How a flow is built; kept in a head's `config.json`.

    The fields are those of `Backbone.load`, `Observer`, `MaskHead` and `Refiner.load`.

    Attributes:
        presence: Whether the head tells if a phrase names anything; heads of earlier versions and
            of the original do not.
        pool_ends: With `pool` "learned", how many last tokens of a phrase have their own weights.
        keywords: Whether the head selects the words of a text to ground.
        channels: The attention channels that the mask head takes; empty means all.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    backbone: str
    model: str = "tiny"
    revision: str = LATEST
    adapter: str = "none"
    quantize: Quantize = "none"
    options: Mapping[str, Any] = field(default_factory=dict)
    prompt: str = DEFAULT_PROMPT
    system: str | None = None
    caption_mode: CaptionMode = "whole"
    pool: PoolName = "mean"
    pool_ends: PoolEnds = 1
    base_channels: BaseChannels = 64
    enlarge_to: EnlargeTo = 64
    paper_rounding: bool = False
    presence: bool = False
    keywords: bool = False
    channels: tuple[Annotated[int, Field(ge=0)], ...] = ()
    refiner: str = "sam"
    refiner_options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "channels", tuple(self.channels))  # a list in JSON

    @property
    def ends(self) -> int:
        """How many last tokens of a phrase have maps of their own."""
        return self.pool_ends if self.pool == "learned" else 0

    @property
    def pooled(self) -> Literal["mean", "max"]:
        """How the attention of a phrase's tokens becomes one map while it is recorded."""
        return "max" if self.pool == "max" else "mean"

    def behind(self, **given: Any) -> Recipe:
        """The same with another model, revision, adapter or quantization where one is given.

        A model that replaces the recipe's is the latest of its repository.
        """
        changed = {name: value for name, value in given.items() if value is not None}
        if changed.get("model", self.model) != self.model:
            changed.setdefault("revision", LATEST)
        return replace(self, **changed)

    @property
    def changes(self) -> dict[str, Any]:
        """What is loaded of the model and done to it: arguments of `Backbone.load`."""
        return {name: getattr(self, name) for name in ("revision", "adapter", "quantize")}


def refiner_class(recipe: Recipe) -> tuple[type[Refiner], RefinerOptions]:
    """The class of a recipe's refiner, and its options with their defaults.

    Raises:
        UsageError: The refiner is unknown.
        ConfigError: An option is unknown or has a wrong value.
    """
    spec = load_refiners().get(recipe.refiner)
    return load_class(spec), parse_options(spec, recipe.refiner_options)


def load_refiner(
    recipe: Recipe, weights: str | Path | None = None
) -> tuple[ImageEncoder | None, Refiner]:
    """Both halves of the refiner, on the CPU; raises as `refiner_class` and `Refiner.load`."""
    refiner, options = refiner_class(recipe)
    return refiner.load(options, weights=_path(weights), paper_rounding=recipe.paper_rounding)


def reads_hidden(recipe: Recipe) -> bool:
    """Whether the head of a recipe reads hidden states, not only attention."""
    refiner, options = refiner_class(recipe)
    return recipe.presence or recipe.keywords or refiner.reads_text(options)


def build_head(recipe: Recipe, vlm: VlmShape, refiner: Refiner) -> Head:
    """A head with fresh weights, on the CPU.

    They follow from torch's random state and the recipe alone, whether or not a VLM is loaded.
    """
    mask_head = build_mask_head(recipe, vlm)
    text_prompts = None
    if refiner.uses_text:
        text_prompts = TextPrompts(vlm.layers, vlm.hidden_size, refiner.prompt_width)
    presence = Presence(vlm.layers, vlm.hidden_size) if recipe.presence else None
    keywords = KeywordSelector(vlm.layers, vlm.hidden_size) if recipe.keywords else None
    pooling = None
    if recipe.ends:
        pooling = LearnedPooling(recipe.ends, len(recipe.channels) or vlm.attention_channels)
    return Head(mask_head, text_prompts, refiner, presence, keywords, pooling).eval()


def build_mask_head(recipe: Recipe, vlm: VlmShape) -> MaskHead:
    """The part of a head whose sizes the recipe decides."""
    channels = len(recipe.channels) or vlm.attention_channels
    return MaskHead(channels, recipe.base_channels, recipe.enlarge_to, recipe.paper_rounding)


def check_flow(
    recipe: Recipe,
    problems: Problems,
    *,
    spec: BackboneSpec | None = None,
    device: str | torch.device = "auto",
    refiner_weights: str | Path | None = None,
    **pass_through: Any,
) -> None:
    """Add what `build_flow` would refuse to `problems`, in seconds; args as there.

    Nothing is loaded: of weights only the headers are read.
    """
    with problems.part():
        choose_device(device)
    with problems.part():
        spec = spec or load_backbones().get(recipe.backbone)
        parse_options(spec, recipe.options)
        given = {**recipe.changes, **pass_through}
        types = load_class(spec).model_types
        source = find_source(spec, recipe.model)
        with problems.part():
            check_loading(source, **given)
        check_model_files(spec, recipe.model, types, given)
    with problems.part():
        refiner, options = refiner_class(recipe)
        refiner.check(options, _path(refiner_weights))


def _path(given: str | Path | None) -> Path | None:
    return None if given is None else Path(given).expanduser()


def load_backbone(recipe: Recipe, spec: BackboneSpec, **given: Any) -> Backbone:
    """The frozen VLM of a recipe; `given` are further arguments of `Backbone.load`, raises so."""
    backbone: Backbone = load_class(spec).load(
        spec,
        recipe.model,
        prompt=recipe.prompt,
        system=recipe.system,
        caption_mode=recipe.caption_mode,
        options=recipe.options,
        **{**recipe.changes, **given},
    )
    return backbone


def build_flow(
    recipe: Recipe,
    *,
    spec: BackboneSpec | None = None,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    refiner_weights: str | Path | None = None,
    one_by_one: bool = False,
    check: bool = True,
    **pass_through: Any,
) -> tuple[Observer, Head]:
    """Both halves of the flow, the head with fresh weights.

    Args:
        recipe: How they are built.
        spec: The backbone's facts; by default looked up among the installed plugins.
        dtype: Of the VLM's weights; see `Backbone.load`.
        device: "auto" takes the first accelerator.
        refiner_weights: See `Refiner.load`.
        one_by_one: See `Observer`.
        check: Run the VLM on a drawn image, and check that it keeps its promises.
        pass_through: For transformers' `from_pretrained` of the VLM.

    Raises:
        UsageError: The backbone, its model or the refiner is unknown.
        ConfigError: An option is unknown or has a wrong value.
        WeightsError: Weights are missing or do not fit.
        RunError: The VLM does not do what its backbone promises.
    """
    spec = spec or load_backbones().get(recipe.backbone)
    problems = Problems()
    check_flow(
        recipe,
        problems,
        spec=spec,
        device=device,
        refiner_weights=refiner_weights,
        **pass_through,
    )
    problems.check()
    with torch.random.fork_rng(devices=[]):  # the head's fresh weights do not depend on the VLM
        backbone = load_backbone(recipe, spec, dtype=dtype, device=device, **pass_through)
    encoder, refiner = load_refiner(recipe, refiner_weights)
    place = backbone.device
    observer = Observer(
        backbone,
        None if encoder is None else encoder.to(place),
        pool=recipe.pooled,
        ends=recipe.ends,
        channels=recipe.channels,
        one_by_one=one_by_one,
        fingerprint=take_fingerprint(backbone) if check else None,
    )
    return observer, build_head(recipe, observer.vlm, refiner).to(place)


def recipe_of(config: RunConfig) -> Recipe:
    """The recipe of a run."""
    return Recipe(
        backbone=config.backbone,
        model=config.model,
        revision=config.revision,
        adapter=config.adapter,
        quantize=config.quantize,
        options=config.options,
        prompt=config.prompt,
        system=config.system,
        caption_mode=config.caption_mode,
        refiner=config.refiner,
        refiner_options=config.refiner_options,
        **config.head.model_dump(),
    )


def _placement(config: RunConfig) -> dict[str, Any]:
    """How a run's VLM is loaded beyond its recipe: arguments of `Backbone.load`."""
    return {"device_map": config.device_map, "attention": config.attention}


def check_config(config: RunConfig, spec: BackboneSpec, problems: Problems) -> None:
    """Add what `build_from_config` would refuse to `problems`, in seconds."""
    check_flow(
        recipe_of(config),
        problems,
        spec=spec,
        device=config.device,
        refiner_weights=config.refiner_weights,
        **_placement(config),
    )


def backbone_from_config(config: RunConfig, spec: BackboneSpec) -> Backbone:
    """The VLM of a run alone; raises as `build_flow`."""
    backbone = load_backbone(
        recipe_of(config), spec, dtype=config.dtype, device=config.device, **_placement(config)
    )
    if config.check:
        take_fingerprint(backbone)
    return backbone


def build_from_config(config: RunConfig, spec: BackboneSpec) -> tuple[Observer, Head]:
    """The frozen models of a run and a head with fresh weights."""
    return build_flow(
        recipe_of(config),
        spec=spec,
        dtype=config.dtype,
        device=config.device,
        refiner_weights=config.refiner_weights,
        one_by_one=config.exact,
        check=config.check,
        **_placement(config),
    )
