"""Facts about a backbone that can be read without torch."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from pydantic import BaseModel, ConfigDict

DEFAULT_PROMPT = "Please give me a description of the image."
"""What the VLM is asked before the caption."""


class BackboneOptions(BaseModel):
    """A plugin's own settings; subclass it and add fields. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class RefinerOptions(BaseModel):
    """A refiner's own settings; subclass it and add fields. Unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


TOY_DEFAULTS: Mapping[str, Any] = MappingProxyType(
    {
        "head.base_channels": 16,
        "head.enlarge_to": 32,
        "learning_rate": 6e-3,
        "refiner_learning_rate": 3e-4,
        "steps": 900,
        "save_every": 450,
        # A toy knows so few words that SAM would learn to find them without attention.
        "sam.text": False,
    }
)
"""Run settings that suit a toy model on drawn scenes; for `ModelInfo.defaults` of "tiny"."""


@dataclass(frozen=True)
class ModelInfo:
    """One model of a family.

    Attributes:
        source: A hub id (`owner/name`), or `package:folder` for weights that are shipped
            inside an installed package (`flmm_foo:tiny`).
        licence: The licence of the weights.
        summary: One line.
        defaults: Run settings that suit this model, by dotted configuration key
            (`{"head.base_channels": 16}`); a file or the command line overrides them.
    """

    source: str
    licence: str
    summary: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "defaults", MappingProxyType(dict(self.defaults)))

    def __reduce__(self) -> tuple[Any, ...]:  # read-only views cannot be pickled
        return ModelInfo, (self.source, self.licence, self.summary, dict(self.defaults))


@dataclass(frozen=True)
class BackboneSpec:
    """What a plugin says about one family of vision-language models.

    Attributes:
        name: How users call it, `[a-z0-9_]+` ("foo").
        target: `"module:Class"` of the `Backbone` subclass; imported only on load.
        summary: One line for lists.
        models: Alias to model; always with "tiny".
        capabilities: What it can do beyond grounding, for example "chat".
        options: The plugin's own settings.
    """

    name: str
    target: str
    summary: str
    models: Mapping[str, ModelInfo]
    capabilities: frozenset[str] = frozenset()
    options: type[BackboneOptions] = BackboneOptions

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[a-z0-9_]+", self.name):
            raise ValueError(f"backbone name {self.name!r} must match [a-z0-9_]+")
        if not re.fullmatch(r"[\w.]+:\w+", self.target):
            raise ValueError(f"target {self.target!r} of {self.name!r} must be 'module:Class'")
        if "tiny" not in self.models:
            raise ValueError(f"backbone {self.name!r} has no model 'tiny'")
        object.__setattr__(self, "models", MappingProxyType(dict(self.models)))
        object.__setattr__(self, "capabilities", frozenset(self.capabilities))

    def __reduce__(self) -> tuple[Any, ...]:
        models = dict(self.models)
        facts = self.name, self.target, self.summary, models, self.capabilities, self.options
        return BackboneSpec, facts
