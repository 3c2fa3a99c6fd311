"""SmolVLM as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from flmm_core import BackboneSpec, ModelInfo, hookimpl

API_VERSION = 1  # of flmm's plugin API, for which this is written

SPEC = BackboneSpec(
    name="smolvlm",
    target="flmm_smolvlm.backbone:SmolVLMBackbone",
    summary="SmolVLM: the whole image, and its tiles in full resolution",
    models={
        "tiny": ModelInfo("flmm_smolvlm:tiny", "Apache-2.0", "random weights, for the tests"),
        "256m": ModelInfo("HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "Apache-2.0"),
        "2.2b": ModelInfo("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "Apache-2.0"),
    },
    capabilities=frozenset({"chat"}),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
