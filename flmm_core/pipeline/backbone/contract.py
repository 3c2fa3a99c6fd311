"""The part of a backbone that a plugin declares or overrides."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image
from torch import Tensor

from flmm_core.pipeline.backbone import weights
from flmm_core.pipeline.backbone.auto_classes import auto_classes
from flmm_core.pipeline.backbone.batch import stack_padded
from flmm_core.pipeline.backbone.recorder import AttentionRecorder
from flmm_core.pipeline.backbone.view_check import misfit
from flmm_core.pipeline.types import ImageView
from flmm_core.spec import BackboneOptions, BackboneSpec

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.measured import MeasuredViews


class Contract:
    """What a subclass may say about its family; every item has a default.

    Attributes:
        model_types: The `model_type`s of config.json that this class can load.
        view_names: The views of an image, in channel order: a tuple, or a property that may read
            `config`. Without, it is `("image",)` if there is a `views`, or else what is measured.
        image_token: The token that the image's features replace, `image_token_id` its id. A plugin
            need name it only where neither config nor processor leads to it.
        processor_types: The classes of processor that it was written for; empty means any.
        shares_prefixes: Whether samples about one image share one pass of image and prompt.
            A subclass whose VLM cannot continue from a KV cache sets it to False.
        config: The VLM's, once it is loaded; so are `processor` and the plugin's own `options`.
        measured: The measured geometry; None where the plugin has its own `views`.
    """

    model_types: ClassVar[tuple[str, ...]] = ()
    view_names: tuple[str, ...] = ()
    image_token: str = ""
    processor_types: ClassVar[tuple[str, ...]] = ()
    shares_prefixes: ClassVar[bool] = True

    spec: BackboneSpec
    image_token_id: int
    config: Any
    processor: Any
    options: BackboneOptions
    measured: MeasuredViews | None = None

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        """(vlm, processor) by `from_pretrained`; `load` freezes the VLM and moves it.

        By default `load_pretrained` with transformers' auto classes. Where the geometry is to be
        measured, that is done first: a model that is refused is not downloaded.

        Args:
            source: A folder or a hub id; `options` are the plugin's own settings.
            kwargs: For the model's `from_pretrained`: `dtype`, `trust_remote_code` and what the
                caller passed through (`device_map`, `quantization_config`, `revision`, ...).
        """
        classes = auto_classes(source, **kwargs)
        if cls.views is Contract.views and kwargs.get("device_map") != "meta":
            sketch, processor = weights.load_pretrained(
                source, *classes, **{**kwargs, "device_map": "meta", "quantization_config": None}
            )
            check_measurable(sketch, processor)
        return weights.load_pretrained(source, *classes, **kwargs)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        """The geometry of one sample's image tokens: a view for each of `view_names`, in order.

        By default measured. Views that `Requirements.optional_views` names may be left out for an
        image; the first view then stands for them, so that the number of channels stays the same.

        Args:
            input_ids: (S,) the whole sequence; `image_token_positions` finds the image's tokens.
            image_hw: Height and width of the image in pixels.
            tensors: The image's tensors, as the processor returned them.

        Raises:
            DataError: The image cannot be used. Any other error is taken for the plugin's.
        """
        assert self.measured is not None  # there is no other `views`
        found = self.measured.at(image_hw, self.view_names)
        positions = self.image_token_positions(input_ids, found.image_tokens)
        return tuple(replace(v, token_index=positions[v.token_index]) for v in found.views)

    def found(self) -> str:
        """What loading found out about the model, for the user: a paragraph; empty for nothing."""
        return ""

    def separator_tokens(self, views: Sequence[ImageView]) -> int:
        """How many image tokens belong to no cell, such as line ends."""
        return sum(view.separators for view in views)

    def join(self, name: str, values: Sequence[Tensor]) -> Tensor:
        """One batch of a tensor of images (pixels, sizes, grids).

        By default concatenated along dimension 0, zero-padded in the others where they differ.
        """
        return stack_padded(values)

    def image_token_positions(self, input_ids: Tensor, expected: int) -> Tensor:
        """(expected,) int64 positions of the image tokens in the sequence.

        Raises:
            DataError: There are more or fewer.
        """
        positions = (input_ids == self.image_token_id).nonzero().flatten()
        if len(positions) != expected:
            found = f"The sequence holds {len(positions)} image tokens; expected {expected}."
            raise misfit(found, self.spec.target)
        return positions

    def shrunk(self, image: Image.Image) -> Image.Image:
        """A large image made smaller, if the VLM sees the same pixels: processors copy theirs."""
        return image


def check_measurable(vlm: Any, processor: Any) -> None:
    """Refuse a model whose attention cannot be recorded or whose geometry cannot be measured.

    Args:
        vlm: Its weights are not read.

    Raises:
        UsageError: Its decoder is of another architecture.
        WeightsError: It is not certain where its image tokens are.
    """
    from flmm_core.pipeline.backbone.measured import MeasuredViews

    AttentionRecorder(vlm.get_decoder())
    MeasuredViews(vlm.config, processor).names()
