"""The LLaVA family for flmm: facts only, no torch. See `views.py` and `backbone.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flmm_core import TOY_DEFAULTS, BackboneOptions, BackboneSpec, ModelInfo, OriginalInfo, hookimpl


class LlavaOptions(BackboneOptions):
    """How LLaVA-1.5 makes an image square; the others see it whole whatever its sides."""

    square: Literal["crop", "pad"] = Field(
        "crop",
        description="LLaVA-1.5 only: cut out the middle square, as the published processor does, or"
        " pad the image to a square, as LLaVA was trained; what is cut off gets no mask.",
    )


SPEC = BackboneSpec(
    name="llava_next",
    target="flmm_llava_next.backbone:LlavaBackbone",
    summary="LLaVA-1.5: one view; LLaVA-Next and OneVision: the whole image, and its tiles",
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
        "1.5-7b": ModelInfo("llava-hf/llava-1.5-7b-hf", "Llama 2 Community"),
        "1.5-13b": ModelInfo("llava-hf/llava-1.5-13b-hf", "Llama 2 Community"),
        "onevision-0.5b": ModelInfo("llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "Apache-2.0"),
        "onevision-7b": ModelInfo("llava-hf/llava-onevision-qwen2-7b-ov-hf", "Apache-2.0"),
    },
    capabilities=frozenset({"chat"}),
    original=OriginalInfo(
        ("llava.",),
        differs="The fine view lies exactly where it is on the image; the original takes it for the"
        " whole image, which is up to half a cell off.",
    ),
    options=LlavaOptions,
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
