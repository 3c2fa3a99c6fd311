"""One image, read once, and phrases in it as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from PIL import Image

from flmm_core.pipeline.observer import Seen
from flmm_core.pipeline.result import Result

if TYPE_CHECKING:
    from flmm_core.pipeline.grounder import Grounder


@dataclass(frozen=True, eq=False, repr=False)
class Look:
    """An image that a VLM has read, made by `Grounder.look`.

    What it holds is on the VLM's device: the image as the refiner encoded it, and the KV cache of
    image and prompt. A phrase costs its own few tokens, its mask and its files. Where a VLM cannot
    go on from its cache, it reads the image again, and only the refiner does not.

    Attributes:
        grounder: What made it.
        image: RGB, upright.
        seen: What is known of the image.
    """

    grounder: Grounder
    image: Image.Image
    seen: Seen

    def ground(
        self,
        phrases: Sequence[str],
        *,
        together: bool = False,
        keep_absent: bool = False,
        batch_size: int = 8,
    ) -> Result:
        """Masks of phrases, those of `Grounder.ground` up to rounding; args and errors as there."""
        asked = self.grounder.prepare(self.image, phrases, together=together, like=self.seen.inputs)
        (result,) = self.grounder.ground_prepared([asked], batch_size=batch_size, seen=self.seen)
        return result if keep_absent else self.grounder.without_absent(result)
