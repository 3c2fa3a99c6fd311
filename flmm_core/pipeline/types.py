"""What passes from stage to stage: frozen dataclasses, no dicts with string keys.

The legend of shape letters is in `flmm_core.pipeline`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor

from flmm_core.pipeline.mask_logits import MaskLogits, judge
from flmm_core.pipeline.resample import WHOLE_IMAGE as WHOLE_IMAGE
from flmm_core.pipeline.resample import Box as Box
from flmm_core.pipeline.vlm_shape import VlmShape as VlmShape
from flmm_core.segment import Segment as Segment


@dataclass(frozen=True)
class ImageView:
    """The location of one view ("image", "coarse", "fine"), in the sequence and in the image.

    Attributes:
        token_index: (h, w) int64; the position in the (unpadded) sequence of the token of cell
            (r, c), row 0 on top.
        image_box: (y0, x0, y1, x1), the box of the grid in fractions of the image's height and
            width; it extends beyond [0, 1] where the view shows padding.
        separators: How many of the image's tokens belong to the view and to no cell: line ends.
    """

    name: str
    token_index: Tensor
    image_box: Box = WHOLE_IMAGE
    separators: int = 0


def continued(
    tokens: Mapping[str, Tensor], answer: Tensor, apart: bool = False
) -> dict[str, Tensor]:
    """Per-token tensors by keyword, (S,) each, with the tokens (T,) of an answer after them.

    Token types continue with 0, which is text, or where answers are `apart` with 1.
    """
    following = {"input_ids": answer, "attention_mask": torch.ones_like(answer)}
    text = torch.full_like(answer, int(apart))
    return {
        key: torch.cat([value, following.get(key, text).to(value.dtype)])
        for key, value in tokens.items()
    }


@dataclass(frozen=True, eq=False)
class Prefix:
    """An image and a prompt as tokens; in a batch the VLM runs it once for all that hold it.

    Attributes:
        tokens: Per-token tensors by keyword, (S_prefix,) each; always with `input_ids`.
        image: The image's tensors by keyword, such as `pixel_values`.
        turns: The conversation before the answer, as a chat template takes it.
        text_ids: The token ids of its text alone, where an image is one placeholder.
        tail: How many tokens at the end are the same in `tokens` and in `text_ids`, and no image.
        apart: Whether an answer is a text of its own; see `Requirements.bidirectional_prefix`.
    """

    tokens: Mapping[str, Tensor]
    image: Mapping[str, Tensor]
    turns: tuple[Mapping[str, Any], ...]
    text_ids: tuple[int, ...]
    tail: int
    apart: bool = False

    def __len__(self) -> int:
        return len(self.tokens["input_ids"])


@dataclass(frozen=True)
class BackboneInputs:
    """One sample, ready for the VLM: CPU tensors, made without weights.

    Attributes:
        prefix: The image and the prompt.
        start: The position of the caption's first token. Where the prompt's last characters and
            the caption's first merge into one token, it is before the end of the prefix.
        caption: (S_caption,) int64 token ids that follow the first `start` of the prefix.
        views: In channel order.
        phrase_rows: Per phrase, (T_p,) int64 positions of its tokens in the sequence, T_p >= 1.
        image_hw: Height and width of the image in pixels.
        name: Names the sample in messages.
        offsets: Per token of the caption, (start, end) of the characters of the whole caption
            that it covers; empty where pieces are tokenized one by one.
    """

    prefix: Prefix
    start: int
    caption: Tensor
    views: tuple[ImageView, ...]
    phrase_rows: tuple[Tensor, ...]
    image_hw: tuple[int, int]
    name: str = ""
    offsets: tuple[tuple[int, int], ...] = ()

    def __len__(self) -> int:
        """S, the tokens of prefix and caption."""
        return self.start + len(self.caption)

    @property
    def tokens(self) -> dict[str, Tensor]:
        """Per-token tensors of the whole sequence by keyword, (S,) each."""
        before = {key: value[: self.start] for key, value in self.prefix.tokens.items()}
        return continued(before, self.caption, self.prefix.apart)

    @property
    def tensors(self) -> dict[str, Tensor]:
        """What the VLM's forward takes, by keyword, without a batch dimension on the tokens."""
        return {**self.tokens, **self.prefix.image}


@dataclass(frozen=True)
class Captions:
    """The captions of a batch, apart from their prefixes; (B, S_caption), padded on the right.

    `prefix` (B,) int64 says which of the batch's prefixes each caption follows.
    """

    prefix: Tensor
    input_ids: Tensor
    attention_mask: Tensor


