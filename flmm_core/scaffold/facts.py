"""What a package for a model has to say, found out from its config and processor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flmm_core.errors import FlmmError, WeightsError, install_advice, one_line
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.weights import find_source
from flmm_core.pipeline.hub import explain, root
from flmm_core.spec import BackboneOptions, BackboneSpec, ModelInfo


@dataclass(frozen=True)
class ModelFacts:
    """A model, without its weights.

    Attributes:
        vlm: On the device "meta": its class and its config are of use.
        processor: Its processor.
        model_type: Of config.json.
        image_token: What the image's features replace.
        views: By image size ("640 x 480") and name of the view, rows, columns and box, as
            `ModelIdentity` keeps them.
        view_names: In channel order.
        refused: By image size, why it cannot be measured.
    """

    vlm: Any
    processor: Any
    model_type: str
    image_token: str
    views: Mapping[str, Mapping[str, tuple[float, ...]]]
    view_names: tuple[str, ...]
    refused: Mapping[str, str]


def find_facts(name: str, source: str) -> ModelFacts:
    """Measure a model for a backbone `name`; no weights are read.

    Args:
        name: Of the backbone to be.
        source: A hub id or a folder.

    Raises:
        WeightsError: The model is not there, or a package for it needs code that cannot be written
            for it; what was found and what remains to be done is said.
    """
    spec = BackboneSpec(name, "a:B", "", {"tiny": ModelInfo(source, "")})
    place = find_source(spec, source)
    asked = f"No package can be written for the model '{source}'."
    try:
        vlm, processor = Backbone.load_model(place, BackboneOptions(), device_map="meta")
    except FlmmError:
        raise
    except Exception as error:  # each model fails in its own way
        found = one_line(error)
        repair = "Give a model that transformers loads with AutoModelForImageTextToText."
        if (cause := root(error)) is not error:  # the hub's, not the model's
            found, repair = explain(cause)
        elif isinstance(error, ImportError):
            repair = f"{install_advice(error)}."
        raise WeightsError(asked, found=found, repair=repair) from error
    kind = vlm.config.model_type
    try:
        backbone = Backbone(spec, vlm, processor, model=source, source=place)
        assert backbone.measured is not None
        views, refused = backbone.measured.facts(), backbone.measured.refused
    except Exception as error:  # of an unknown processor, anything
        known = f"It is of the type '{kind}', and its processor is a {type(processor).__name__}."
        why = f"{error.asked} {error.found}" if isinstance(error, FlmmError) else one_line(error)
        raise WeightsError(
            asked,
            found=f"{why}\n{known}",
            repair="By hand: copy examples/minimal_backbone, set `model_types` and "
            "`processor_types` to these, and say in views.py where the image tokens are.",
        ) from error
    return ModelFacts(
        vlm,
        processor,
        kind,
        backbone.image_token,
        views,
        backbone.view_names,
        {f"{w} x {h}": why for (h, w), why in refused.items()},
    )
