"""LLaVA-1.5 as a plugin for flmm: facts only. Import neither torch nor transformers here."""

from __future__ import annotations

from flmm_core import BackboneSpec, ModelInfo, hookimpl

SPEC = BackboneSpec(
    name="minimal",
    target="flmm_minimal.backbone:MinimalBackbone",
    summary="LLaVA-1.5: one view, the middle square of the image",
    models={
        "tiny": ModelInfo("flmm_minimal:tiny", "Apache-2.0", "random weights, for the tests"),
        "7b": ModelInfo("llava-hf/llava-1.5-7b-hf", "Llama 2 Community"),
    },
    capabilities=frozenset({"chat"}),
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
