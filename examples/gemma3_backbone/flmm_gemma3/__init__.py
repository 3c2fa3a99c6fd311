"""Gemma 3 as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import BackboneSpec, ModelInfo, Requirements, hookimpl

API_VERSION = 1  # of flmm's plugin API, for which this is written

SPEC = BackboneSpec(
    name="gemma3",
    target="flmm_gemma3.backbone:Gemma3Backbone",
    summary="Gemma 3: one view, the image squeezed into a square",
    models={
        "tiny": ModelInfo("flmm_gemma3:tiny", "Apache-2.0", "random weights, for the tests"),
        "4b": ModelInfo("google/gemma-3-4b-it", "Gemma"),
    },
    capabilities=frozenset({"chat"}),
    requirements=Requirements(bidirectional_image=True),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
