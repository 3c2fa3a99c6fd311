"""Idefics3 as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import TOY_DEFAULTS, BackboneSpec, ModelInfo, hookimpl

API_VERSION = 1  # of flmm's plugin API, for which this is written

SPEC = BackboneSpec(
    name="idefics3",
    target="flmm_idefics3.backbone:Idefics3Backbone",
    summary="Idefics3: the whole image, and its tiles in full resolution",
    models={
        "tiny": ModelInfo(
            source="flmm_idefics3:tiny",
            license="Apache-2.0",
            summary="toy model that knows drawn shapes, shipped in the package",
            defaults={**TOY_DEFAULTS, "head.pool": "mean"},
        ),
        "8b": ModelInfo("HuggingFaceM4/Idefics3-8B-Llama3", "Apache-2.0"),
    },
    capabilities=frozenset({"chat"}),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
