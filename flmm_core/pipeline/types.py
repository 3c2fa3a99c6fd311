"""What passes from stage to stage: frozen dataclasses, no dicts with string keys.

The legend of shape letters is in `flmm_core.pipeline`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from flmm_core.segment import Segment as Segment

Box = tuple[float, float, float, float]
"""(y0, x0, y1, x1) in fractions of the image's height and width."""

WHOLE_PICTURE: Box = (0.0, 0.0, 1.0, 1.0)


@dataclass(frozen=True)
class ImageView:
    """Where one view of the image lies: in the sequence, and on the image.

    Attributes:
        name: "image", "coarse", "fine", ...
        token_index: (h, w) int64; the place in the (unpadded) sequence of the token for cell
            (r, c), row 0 on top.
        image_box: (y0, x0, y1, x1), where the grid lies in the image, in fractions of its
            height and width; beyond [0, 1] where the view shows padding, within where it cuts.
    """

    name: str
    token_index: Tensor
    image_box: Box = WHOLE_PICTURE


@dataclass(frozen=True)
class BackboneInputs:
    """One sample, ready for the VLM: CPU tensors, no weights were needed to make it.

    Attributes:
        tensors: What the VLM's forward takes, by keyword; with `input_ids` (S,) and without a
            batch dimension on any per-token tensor.
        views: In channel order.
        phrase_rows: Per phrase, (T_p,) int64 places of its tokens in the sequence, T_p >= 1.
        phrases: The words of each phrase.
        image_hw: Height and width of the image in pixels.
        name: Names the sample in messages.
        prompt_length: Number of tokens before the caption.
    """

    tensors: Mapping[str, Tensor]
    views: tuple[ImageView, ...]
    phrase_rows: tuple[Tensor, ...]
    phrases: tuple[str, ...]
    image_hw: tuple[int, int]
    name: str = ""
    prompt_length: int = 0


@dataclass(frozen=True)
class Captions:
    """The captions of samples, apart from their prompts.

    Attributes:
        prompt: (B,) int64, which of the batch's prompts each caption follows.
        input_ids: (B, S_caption), padded on the right.
        attention_mask: (B, S_caption), 0 at padding.
    """

    prompt: Tensor
    input_ids: Tensor
    attention_mask: Tensor

    def pin_memory(self) -> Captions:
        """The same, page-locked."""
        tensors = (self.prompt, self.input_ids, self.attention_mask)
        return Captions(*(value.pin_memory() for value in tensors))


@dataclass(frozen=True)
class BackboneBatch:
    """Samples padded together.

    Attributes:
        tensors: What the VLM's forward takes, with `input_ids` and `attention_mask` (B, S); with
            `captions`, each different prompt once: (U, S_prompt).
        samples: The samples it was made of, in order.
        offsets: Per sample, how many padding tokens stand before its first token.
        captions: Where samples share an image, what follows the prompts.
    """

    tensors: Mapping[str, Tensor]
    samples: tuple[BackboneInputs, ...]
    offsets: tuple[int, ...]
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def pin_memory(self) -> BackboneBatch:
        """The same with what goes to the VLM's device page-locked."""
        pinned = {key: value.pin_memory() for key, value in self.tensors.items()}
        captions = None if self.captions is None else self.captions.pin_memory()
        return replace(self, tensors=pinned, captions=captions)


@dataclass(frozen=True)
class Trace:
    """What stage 1 read off the frozen VLM for one sample.

    Attributes:
        attention: (L, N, P, M) float32 probabilities: each phrase's attention, pooled over its
            tokens, onto the M image tokens: the cells of all views, row-major, view after view.
        hidden: (L, T, D) the wanted rows' hidden states after each layer (the last one after the
            final norm), without gradient; (1, T, D) where they were summed by weights.
        row_phrase: (T,) int64, the phrase that each row of `hidden` belongs to, ascending.
        views: As in the inputs.
        image_hw: Height and width of the image in pixels.
    """

    attention: Tensor
    hidden: Tensor
    row_phrase: Tensor
    views: tuple[ImageView, ...]
    image_hw: tuple[int, int]

    @property
    def phrases(self) -> int:
        """P."""
        return self.attention.shape[2]


@dataclass(frozen=True)
class AttentionMaps:
    """What stage 2 gives for one sample.

    Attributes:
        maps: (P, C, h, w) float32, each map sums to 1 over its own view.
        image_box: Where that grid lies in the image.
    """

    maps: Tensor
    image_box: Box


@dataclass(frozen=True)
class EncodedImage:
    """What SAM's frozen image encoder says of an image.

    Attributes:
        embedding: (E, g, g).
        input_hw: Height and width of the part of SAM's square that the image fills, in pixels.
    """

    embedding: Tensor
    input_hw: tuple[int, int]

    def pin_memory(self) -> EncodedImage:
        """The same, page-locked."""
        return replace(self, embedding=self.embedding.pin_memory())


@dataclass(frozen=True)
class Features:
    """What the frozen parts say of one sample: all that the trained parts read.

    Attributes:
        maps: The attention maps, of the channels that the head takes.
        hidden: (L, T, D) as in `Trace`; (0, T, 0) where a stored one was kept without.
        row_phrase: (T,) int64 as in `Trace`.
        image: For the refiner, or None where it needs none.
        image_hw: Height and width of the image in pixels.
    """

    maps: AttentionMaps
    hidden: Tensor
    row_phrase: Tensor
    picture: EncodedImage | None
    image_hw: tuple[int, int]

    @property
    def phrases(self) -> int:
        """P."""
        return len(self.maps.maps)

    def pin_memory(self) -> Features:
        """The same with page-locked tensors, for a DataLoader."""
        return replace(
            self,
            maps=replace(self.maps, maps=self.maps.maps.pin_memory()),
            hidden=self.hidden.pin_memory(),
            picture=self.picture and self.picture.pin_memory(),
        )


@dataclass(frozen=True)
class Grounding:
    """What the flow gives for one sample.

    Attributes:
        coarse_logits: (P, h, w) the mask head's, covering exactly the image.
        logits: (P, H, W) the refined masks' at the image's size; `logits > 0` is the mask.
        maps: The attention maps that they were made of, for images and inspection.
    """

    coarse_logits: Tensor
    logits: Tensor
    maps: AttentionMaps

    @property
    def masks(self) -> Tensor:
        """(P, H, W) bool."""
        return self.logits > 0

    @property
    def scores(self) -> Tensor:
        """(P,) mean probability over each mask's pixels, 0 where the mask is empty."""
        probs, masks = self.logits.float().sigmoid(), self.masks
        total = (probs * masks).flatten(1).sum(1)
        return total / masks.flatten(1).sum(1).clamp(min=1).to(torch.float32)

    @property
    def evidence(self) -> Tensor:
        """(P,) how much speaks for each mask, 0 to 1: `scores` times how the two stages agree.

        A refiner that was led astray may be sure of its mask, but then it leaves the coarse one.
        The agreement is the dice of both probabilities: cut off at one half first, as an IoU,
        it tells right masks from wrong ones less well.
        """
        agreement = self.scores.clone()
        # One at a time: images can be huge.
        for index, (coarse, logits) in enumerate(zip(self.coarse_logits, self.logits, strict=True)):
            probs, fine = coarse.float().sigmoid()[None, None], logits.float().sigmoid()
            rough = F.interpolate(probs, fine.shape, mode="bilinear")[0, 0]
            agreement[index] *= 2 * (rough * fine).sum() / (rough + fine).sum().clamp(min=1e-9)
        return agreement
