"""The frozen half of the flow: image + caption -> Features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.pipeline.attention_maps import attention_maps
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.fingerprint import Fingerprint
from flmm_core.pipeline.backbone.recorder import Pool
from flmm_core.pipeline.backbone.shared_prefix import PrefixCache
from flmm_core.pipeline.finite import check_features
from flmm_core.pipeline.refiners.base import ImageEncoder
from flmm_core.pipeline.types import (
    AttentionMaps,
    BackboneBatch,
    BackboneInputs,
    EncodedImage,
    Features,
    Trace,
    VlmShape,
)
from flmm_core.segment import Segment


@dataclass(frozen=True)
class ObserverInputs:
    """One sample on the CPU, ready for the VLM and for the image encoder, if there is one."""

    backbone: BackboneInputs
    image: Tensor | None


@dataclass(frozen=True)
class ObserverBatch:
    """Samples that are observed together.

    Attributes:
        images: For the image encoder, each image once.
        image_of: Per sample, the index of its image in `images`; empty without an encoder.
    """

    backbone: BackboneBatch
    images: tuple[Tensor, ...]
    image_of: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.backbone)

    def pin_memory(self) -> ObserverBatch:
        """The same with page-locked tensors, for a DataLoader."""
        images = tuple(image.pin_memory() for image in self.images)
        return replace(self, backbone=self.backbone.pin_memory(), images=images)


@dataclass(frozen=True, eq=False)
class Seen:
    """What an observer has made of an image, for `observe` of one caption after another.

    Attributes:
        inputs: A sample without a caption, which others are prepared `like`.
        encoded: The image for the refiner; None if it needs none.
        prefix: The KV cache of image and prompt; None where captions cannot go on from it.
    """

    inputs: ObserverInputs
    encoded: EncodedImage | None
    prefix: PrefixCache | None


@dataclass(frozen=True)
class Observer:
    """A frozen VLM and the refiner's frozen image encoder.

    No `nn.Module`: its weights can reach neither an optimizer nor a checkpoint. Pickled, it leaves
    them behind; what is left can `prepare` and `collate`, which DataLoader workers do.

    Attributes:
        backbone: The frozen VLM.
        encoder: The refiner's image encoder; None if the refiner needs no image.
        pool: How the attention of a phrase's tokens becomes one map, "mean" or "max".
        ends: How many last tokens of each phrase have maps of their own, beside the mean.
        channels: The attention channels that are kept, in this order; empty means all.
        one_by_one: Observe sample by sample. The features of a sample then do not depend on its
            companions, whose padding changes the last bits of sums.
        fingerprint: What the VLM did with a drawn image; None if it was not looked at.
    """

    backbone: Backbone
    encoder: ImageEncoder | None = None
    pool: Pool = "mean"
    ends: int = 0
    channels: tuple[int, ...] = ()
    one_by_one: bool = False
    fingerprint: Fingerprint | None = None

    @property
    def vlm(self) -> VlmShape:
        """The shape of the VLM."""
        vlm = self.backbone
        return VlmShape(vlm.num_layers, vlm.num_heads, vlm.hidden_size, tuple(vlm.view_names))

    @property
    def device(self) -> torch.device:
        """Where the VLM runs."""
        return self.backbone.device

    def prepare(
        self,
        image: Image.Image,
        segments: Sequence[Segment],
        *,
        prompt: str | None = None,
        name: str = "",
        like: ObserverInputs | None = None,
    ) -> ObserverInputs:
        """One sample, ready to be observed; needs no weights and runs in DataLoader workers.

        Args: as for `Backbone.prepare`. The image of a sample `like` is encoded once for both.
        """
        known = None if like is None else like.backbone
        inputs = self.backbone.prepare(image, segments, prompt=prompt, name=name, like=known)
        if like is not None:
            encoded = like.image
        else:
            encoded = None if self.encoder is None else self.encoder.prepare(image)
        return ObserverInputs(inputs, encoded)

    @torch.no_grad()
    def see(self, image: Image.Image, *, prompt: str | None = None) -> Seen:
        """Run what does not depend on a caption."""
        inputs = self.prepare(image, (), prompt=prompt)
        (encoded,) = self._encode(self.collate([inputs]))
        return Seen(inputs, encoded, self.backbone.see(inputs.backbone))

    def collate(
        self, samples: Sequence[ObserverInputs], *, seen: Seen | None = None
    ) -> ObserverBatch:
        """One batch of at least one sample; those prepared `like` another share its image."""
        images: list[Tensor] = []
        image_of = []
        for sample in samples:
            if sample.image is not None:
                known = (place for place, image in enumerate(images) if image is sample.image)
                image_of.append(next(known, len(images)))
                if image_of[-1] == len(images):
                    images.append(sample.image)
        backbone = self._together([sample.backbone for sample in samples], seen)
        return ObserverBatch(backbone, tuple(images), tuple(image_of))

    @torch.no_grad()
    def observe(
        self,
        batch: ObserverBatch,
        *,
        layer_weights: Sequence[float] | None = None,
        captions: bool = False,
        seen: Seen | None = None,
    ) -> tuple[Features, ...]:
        """One `Features` per sample; for `layer_weights` and `captions` see `Backbone.trace`.

        With `seen`, all samples are about that image, prepared `like` its inputs and collated
        with it.

        Raises:
            RunError: Values are not finite, as after an overflow in float16.
        """
        images = self._encode(batch) if seen is None else (seen.encoded,) * len(batch)
        singles = [batch.backbone]
        if self.one_by_one:
            singles = [self._together([sample], seen) for sample in batch.backbone.samples]
        # a plugin's own `trace` may not know what it is not asked for
        more: dict[str, Any] = {"ends": self.ends} if self.ends else {}
        if seen is not None and seen.prefix is not None:
            more["seen"] = seen.prefix
        traces = [
            trace
            for single in singles
            for trace in self.backbone.trace(
                single, pool=self.pool, layer_weights=layer_weights, captions=captions, **more
            )
        ]
        names = [sample.name for sample in batch.backbone.samples]
        return self.features(traces, images, names)

    def features(
        self,
        traces: Sequence[Trace],
        images: Sequence[EncodedImage | None],
        names: Sequence[str],
    ) -> tuple[Features, ...]:
        """One `Features` per trace, with the encoded image of each.

        Raises:
            RunError: Values are not finite, as after an overflow in float16.
        """
        features = []
        for trace, image in zip(traces, images, strict=True):
            maps = self.chosen(attention_maps(trace))
            states = trace.hidden, trace.row_phrase
            features.append(Features(maps, *states, image, trace.image_hw, trace.caption))
        check_features(features, names, self.backbone.vlm.dtype)
        return tuple(features)

    def chosen(self, maps: AttentionMaps) -> AttentionMaps:
        """Of the maps of all channels those of `channels`."""
        if not self.channels:
            return maps
        return maps.each(lambda every: every[..., list(self.channels), :, :])

    @torch.no_grad()
    def encode(self, image: Image.Image) -> EncodedImage | None:
        """An image for the refiner; None without an encoder."""
        if self.encoder is None:
            return None
        return self.encoder.encode([self.encoder.prepare(image)])[0]

    def _together(self, samples: Sequence[BackboneInputs], seen: Seen | None) -> BackboneBatch:
        if seen is None or seen.prefix is None:
            return self.backbone.collate(samples)
        return self.backbone.collate(samples, apart=True)

    def _encode(self, batch: ObserverBatch) -> Sequence[EncodedImage | None]:
        """Per sample, its encoded image."""
        if self.encoder is None:
            return (None,) * len(batch)
        at_once = 1 if self.one_by_one else max(1, len(batch.images))
        encoded: list[EncodedImage] = []
        for start in range(0, len(batch.images), at_once):
            encoded += self.encoder.encode(batch.images[start : start + at_once])
        return [encoded[place] for place in batch.image_of]
