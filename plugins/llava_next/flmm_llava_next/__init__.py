"""LLaVA-Next (LLaVA-1.6) for flmm: facts only, no torch. See `views.py` and `backbone.py`."""

from __future__ import annotations

from flmm_core import TOY_DEFAULTS, BackboneSpec, ModelInfo, OriginalInfo, hookimpl

SPEC = BackboneSpec(
    name="llava_next",
    target="flmm_llava_next.backbone:LlavaNextBackbone",
    summary="LLaVA-Next: two views, the whole image at 24 x 24 and its tiles reassembled",
    models={
        "tiny": ModelInfo(
            source="flmm_llava_next:tiny",
            license="Apache-2.0",
            summary="toy model that knows drawn shapes, shipped in the package",
            defaults=TOY_DEFAULTS,
        ),
        "vicuna-7b": ModelInfo("llava-hf/llava-v1.6-vicuna-7b-hf", "Llama 2 Community"),
        "vicuna-13b": ModelInfo("llava-hf/llava-v1.6-vicuna-13b-hf", "Llama 2 Community"),
        "mistral-7b": ModelInfo("llava-hf/llava-v1.6-mistral-7b-hf", "Apache-2.0"),
        "llama3-8b": ModelInfo("llava-hf/llama3-llava-next-8b-hf", "Llama 3 Community"),
    },
    capabilities=frozenset({"chat"}),
    original=OriginalInfo(
        ("llava.",),
        differs="The fine view lies exactly where it is on the image; the original takes it for the"
        " whole image, which is up to half a cell off.",
    ),
    converted={
        "llava_llama": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "llava_mistral": "llava-hf/llava-v1.6-mistral-7b-hf",
        "LlavaLlamaForCausalLM": "llava-hf/llava-v1.6-vicuna-7b-hf",
        "LlavaMistralForCausalLM": "llava-hf/llava-v1.6-mistral-7b-hf",
    },
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
