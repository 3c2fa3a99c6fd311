"""Stage 4: sharpen the coarse masks. The core's own refiners, declared as any plugin's are."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from flmm_core.hookspecs import hookimpl
from flmm_core.spec import RefinerOptions, RefinerSpec


class PromptOptions(RefinerOptions):
    """What a promptable segmenter is prompted with, and how it computes."""

    size: str
    mask: bool = Field(True, description="Prompt with the coarse mask.")
    box: bool = Field(True, description="Prompt with the bounding box of the coarse mask.")
    text: bool = Field(True, description="Prompt with the hidden states of the phrase.")
    multimask: bool = Field(
        False, description="Predict three masks and keep the one closest to the coarse mask."
    )
    half: bool = Field(False, description="Encode images in bfloat16.")

    @model_validator(mode="after")
    def _prompted(self) -> Self:
        if not (self.mask or self.box or self.text):
            raise ValueError("SAM needs at least one kind of prompt: mask, box or text")
        return self

    def prompting(self) -> dict[str, bool]:
        """The arguments of `PromptedRefiner` by name."""
        names = "mask", "box", "text", "multimask"
        return {name: getattr(self, name) for name in names}


class SamOptions(PromptOptions):
    """Which SAM, what it is prompted with, and how it computes."""

    size: Literal["tiny", "vit_b", "vit_l", "vit_h"] = Field(
        "tiny", description="SAM's size; vit_b, vit_l and vit_h need --refiner-weights."
    )


class Sam2Options(PromptOptions):
    """Which SAM 2, what it is prompted with, and how it computes."""

    size: Literal["tiny", "hiera_t", "hiera_s", "hiera_b+", "hiera_l"] = Field(
        "tiny",
        description="SAM 2's size; all but tiny need --refiner-weights: a transformers folder or"
        " hub id, or Meta's .pt file.",
    )


SPECS = [
    RefinerSpec(
        name="none",
        target="flmm_core.pipeline.refiners.none:NoRefiner",
        summary="no refinement: the coarse masks at the image's size",
    ),
    RefinerSpec(
        name="sam",
        target="flmm_core.pipeline.refiners.sam:SamRefiner",
        summary="Segment Anything: frozen image encoder, trained prompt encoder and mask decoder",
        options=SamOptions,
        shorthand="size",
        license="Apache-2.0",
    ),
    RefinerSpec(
        name="sam2",
        target="flmm_core.pipeline.refiners.sam2:Sam2Refiner",
        summary="Segment Anything 2.1: frozen encoder, trained prompt encoder and mask decoder",
        options=Sam2Options,
        shorthand="size",
        license="Apache-2.0",
    ),
]


@hookimpl
def flmm_refiners() -> list[RefinerSpec]:
    return SPECS
