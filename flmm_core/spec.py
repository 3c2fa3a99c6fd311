"""What plugins declare: backbones, refiners and phrase finders, readable without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict

API_VERSION = 1
"""What plugins are written for: it rises when a plugin that worked no longer would.

A plugin's module may say `API_VERSION = 1`, and is then refused by a version of flmm with another.
"""

DEFAULT_PROMPT = "Please give me a description of the image."
"""The user's turn that precedes the caption."""

Quantize = Literal["none", "8bit", "4bit"]
Attention = Literal["auto", "eager", "sdpa", "flash_attention_2"]
DeviceMap = Literal["none", "auto", "balanced", "balanced_low_0", "sequential"]


class PluginOptions(BaseModel):
    """Options of one backbone, refiner or phrase finder. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class BackboneOptions(PluginOptions):
    """A backbone's own options; subclass it and add fields."""


class RefinerOptions(PluginOptions):
    """A refiner's own options; subclass it and add fields."""


class PhraseFinderOptions(PluginOptions):
    """A phrase finder's own options; subclass it and add fields."""


TOY_DEFAULTS: Mapping[str, Any] = {
    "head.base_channels": 16,
    "head.enlarge_to": 32,
    "head.pool": "learned",  # what an expression means is known where it ends
    "learning_rate": 8e-3,
    "refiner_learning_rate": 3e-4,
    "bucket": True,
    "cache_memory": 1.0,
    "steps": 780,
    "save_every": 780,
    # A toy model knows so few words that a refiner would learn to find them without attention.
    "refiner_options.text": False,
}
"""Run settings that suit a toy model on drawn scenes; for `ModelInfo.defaults` of "tiny"."""


@dataclass(frozen=True)
class ModelInfo:
    """One model of a family.

    Attributes:
        source: A hub id (`owner/name`), or `package:folder` for weights shipped inside an
            installed package (`flmm_foo:tiny`).
        license: License of the weights.
        summary: One line.
        defaults: Run settings that suit this model, by dotted configuration key
            (`{"head.base_channels": 16}`). A configuration file or the command line overrides
            them; a refiner option that the chosen refiner does not have is ignored.
    """

    source: str
    license: str
    summary: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)


def plural(kind: str) -> str:
    """A kind of spec as in the name of its hook, `flmm_PLURAL`, and as a key of JSON."""
    return f"{kind.replace(' ', '_')}s"


@dataclass(frozen=True)
class PluginSpec:
    """What backbones, refiners and phrase finders have in common.

    Attributes:
        kind: What messages call it, and the hook that declares it.
        name: Its name on the command line, `[a-z0-9_]+` ("foo").
        target: `"module:Class"`, imported only when it is loaded.
        summary: One line for lists.
    """

    kind: ClassVar[str]

    name: str
    target: str
    summary: str
    options: type[PluginOptions] = field(default=PluginOptions, kw_only=True)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"{self.kind} name {self.name!r} must match [a-z0-9_]+")
        if not re.fullmatch(r"[\w.]+:\w+", self.target):
            raise ValueError(f"target {self.target!r} of {self.name!r} must be 'module:Class'")


@dataclass(frozen=True)
class OriginalInfo:
    """What a head of the original F-LMM needs behind a family.

    Attributes:
        prefixes: What the names of the VLM's own tensors begin with in its checkpoints.
        options: The backbone's options with which the VLM sees the pixels that it saw there.
        differs: What stays different from the original, in words; empty if nothing does.
    """

    prefixes: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    differs: str = ""


@dataclass(frozen=True)
class Requirements:
    """What a family does otherwise than most; the core and the conformance kit then expect it.

    Attributes:
        bidirectional_image: Image tokens also attend to later tokens of their image.
        bidirectional_prefix: Image and prompt attend to each other in both directions, and the
            answer is a text of its own, which the processor takes as `suffix`. Tokens of the prefix
            have the token type 0, those of the answer 1.
        chat_template: The template of models that come without one.
        optional_views: Views that an image may be without, for example where a model cuts only
            large images into tiles. `Backbone.views` says what then stands for them.
        sliding_window: Some layers attend only to the latest tokens, so that in them a phrase may
            attend to no image token. Where the model's config says so, it need not be declared.
        any_family: `Backbone.model_types` is empty: models of any family are tried.
    """

    bidirectional_image: bool = False
    bidirectional_prefix: bool = False
    chat_template: str = ""
    optional_views: frozenset[str] = frozenset()
    sliding_window: bool = False
    any_family: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "optional_views", frozenset(self.optional_views))


@dataclass(frozen=True)
class BackboneSpec(PluginSpec):
    """One family of vision-language models; `target` names a `Backbone` subclass.

    Attributes:
        models: Alias to model; always with "tiny".
        capabilities: What it can do beyond grounding, for example "chat".
        converted: For weights in their authors' own format, which transformers does not read: the
            `model_type` or class in their config.json -> the hub id of the same weights converted.
        original: For `flmm import-flmm`.
        requirements: What the family does otherwise than most.
    """

    kind = "backbone"

    models: Mapping[str, ModelInfo]
    capabilities: frozenset[str] = frozenset()
    options: type[BackboneOptions] = field(default=BackboneOptions, kw_only=True)
    converted: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    original: OriginalInfo = field(default=OriginalInfo(), kw_only=True)
    requirements: Requirements = field(default=Requirements(), kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if "tiny" not in self.models:
            raise ValueError(f"backbone {self.name!r} has no model 'tiny'")
        object.__setattr__(self, "models", dict(self.models))
        object.__setattr__(self, "capabilities", frozenset(self.capabilities))


@dataclass(frozen=True)
class RefinerSpec(PluginSpec):
    """One way to sharpen coarse masks; `target` names a `Refiner` subclass.

    `shorthand` is the option that `--refiner NAME:VALUE` sets; empty if there is none. `license` is
    that of its pretrained weights; empty if it has none.
    """

    kind = "refiner"

    options: type[RefinerOptions] = field(default=RefinerOptions, kw_only=True)
    shorthand: str = ""
    license: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shorthand and self.shorthand not in self.options.model_fields:
            raise ValueError(f"refiner {self.name!r} has no option {self.shorthand!r}")


@dataclass(frozen=True)
class PhraseFinderSpec(PluginSpec):
    """One way to choose the words of a text to ground; `target` names a `PhraseFinder` subclass.

    `shorthand` is the option that VALUE in `phrases="NAME:VALUE"` sets; empty if there is none.
    """

    kind = "phrase finder"

    options: type[PhraseFinderOptions] = field(default=PhraseFinderOptions, kw_only=True)
    shorthand: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shorthand and self.shorthand not in self.options.model_fields:
            raise ValueError(f"phrase finder {self.name!r} has no option {self.shorthand!r}")