@dataclass(frozen=True)
class BackboneBatch:
    """Samples padded together.

    Attributes:
        tensors: What the VLM's forward takes, with `input_ids` and `attention_mask` (B, S); with
            `captions`, each distinct prefix once: (U, S_prefix).
        samples: Those it was made of, in order.
        offsets: Per sample, how many padding tokens stand before its first token.
        captions: If samples share a prefix, what follows the prefixes.
    """

    tensors: Mapping[str, Tensor]
    samples: tuple[BackboneInputs, ...]
    offsets: tuple[int, ...]
    captions: Captions | None = None

    def __len__(self) -> int:
        return len(self.samples)

    def pin_memory(self) -> BackboneBatch:
        """The same, with what goes to the VLM's device in page-locked memory."""
        pinned = {key: value.pin_memory() for key, value in self.tensors.items()}
        captions = self.captions
        if captions is not None:
            captions = Captions(*(value.pin_memory() for value in vars(captions).values()))
        return replace(self, tensors=pinned, captions=captions)


@dataclass(frozen=True)
class CaptionStates:
    """What the VLM made of each of the T tokens of a whole caption.

    Attributes:
        hidden: (L, T, D) as in `Trace`, of all layers.
        offsets: As in `BackboneInputs`.
        phrase: (T,) int64, the first phrase that a token belongs to, or -1.
    """

    hidden: Tensor
    offsets: tuple[tuple[int, int], ...]
    phrase: Tensor


@dataclass(frozen=True)
class KeywordLogits:
    """Which tokens of a caption belong to phrases to ground.

    Attributes:
        logits: (T, 2) that a token begins a phrase, and that it is in one.
        offsets: As in `BackboneInputs`.
    """

    logits: Tensor
    offsets: tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Trace:
    """What stage 1 records of the frozen VLM for one sample.

    Attributes:
        attention: (L, N, P, M) float32 probabilities: each phrase's attention, pooled over its
            tokens, onto the M image tokens: the cells of all views, row-major, view after view.
        hidden: (L, T, D) hidden states of the phrases' tokens after each layer (the last one
            after the final norm), without gradient; (1, T, D) for a weighted sum of the layers.
        row_phrase: (T,) int64, the phrase of each row of `hidden`, ascending.
        views: As in the inputs.
        image_hw: Height and width of the image in pixels.
        caption: Of the whole caption, if it was asked for.
        ends: (L, N, P, K, M) as `attention`, of each phrase's last K tokens, the very last first;
            where there are fewer, its mean.
    """

    attention: Tensor
    hidden: Tensor
    row_phrase: Tensor
    views: tuple[ImageView, ...]
    image_hw: tuple[int, int]
    caption: CaptionStates | None = None
    ends: Tensor | None = None

    @classmethod
    def of(
        cls,
        sample: BackboneInputs,
        groups: Tensor,
        attention: Tensor,
        hidden: Tensor,
        ends: Tensor | None = None,
    ) -> Self:
        """What was recorded of the rows of a sample's phrases, and of its caption if asked for.

        Args:
            groups: (T,) the phrase of each row; P for rows of the caption, which are last.
            attention: (L, N, P, M), or P + 1 with a caption, as `ends`; `hidden` is (L, T, D).
        """
        count, groups, caption = len(sample.phrase_rows), groups.to(hidden.device), None
        of_phrases = groups < count
        if not of_phrases.all():
            first = torch.full((len(sample.caption),), -1)
            for number, rows in reversed([*enumerate(sample.phrase_rows)]):
                first[rows - sample.start] = number
            caption = CaptionStates(hidden[:, ~of_phrases], sample.offsets, first)
            attention, groups = attention[:, :, :count], groups[of_phrases]
            ends = None if ends is None else ends[:, :, :count]
            hidden = hidden[:, of_phrases]
        return cls(attention, hidden, groups, sample.views, sample.image_hw, caption, ends)


