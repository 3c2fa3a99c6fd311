"""InternVL3 as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import BackboneSpec, ModelInfo, Requirements, hookimpl

API_VERSION = 1  # of flmm's plugin API, for which this is written

SPEC = BackboneSpec(
    name="internvl",
    target="flmm_internvl.backbone:InternVLBackbone",
    summary="InternVL3: the whole image, and up to twelve tiles of it",
    models={
        "tiny": ModelInfo("flmm_internvl:tiny", "Apache-2.0", "random weights, for the tests"),
        "1b": ModelInfo("OpenGVLab/InternVL3-1B-hf", "see the model's card"),
        "8b": ModelInfo("OpenGVLab/InternVL3-8B-hf", "see the model's card"),
    },
    capabilities=frozenset({"chat"}),
    requirements=Requirements(optional_views=frozenset({"fine"})),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
