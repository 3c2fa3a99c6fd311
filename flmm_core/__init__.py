"""Ground frozen vision-language models: the public API for users and plugins.

Importing it does not import torch: a name is loaded from its module on first use.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flmm_core.errors import ConfigError as ConfigError
    from flmm_core.errors import DataError as DataError
    from flmm_core.errors import FlmmError as FlmmError
    from flmm_core.errors import MissingExtraError as MissingExtraError
    from flmm_core.errors import RunError as RunError
    from flmm_core.errors import UsageError as UsageError
    from flmm_core.errors import WeightsError as WeightsError
    from flmm_core.hookspecs import hookimpl as hookimpl
    from flmm_core.pipeline.backbone.base import Backbone as Backbone
    from flmm_core.pipeline.backbone.weights import load_pretrained as load_pretrained
    from flmm_core.pipeline.conversation.answer import Answer as Answer
    from flmm_core.pipeline.conversation.answer import Span as Span
    from flmm_core.pipeline.conversation.phrases.base import PhraseContext as PhraseContext
    from flmm_core.pipeline.conversation.phrases.base import PhraseFinder as PhraseFinder
    from flmm_core.pipeline.grounder import Grounder as Grounder
    from flmm_core.pipeline.mask_logits import MaskLogits as MaskLogits
    from flmm_core.pipeline.refiners.base import ImageEncoder as ImageEncoder
    from flmm_core.pipeline.refiners.base import Refiner as Refiner
    from flmm_core.pipeline.result import Result as Result
    from flmm_core.pipeline.types import BackboneBatch as BackboneBatch
    from flmm_core.pipeline.types import BackboneInputs as BackboneInputs
    from flmm_core.pipeline.types import EncodedImage as EncodedImage
    from flmm_core.pipeline.types import ImageView as ImageView
    from flmm_core.pipeline.types import Trace as Trace
    from flmm_core.plugins import load_backbones as load_backbones
    from flmm_core.plugins import load_phrase_finders as load_phrase_finders
    from flmm_core.plugins import load_refiners as load_refiners
    from flmm_core.segment import Segment as Segment
    from flmm_core.spec import API_VERSION as API_VERSION
    from flmm_core.spec import TOY_DEFAULTS as TOY_DEFAULTS
    from flmm_core.spec import BackboneOptions as BackboneOptions
    from flmm_core.spec import BackboneSpec as BackboneSpec
    from flmm_core.spec import ModelInfo as ModelInfo
    from flmm_core.spec import OriginalInfo as OriginalInfo
    from flmm_core.spec import PhraseFinderOptions as PhraseFinderOptions
    from flmm_core.spec import PhraseFinderSpec as PhraseFinderSpec
    from flmm_core.spec import RefinerOptions as RefinerOptions
    from flmm_core.spec import RefinerSpec as RefinerSpec
    from flmm_core.spec import Requirements as Requirements

__version__ = "0.1.0"

_HOMES = {
    "pipeline.grounder": "Grounder",
    "errors": "ConfigError DataError FlmmError MissingExtraError RunError UsageError WeightsError",
    "hookspecs": "hookimpl",
    "pipeline.backbone.base": "Backbone",
    "pipeline.backbone.weights": "load_pretrained",
    "pipeline.conversation.answer": "Answer Span",
    "pipeline.conversation.phrases.base": "PhraseContext PhraseFinder",
    "pipeline.mask_logits": "MaskLogits",
    "pipeline.refiners.base": "ImageEncoder Refiner",
    "pipeline.result": "Result",
    "pipeline.types": "BackboneBatch BackboneInputs EncodedImage ImageView Trace",
    "plugins": "load_backbones load_phrase_finders load_refiners",
    "segment": "Segment",
    "spec": "API_VERSION TOY_DEFAULTS BackboneOptions BackboneSpec ModelInfo OriginalInfo"
    " PhraseFinderOptions PhraseFinderSpec RefinerOptions RefinerSpec Requirements",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = ["__version__", *sorted(_HOME_OF)]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module 'flmm_core' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"flmm_core.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
