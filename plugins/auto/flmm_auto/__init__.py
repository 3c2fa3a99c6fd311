"""Any vision-language model for flmm: facts only, no torch. See `families.py` and `backbone.py`."""

from __future__ import annotations

from pydantic import Field

from flmm_core import (
    TOY_DEFAULTS,
    BackboneOptions,
    BackboneSpec,
    ModelInfo,
    Requirements,
    hookimpl,
)

API_VERSION = 1


class AutoOptions(BackboneOptions):
    """Which models are taken."""

    allow_unlisted: bool = Field(
        False, description="Also take families that have not been tried; their geometry is proved."
    )


SPEC = BackboneSpec(
    name="auto",
    target="flmm_auto.backbone:AutoBackbone",
    summary="any transformers image-text-to-text model whose geometry can be measured",
    models={
        "tiny": ModelInfo(
            source="flmm_qwen:tiny",
            license="Apache-2.0",
            summary="the toy model of backbone qwen, measured",
            defaults=TOY_DEFAULTS,
        ),
    },
    capabilities=frozenset({"chat"}),
    options=AutoOptions,
    requirements=Requirements(any_family=True),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
