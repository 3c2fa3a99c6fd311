"""`explain`: an image and a text, or a question, to an `Explanation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import RunError, UsageError
from flmm_core.explain.explanation import Explanation
from flmm_core.explain.heads import localization_heads
from flmm_core.explain.maps import Maps, scaled
from flmm_core.explain.reading import Portion, Reading, Split, read_reply, read_text
from flmm_core.explain.ways import chosen_channels
from flmm_core.images import to_image
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.recorder import Pool
from flmm_core.pipeline.backbone.reply import Reply
from flmm_core.pipeline.conversation.phrases.marks import strip_marks
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.resample import resample
from flmm_core.pipeline.types import WHOLE_IMAGE, VlmShape
from flmm_core.progress import Progress
from flmm_core.segment import is_text

TOP_K = 3
"""Localization heads, as many as in the paper that found them."""
KEPT = 64 << 20
"""Most bytes of single channels that are kept if no layers are named."""


def explain(
    source: Grounder | Backbone,
    image: object,
    *,
    text: str | None = None,
    ask: object = None,
    prompt: str | None = None,
    split: Split = "words",
    top_k: int = TOP_K,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
    **generation: Any,
) -> Explanation:
    """Where the words of a text look in an image.

    Args:
        source: A backbone, or a grounder, which adds the learned map of its head.
        image: As for `Grounder.ground`.
        text: What the model is taken to have answered. Give it or `ask`. It is read without the
            marks of `[[marked phrases]]`, which say what `Explanation.save` draws.
        ask: A question, or messages as for `Grounder.chat`; the text is the model's own answer.
        prompt: The user's text before `text`; by default the backbone's own.
        split: "words", or "tokens" as the tokenizer cuts them.
        top_k: How many localization heads make the way "heads".
        layers: The layers whose single maps are kept; by default all, if they take at most 64 MiB.
        progress: Told of the search for localization heads, the first time a model is explained.
        generation: Of the answer, as for `Grounder.chat`.

    Raises:
        UsageError: There is no text, an unknown layer, or no image; marks are not balanced.
        DataError: The image cannot be read.
        RunError: The model answered with nothing, or values are not finite.
    """
    backbone = source if isinstance(source, Backbone) else source.backbone
    image = to_image(image)
    _check(text, ask, top_k, layers, shape_of(backbone))
    if ask is not None:
        reply = backbone.reply(image, ask, **generation)
        return explain_reply(
            source, reply, split=split, top_k=top_k, layers=layers, progress=progress
        )
    assert text is not None
    marked = strip_marks(text)
    found = read_text(backbone, image, marked.text, prompt, split, *_pooling(source))
    asked = backbone.prompt if prompt is None else prompt
    explained = _explained(source, image, found, asked, False, top_k, layers, progress)
    return replace(explained, marked=tuple(map(explained.within, marked.ranges)))


def explain_reply(
    source: Grounder | Backbone,
    reply: Reply,
    *,
    image: int = 0,
    split: Split = "words",
    top_k: int = TOP_K,
    layers: Sequence[int] | None = None,
    progress: Progress | None = None,
) -> Explanation:
    """Where the words of an answer look, by what was kept while the model wrote it.

    The VLM does not run again.

    Args:
        reply: From `Backbone.reply` of the same backbone, recorded.
        image: The number of the image, of a conversation about several.

    Other args and errors as for `explain`.
    """
    backbone = source if isinstance(source, Backbone) else source.backbone
    found = read_reply(backbone, reply, image, split, *_pooling(source))
    users = (turn["content"] for turn in reply.messages[::-1] if turn["role"] == "user")
    asked = next(users)
    if not isinstance(asked, str):
        asked = " ".join(part["text"] for part in asked if part["type"] == "text")
    seen = reply.images[image].image
    return _explained(source, seen, found, asked, True, top_k, layers, progress)


@torch.no_grad()
def _explained(
    source: Grounder | Backbone,
    image: Image.Image,
    reading: Reading,
    prompt: str,
    asked: bool,
    top_k: int,
    layers: Sequence[int] | None,
    progress: Progress | None,
) -> Explanation:
    """What is kept of a reading."""
    head = None if isinstance(source, Backbone) else source
    backbone = source if isinstance(source, Backbone) else source.backbone
    vlm = shape_of(backbone)
    wanted = sorted({c for layer in layers or () for c in chosen_channels(vlm, layer, None, None)})
    ranked = localization_heads(backbone, progress=progress).best(top_k)
    if layers is None:
        every = reading.rows * vlm.attention_channels * max(reading.cells) * 2
        wanted = list(range(vlm.attention_channels)) if every <= KEPT else []
    kept = [_reduced(portion, ranked, wanted, head) for portion in reading.portions]
    heads, mean, channels, learned = (
        np.concatenate([part[place] for part in kept]) for place in range(4)
    )
    if not np.isfinite(mean).all():
        raise RunError(
            "The attention of the model is not finite.",
            found=f"It ran in {backbone.vlm.dtype}.",
            repair="Use another --dtype, such as float32.",
        )
    count = len(reading.words)
    rows = {"heads": heads, "mean": mean}
    ways = {name: Maps(maps[:count], maps[count:]) for name, maps in rows.items()}
    if head is not None:
        ways["learned"] = Maps(learned[:count], learned[count:], probabilities=True)
    return Explanation(
        image=image,
        text=reading.text,
        words=reading.words,
        prompt=prompt,
        asked=asked,
        ways=ways,
        heads=tuple(_place(channel, vlm) for channel in ranked),
        vlm=vlm,
        channels=channels,
        kept=tuple(wanted),
        facts={"backbone": backbone.spec.name, "model": backbone.model},
    )


def _pooling(source: Grounder | Backbone) -> tuple[Pool, int]:
    """How a head reads the tokens of a word: `Observer.pool` and `Observer.ends`."""
    if isinstance(source, Backbone):
        return "mean", 0
    return source.observer.pool, source.observer.ends


def shape_of(backbone: Backbone) -> VlmShape:
    """L, N, D and the views of a backbone."""
    return VlmShape(
        backbone.num_layers, backbone.num_heads, backbone.hidden_size, tuple(backbone.view_names)
    )


def _reduced(
    portion: Portion, ranked: Sequence[int], wanted: Sequence[int], head: Grounder | None
) -> tuple[Any, ...]:
    """What is kept of some words: heads, mean (P, h, w), channels (P, K, h, w), learned."""
    maps = portion.mean
    every = maps.maps
    y0, x0, y1, x1 = maps.image_box
    size = max(1, round(every.shape[2] / (y1 - y0))), max(1, round(every.shape[3] / (x1 - x0)))

    def framed(some: Tensor) -> Any:
        return resample(some, maps.image_box, WHOLE_IMAGE, size).cpu().numpy()

    heads = framed(every[:, list(ranked)].mean(1, keepdim=True))[:, 0]
    mean = framed(every.mean(1, keepdim=True))[:, 0]
    channels = framed(every[:, list(wanted)]).astype(np.float16)
    learned = np.zeros((len(every), 1, 1), np.float32)
    if head is not None:
        (logits,) = head.head.mask_head(head.head.pooled([head.observer.chosen(portion.for_head)]))
        learned = logits.sigmoid().cpu().numpy()
    return scaled(heads), scaled(mean), channels, learned


def _place(channel: int, vlm: VlmShape) -> tuple[str, int, int]:
    row, head = divmod(channel, vlm.heads)
    view, layer = divmod(row, vlm.layers)
    return vlm.views[view], layer, head


def _check(
    text: str | None, ask: object, top_k: int, layers: Sequence[int] | None, vlm: VlmShape
) -> None:
    if (text is None) == (ask is None):
        raise UsageError(
            "Give either a text or a question.",
            found="Found both." if text is not None else "Found neither.",
            repair="--text explains words that you give, --ask the model's own answer.",
        )
    for name, words in (("text", text), ("question", ask)):
        if isinstance(words, str) and (not words.strip() or not is_text(words)):
            raise UsageError(
                f"The {name} is empty or no Unicode text.",
                found=f"Found {words!r}.",
                repair="Give it at least one word.",
            )
    if not 1 <= top_k <= vlm.attention_channels:
        raise UsageError(
            f"{top_k} attention heads cannot be chosen.",
            found=f"The model has {vlm.attention_channels}: {len(vlm.views)} x {vlm.layers} layers "
            f"x {vlm.heads}.",
            repair=f"Give a number from 1 to {vlm.attention_channels}.",
        )
    for layer in layers or ():
        chosen_channels(vlm, layer, None, None)
