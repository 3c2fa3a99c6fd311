"""Conversations with a VLM.

The tokens are those of transformers' `generate` for what the chat template makes of a
conversation. Meanwhile the recorder keeps what the attention of the answer's tokens can be
computed from (`following.py`), so that any of its words can be grounded without another pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import UsageError
from flmm_core.pipeline.backbone import conversation, sampling, tokens
from flmm_core.pipeline.backbone.batch import to_vlm
from flmm_core.pipeline.backbone.following import Following
from flmm_core.pipeline.backbone.messages import Conversation, read_messages
from flmm_core.pipeline.backbone.past import Past
from flmm_core.pipeline.backbone.reply import Reply, SeenImage
from flmm_core.pipeline.backbone.transcript import Teller
from flmm_core.pipeline.backbone.view_check import checked_views, misfit
from flmm_core.pipeline.types import continued

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone


@dataclass(frozen=True, eq=False)
class _Encoded:
    """A conversation as the VLM takes it; the answer begins at the token `first`."""

    turns: conversation.Turns
    tokens: Mapping[str, Tensor]
    image_tensors: Mapping[str, Tensor]
    images: tuple[SeenImage, ...]
    alone: tuple[Mapping[str, Tensor], ...]  # the tensors of each image
    first: int
    skip: int  # characters of the first token that are not the answer's

    @property
    def ids(self) -> list[int]:
        ids: list[int] = self.tokens["input_ids"].tolist()
        return ids


class Talk:
    """Conversations with one VLM; the last one's KV cache is kept for its next turn."""

    def __init__(self, backbone: Backbone) -> None:
        self._backbone = backbone
        self._past: Past | None = None

    def forget(self) -> None:
        """Free the KV cache."""
        self._past = None

    @torch.no_grad()
    def reply(
        self,
        image: object,
        messages: object,
        record: bool,
        on_text: Callable[[str], None] | None,
        seed: int | None,
        generation: Mapping[str, Any],
    ) -> Reply:
        """See `Backbone.reply`."""
        backbone, vlm = self._backbone, self._backbone.vlm
        sampling.check_options(vlm.generation_config, generation)
        asked = read_messages(image, messages)
        encoded = self._encode(asked)
        told = Teller(backbone.tokenizer, encoded.ids[encoded.first :], encoded.skip, on_text)
        during = record and _keeps_keys(backbone, generation)
        past, known = self._continued(encoded) if during else (Past(vlm), 0)
        if during:
            self._past = None  # whatever happens, it is no longer what it was
        with ExitStack() as stack:
            rows = None
            if during:
                rows = stack.enter_context(backbone._recorder.follow(encoded.first))
            stack.enter_context(sampling.seeded(seed, backbone.device))
            new = self._generate(encoded, past, known, told, generation)
            told.end(new)
            if rows is not None and told.last_says and len(past) < len(encoded.ids) + len(new):
                past.run(to_vlm(vlm, {"input_ids": new[None, -1:]}))  # it has no row yet
        if record and not during:
            rows = self._second_pass(encoded, new)
        said = {"role": "assistant", "content": [{"type": "text", "text": told.raw}]}
        if during:
            images = [seen.image for seen in encoded.images]
            ids = [*encoded.ids, *new.tolist()]
            past.remember((*encoded.turns, said), images, ids, backbone.image_token_id)
            self._past = past
        return Reply(
            text=told.text,
            token_ids=new,
            messages=[*map(dict, asked.turns), said],
            images=encoded.images,
            offsets=tuple(told.offsets()),
            first=encoded.first,
            prompt_tokens=len(encoded.ids),
            rows=rows,
        )

    def _continued(self, encoded: _Encoded) -> tuple[Past, int]:
        """The past of a conversation, and how many of its tokens that holds."""
        past = self._past
        images = [seen.image for seen in encoded.images]
        known = past.shared(encoded.turns, images, encoded.ids) if past else 0
        return (past, known) if past and known else (Past(self._backbone.vlm), 0)

    def _generate(
        self, encoded: _Encoded, past: Past, known: int, told: Teller, given: Mapping[str, Any]
    ) -> Tensor:
        """(T,) the new tokens on the CPU."""
        backbone, vlm = self._backbone, self._backbone.vlm
        settings = sampling.settings(given, backbone.tokenizer)
        if told.streams:
            settings["streamer"] = told
        sequence = {key: value[None] for key, value in encoded.tokens.items()}  # (1, S)
        if known:
            self._read_rest(encoded, past, known)
            inputs = {key: sequence[key] for key in ("input_ids", "attention_mask")}
            settings[past.keyword] = past.cache
        else:
            inputs = {**encoded.image_tensors, **sequence}
        try:
            with past.listening(moved=known > 0):
                output = vlm.generate(
                    **to_vlm(vlm, inputs),
                    pad_token_id=backbone.tokenizer.pad_token_id,
                    return_dict_in_generate=True,
                    **settings,
                )
        except ValueError as error:
            if not given:
                raise
            raise UsageError(
                "transformers refuses these settings of generation.",
                found=f"{', '.join(f'{key}={value!r}' for key, value in given.items())}: {error}",
            ) from error
        past.cache = output.get("cache", output.get("past_key_values"))
        new: Tensor = output.sequences[0, len(encoded.ids) :].cpu()
        return new

    def _read_rest(self, encoded: _Encoded, past: Past, known: int) -> None:
        """Run all but the last token of what the cache does not hold."""
        rest = {key: value[None, known:-1] for key, value in encoded.tokens.items()}
        if rest["input_ids"].shape[1] == 0:
            return
        fresh = [
            tensors
            for seen, tensors in zip(encoded.images, encoded.alone, strict=True)
            if int(seen.views[0].token_index.min()) >= known
        ]
        backbone = self._backbone
        keys = fresh[0] if fresh else ()
        joined = {key: backbone.join(key, [each[key] for each in fresh]) for key in keys}
        past.run(to_vlm(backbone.vlm, {**rest, **joined}))

    def _second_pass(self, encoded: _Encoded, new: Tensor) -> Following:
        """Where keys are dropped while the model writes, the whole text is read once more."""
        apart = self._backbone.requirements.bidirectional_prefix
        longer = {k: v[None] for k, v in continued(encoded.tokens, new, apart).items()}
        vlm = self._backbone.vlm
        with self._backbone._recorder.follow(encoded.first) as rows:
            vlm.model(**to_vlm(vlm, {**longer, **encoded.image_tensors}), use_cache=False)
        return rows

    def _encode(self, asked: Conversation) -> _Encoded:
        backbone = self._backbone
        processor, controls = backbone.processor, backbone._controls
        turns = tuple(_escaped(turn, controls) for turn in asked.turns)
        if backbone.system is not None and turns[0]["role"] != "system":
            said = [{"type": "text", "text": backbone.system}]
            turns = (_escaped({"role": "system", "content": said}, controls), *turns)
        begun = conversation.escape(asked.begun, controls)
        apart = backbone.requirements.bidirectional_prefix
        if begun.strip() and not apart:
            text, begin = conversation.answer_text(processor, turns, begun)
        else:
            text = conversation.prompt_text(processor, turns)
            begin = len(text)
        per_token, of_images = tokens.encode(processor, text, asked.images, backbone.shrunk, "")
        first, skip = len(per_token["input_ids"]), 0
        if begun.strip() and apart:
            said = backbone.tokenizer(begun, add_special_tokens=False, return_tensors="pt")
            per_token = continued(per_token, said["input_ids"][0], apart)
        ids = per_token["input_ids"]
        limit = tokens.longest(backbone.text_config, backbone.tokenizer)
        if len(ids) >= limit:
            raise UsageError(
                "The conversation is longer than the model can take.",
                found=f"With the images it has {len(ids)} tokens; the limit is {limit}.",
                repair="Begin a new one, shorten it, or make the images smaller.",
            )
        if begun.strip() and not apart:
            offsets = backbone.tokenizer(
                text,
                add_special_tokens=conversation.adds_special_tokens(backbone.tokenizer, text),
                return_offsets_mapping=True,
            )["offset_mapping"]
            place = next(p for p, (_, end) in enumerate(offsets) if end > begin)
            first, skip = len(ids) - (len(offsets) - place), max(0, begin - offsets[place][0])
        alone: tuple[Mapping[str, Tensor], ...] = (of_images,)
        counts = [int((ids == backbone.image_token_id).sum())]
        if len(asked.images) > 1:
            single = conversation.prompt_text(processor, conversation.user_turns("", None))
            each = [
                tokens.encode(processor, single, [one], backbone.shrunk, "") for one in asked.images
            ]
            alone = tuple(tensors for _, tensors in each)
            counts = [int((one["input_ids"] == backbone.image_token_id).sum()) for one, _ in each]
        images = self._views(ids, asked.images, alone, counts)
        return _Encoded(turns, per_token, of_images, images, alone, first, skip)

    def _views(
        self,
        ids: Tensor,
        images: Sequence[Image.Image],
        alone: Sequence[Mapping[str, Tensor]],
        counts: Sequence[int],
    ) -> tuple[SeenImage, ...]:
        """Where the tokens of each image are, of (S,) ids."""
        backbone = self._backbone
        places = (ids == backbone.image_token_id).nonzero().flatten()
        if len(places) != sum(counts):
            raise misfit(
                f"The sequence holds {len(places)} image tokens; its images have {list(counts)}."
            )
        found: list[SeenImage] = []
        for image, tensors, own in zip(images, alone, places.split(list(counts)), strict=True):
            is_own = torch.zeros_like(ids, dtype=torch.bool)
            is_own[own] = True
            others = (ids == backbone.image_token_id) & ~is_own
            ids_alone = ids.masked_fill(others, -1)
            image_hw = (image.height, image.width)
            views = checked_views(backbone, ids_alone, is_own, image_hw, tensors, "")
            found.append(SeenImage(image, views))
        return tuple(found)


def _keeps_keys(backbone: Backbone, given: Mapping[str, Any]) -> bool:
    """Whether attention can be recorded while the model writes, without changing what it writes."""
    return (
        backbone.vlm.get_decoder().config._attn_implementation == "sdpa"
        and not backbone.requirements.sliding_window
        and given.get("use_cache") is not False
        and given.get("cache_implementation") is None
        and given.get("generation_config") is None
    )


def _escaped(turn: Mapping[str, Any], controls: Sequence[str]) -> dict[str, Any]:
    content = [
        {**part, "text": conversation.escape(part["text"], controls)}
        if part["type"] == "text"
        else part
        for part in turn["content"]
    ]
    return {**turn, "content": content}
