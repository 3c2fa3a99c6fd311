"""What is known about the image tokens of images of one size."""

from __future__ import annotations

from dataclasses import dataclass

from flmm_core.pipeline.types import ImageView


@dataclass(frozen=True)
class Measured:
    """Where the tokens of images of one size lie.

    Attributes:
        views: Their `token_index` counts among the image tokens of one image: 0 to M-1.
        image_tokens: M, the tokens of an image in the sequence that have the image token's id.
        separators: How many of them belong to no cell: they depend on no pixel.
        residual: The largest distance of a token from its cell's center, in cells.
    """

    views: tuple[ImageView, ...]
    image_tokens: int
    separators: int
    residual: float

    @property
    def view_names(self) -> tuple[str, ...]:
        """ "image"; "coarse" and "fine"; or "view0" and so on if there are more."""
        return tuple(view.name for view in self.views)