@dataclass(frozen=True)
class AttentionMaps:
    """What stage 2 gives for one sample.

    Attributes:
        maps: (P, C, h, w) float32, each map sums to 1 over its own view.
        image_box: The box of the grid in the image.
        ends: (P, K, C, h, w) as `maps`, of each phrase's last K tokens as in `Trace`, or None.
    """

    maps: Tensor
    image_box: Box
    ends: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it: `maps`, then `ends` if there are any."""
        return (self.maps,) if self.ends is None else (self.maps, self.ends)

    def each(self, change: Callable[[Tensor], Tensor]) -> AttentionMaps:
        """The same with its tensors changed, one after the other."""
        return AttentionMaps(change(self.maps), self.image_box, *map(change, self.tensors[1:]))


@dataclass(frozen=True)
class EncodedImage:
    """What a refiner's frozen image encoder makes of an image.

    Attributes:
        embedding: (E, g, g).
        input_hw: Height and width of the part of the encoder's square that the image fills, in
            pixels.
        details: Maps of a higher resolution, (e, k·g, k·g) each; the first is the finest.
    """

    embedding: Tensor
    input_hw: tuple[int, int]
    details: tuple[Tensor, ...] = ()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of it: the embedding, then the details."""
        return self.embedding, *self.details

    def with_tensors(self, tensors: Iterable[Tensor]) -> EncodedImage:
        """The same with other tensors, in the order of `tensors`."""
        embedding, *details = tensors
        return replace(self, embedding=embedding, details=tuple(details))


@dataclass(frozen=True)
class Features:
    """What the frozen half of the flow knows of one sample: all that the trained half reads.

    `row_phrase` and `image_hw` as in `Trace`; `image` is None if the refiner needs none.

    Attributes:
        maps: Of the channels that the head takes.
        hidden: (L, T, D) as in `Trace`; (0, T, 0) where it was stored without.
        caption: As in `Trace`.
    """

    maps: AttentionMaps
    hidden: Tensor
    row_phrase: Tensor
    image: EncodedImage | None
    image_hw: tuple[int, int]
    caption: CaptionStates | None = None

    @property
    def phrases(self) -> int:
        """P."""
        return len(self.maps.maps)

    def of_phrases(self, which: Tensor) -> Features:
        """Those of some phrases only: `which` is (P,) bool."""
        which = which.to(self.maps.maps.device)
        rows = which[self.row_phrase.to(which.device)].to(self.row_phrase.device)
        number = (which.cumsum(0) - 1).to(self.row_phrase.device)  # (P,) among those kept
        return replace(
            self,
            maps=self.maps.each(lambda maps: maps[which]),
            hidden=self.hidden[:, rows.to(self.hidden.device)],
            row_phrase=number[self.row_phrase[rows]],
        )

    def pin_memory(self) -> Features:
        """The same with page-locked tensors, for a DataLoader."""
        image = self.image and self.image.with_tensors(map(Tensor.pin_memory, self.image.tensors))
        maps, hidden = self.maps.each(Tensor.pin_memory), self.hidden.pin_memory()
        return replace(self, maps=maps, hidden=hidden, image=image)


@dataclass(frozen=True)
class Grounding:
    """What the flow gives for one sample.

    Attributes:
        coarse_logits: (P, h, w) the mask head's, covering exactly the image.
        refined: The refined masks.
        maps: The attention maps that they were made of.
        there_logits: (P,) that the phrases name something in the image; None if the head does not
            tell.
        keywords: Of the whole caption; None if the head has no keyword selector, or its states
            were not kept.
    """

    coarse_logits: Tensor
    refined: MaskLogits
    maps: AttentionMaps
    there_logits: Tensor | None = None
    keywords: KeywordLogits | None = None

    @property
    def logits(self) -> Tensor:
        """(P, H, W) the refined masks' at the image's size, made anew at each access."""
        return self.refined.full()

    @property
    def masks(self) -> Tensor:
        """(P, H, W) bool."""
        return self.logits > 0

    @property
    def scores(self) -> Tensor:
        """(P,) mean probability over each mask's pixels, 0 where the mask is empty."""
        return self._judged[0]

    @property
    def evidence(self) -> Tensor:
        """(P,) on the CPU, how much speaks for each mask, 0 to 1.

        As `judge` says, times the probability that the phrase names something, if the head tells.
        """
        return self.weigh(self._judged[1])

    def weigh(self, evidence: Tensor, part: slice = slice(None)) -> Tensor:
        """The evidence of some masks by `judge`, (P,), times how likely their phrases are there."""
        if self.there_logits is None:
            return evidence
        return evidence * self.there_logits[part].detach().float().sigmoid().to(evidence)

    @cached_property
    def _judged(self) -> tuple[Tensor, Tensor]:
        parts = [
            judge(self.coarse_logits[part], self.refined[part]) for part in self.refined.portions()
        ]
        none = torch.zeros(0)
        scores, evidence = zip(*parts, strict=True) if parts else ([none], [none])
        return torch.cat(scores), torch.cat(evidence)
