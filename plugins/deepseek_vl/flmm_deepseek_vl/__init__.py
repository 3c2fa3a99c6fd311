"""DeepSeek-VL for flmm: facts only, no torch. See `views.py` and `backbone.py`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from flmm_core import TOY_DEFAULTS, BackboneOptions, BackboneSpec, ModelInfo, OriginalInfo, hookimpl


class DeepseekVLOptions(BackboneOptions):
    """How images are resized."""

    resize: Literal["rounded", "original"] = Field(
        "rounded",
        description="Round the size of the resized image, as transformers does, or cut it off, as"
        " DeepSeek's own code does, with which heads of the original F-LMM were trained.",
    )


SPEC = BackboneSpec(
    name="deepseek_vl",
    target="flmm_deepseek_vl.backbone:DeepseekVLBackbone",
    summary="DeepSeek-VL: one view, 24 x 24, the image padded to a square",
    models={
        "tiny": ModelInfo(
            source="flmm_deepseek_vl:tiny",
            license="Apache-2.0",
            summary="toy model that knows drawn shapes, shipped in the package",
            defaults=TOY_DEFAULTS,
        ),
        "1.3b-chat": ModelInfo("deepseek-community/deepseek-vl-1.3b-chat", "DeepSeek Model"),
        "1.3b-base": ModelInfo("deepseek-community/deepseek-vl-1.3b-base", "DeepSeek Model"),
        "7b-chat": ModelInfo("deepseek-community/deepseek-vl-7b-chat", "DeepSeek Model"),
        "7b-base": ModelInfo("deepseek-community/deepseek-vl-7b-base", "DeepSeek Model"),
    },
    capabilities=frozenset({"chat"}),
    original=OriginalInfo(("deepseek_vl.",), {"resize": "original"}),
    options=DeepseekVLOptions,
    converted={"multi_modality": "deepseek-community/deepseek-vl-1.3b-chat"},
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
