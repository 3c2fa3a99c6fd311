"""The classes of a model that a plugin does not name: transformers' own choice."""

from __future__ import annotations

from typing import Any

from flmm_core.errors import WeightsError
from flmm_core.pipeline.hub import HUB_ARGUMENTS


def auto_classes(source: str, **kwargs: Any) -> tuple[Any, Any, Any]:
    """(model, processor, image processor) classes for `load_pretrained`.

    Args:
        source: A folder or a hub id.
        kwargs: As for `from_pretrained`.

    Raises:
        WeightsError: transformers has no image-text-to-text model for it.
    """
    from transformers import (
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        AutoConfig,
        AutoImageProcessor,
        AutoModelForImageTextToText,
        AutoProcessor,
    )

    files = {k: kwargs[k] for k in (*HUB_ARGUMENTS, "trust_remote_code") if k in kwargs}
    config = AutoConfig.from_pretrained(source, **files)
    remote = kwargs.get("trust_remote_code") and getattr(config, "auto_map", None)
    kind = config.model_type
    if not remote and type(config) not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
        raise WeightsError(
            f"The model '{source}' does not answer questions about images.",
            found=f"transformers has no image-text-to-text model of the type '{kind}'.",
            repair="Choose a vision-language model, or a newer version of transformers.",
        )
    model = AutoModelForImageTextToText
    if not remote:  # the class itself: what it keeps in higher precision is asked of it
        model = MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]
    return model, AutoProcessor, AutoImageProcessor
