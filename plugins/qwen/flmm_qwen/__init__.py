"""The Qwen-VL family for flmm: facts only, no torch. See `views.py` and `backbone.py`."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from flmm_core import TOY_DEFAULTS, BackboneOptions, BackboneSpec, ModelInfo, OriginalInfo, hookimpl


class QwenOptions(BackboneOptions):
    """Limits of the size that an image is resized to.

    A token covers 28 x 28 pixels of the resized image, or 32 x 32 in Qwen3-VL.
    """

    min_pixels: int | None = Field(
        None, ge=1, description="Enlarge smaller images to this many pixels (height x width)."
    )
    max_pixels: int | None = Field(
        None, ge=1, description="Shrink larger images to this many pixels (height x width)."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(f"min_pixels {self.min_pixels} exceeds max_pixels {self.max_pixels}")
        return self


SPEC = BackboneSpec(
    name="qwen",
    target="flmm_qwen.backbone:QwenBackbone",
    summary="Qwen2-VL, Qwen2.5-VL, Qwen3-VL: one view, whose grid grows with the image",
    models={
        "tiny": ModelInfo(
            source="flmm_qwen:tiny",
            license="Apache-2.0",
            summary="toy model that knows drawn shapes, shipped in the package",
            defaults=TOY_DEFAULTS,
        ),
        "3-tiny": ModelInfo(
            source="flmm_qwen:tiny_qwen3_vl",
            license="Apache-2.0",
            summary="the same of Qwen3-VL",
            defaults={**TOY_DEFAULTS, "head.pool": "mean"},
        ),
        "3b": ModelInfo("Qwen/Qwen2.5-VL-3B-Instruct", "Qwen Research (non-commercial)"),
        "7b": ModelInfo("Qwen/Qwen2.5-VL-7B-Instruct", "Apache-2.0"),
        "32b": ModelInfo("Qwen/Qwen2.5-VL-32B-Instruct", "Apache-2.0"),
        "72b": ModelInfo("Qwen/Qwen2.5-VL-72B-Instruct", "Qwen"),
        "2-2b": ModelInfo("Qwen/Qwen2-VL-2B-Instruct", "Apache-2.0"),
        "2-7b": ModelInfo("Qwen/Qwen2-VL-7B-Instruct", "Apache-2.0"),
        "2-72b": ModelInfo("Qwen/Qwen2-VL-72B-Instruct", "Qwen"),
        "3-2b": ModelInfo("Qwen/Qwen3-VL-2B-Instruct", "Apache-2.0"),
        "3-4b": ModelInfo("Qwen/Qwen3-VL-4B-Instruct", "Apache-2.0"),
        "3-8b": ModelInfo("Qwen/Qwen3-VL-8B-Instruct", "Apache-2.0"),
        "3-32b": ModelInfo("Qwen/Qwen3-VL-32B-Instruct", "Apache-2.0"),
    },
    capabilities=frozenset({"chat"}),
    original=OriginalInfo(("qwen_model.",)),
    options=QwenOptions,
)


@hookimpl
def flmm_backbones() -> list[BackboneSpec]:
    return [SPEC]
