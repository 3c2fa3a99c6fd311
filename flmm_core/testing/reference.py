"""What transformers itself makes of a model's folder, without a line of the plugin.

The model is loaded a second time, by transformers' Auto classes and with eager attention. Its own
forward, its own `generate` and its own processor say what is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from flmm_core.errors import WeightsError
from flmm_core.pipeline.backbone.auto_classes import auto_classes
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.backbone.conversation import TROUBLE, Turns
from flmm_core.pipeline.backbone.weights import load_pretrained
from flmm_core.segment import Segment, caption_text
from flmm_core.spec import Requirements
from flmm_core.testing.promise import NotPromised


class Encoded(NamedTuple):
    """A conversation as the processor gives it: its `text`, and (1, S) and image `tensors`."""

    text: str
    tensors: dict[str, Tensor]

    @property
    def ids(self) -> list[int]:
        """The S token ids."""
        ids: list[int] = self.tensors["input_ids"][0].tolist()
        return ids


class Run(NamedTuple):
    """All of one eager forward: `attention` (L, N, S, S) and `hidden` (L, S, D), `logits` (S, .).

    The last of `hidden` is after the final norm.
    """

    attention: Tensor
    hidden: Tensor
    logits: Tensor


@dataclass(frozen=True, eq=False)
class Reference:
    """A model and its processor as they are stored."""

    vlm: Any
    processor: Any
    requirements: Requirements

    def encode(
        self, turns: Turns, images: Sequence[Image.Image], answer: str | None = None
    ) -> Encoded:
        """A conversation, with the beginning of the model's answer if there is one.

        Raises:
            NotPromised: The model's chat template cannot show it.
        """
        how: dict[str, Any] = {"add_generation_prompt": True}
        if answer is not None and self.requirements.bidirectional_prefix:
            return self._with_suffix(self.encode(turns, images), images, answer)
        if answer is not None:
            said = {"role": "assistant", "content": [{"type": "text", "text": answer}]}
            turns, how = (*turns, said), {"continue_final_message": True}
        words = [p["text"].strip() for t in turns for p in t["content"] if p["type"] == "text"]
        problem = ""
        for spelled in _spellings(turns, iter(images)):
            try:
                text = self.processor.apply_chat_template(spelled, tokenize=False, **how)
                missing = next((each for each in words if each not in text), None)
                if missing is None:
                    given = self.processor.apply_chat_template(
                        spelled, tokenize=True, return_dict=True, return_tensors="pt", **how
                    )
                    return Encoded(text, _inputs(given))
                problem = problem or f"it leaves out {missing!r}"
            except TROUBLE as error:
                problem = problem or str(error).partition("\n")[0]
        raise NotPromised(f"the model's chat template cannot show the conversation: {problem}")

    def _with_suffix(self, prompt: Encoded, images: Sequence[Image.Image], answer: str) -> Encoded:
        """The answer as the processor takes it for training; its `text` is the answer's alone."""
        given = self.processor(
            text=[prompt.text], images=list(images), suffix=[answer], return_tensors="pt"
        )
        shape = given["input_ids"].shape
        return Encoded(  # without the end of the answer
            answer, {k: v[:, :-1] if v.shape == shape else v for k, v in _inputs(given).items()}
        )

    def phrase_rows(self, encoded: Encoded, caption: Sequence[Segment]) -> list[list[int]]:
        """Per phrase, the positions of the tokens that cover its characters, without edge spaces.

        They are counted from the end: what a processor makes of an image stands before.
        """
        words, text = caption_text(caption), encoded.text
        first = text.rindex(words.strip()) - (len(words) - len(words.lstrip()))
        tokenizer = self.processor.tokenizer
        bos = tokenizer.bos_token
        covers = tokenizer(
            text,
            add_special_tokens=not (bos and text.startswith(bos)),
            return_offsets_mapping=True,
        )["offset_mapping"]
        shift = len(encoded.ids) - len(covers)
        count = 1 + max(s.phrase for s in caption if s.phrase is not None)
        rows: list[list[int]] = [[] for _ in range(count)]
        for segment in caption:
            start = first + len(segment.text) - len(segment.text.lstrip())
            end = first + len(segment.text.rstrip())
            first += len(segment.text)
            if segment.phrase is not None:
                rows[segment.phrase] += [
                    place + shift
                    for place, (a, b) in enumerate(covers)
                    if max(a, start) < min(b, end)
                ]
        return rows

    @torch.no_grad()
    def run(self, tensors: Mapping[str, Tensor]) -> Run:
        """The model's own forward over a whole sequence."""
        out = self.vlm(
            **tensors, output_attentions=True, output_hidden_states=True, use_cache=False
        )
        attention = torch.stack([layer[0] for layer in out.attentions])
        hidden = torch.stack([layer[0] for layer in out.hidden_states[1:]])
        return Run(attention.float(), hidden.float(), out.logits[0].float())

    @torch.no_grad()
    def generate(self, encoded: Encoded, **settings: Any) -> tuple[list[int], list[Tensor]]:
        """Tokens that transformers' `generate` writes, greedily by default, and scores."""
        tokenizer = self.processor.tokenizer
        greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
        out = self.vlm.generate(
            **encoded.tensors,
            **{**greedy, "num_beams": 1, "pad_token_id": tokenizer.pad_token_id, **settings},
            return_dict_in_generate=True,
            output_scores=True,
        )
        ids: list[int] = out.sequences[0, len(encoded.ids) :].tolist()
        return ids, [scores[0] for scores in out.scores]

    def read(self, ids: Sequence[int]) -> str:
        """The text of an answer's tokens."""
        text: str = self.processor.tokenizer.decode(ids, skip_special_tokens=True)
        return text.strip()

    def longer(self, encoded: Encoded, ids: Sequence[int]) -> dict[str, Tensor]:
        """The tensors of a conversation that goes on with these tokens, which are text."""
        shape = encoded.tensors["input_ids"].shape
        new = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids))}
        none = torch.full((1, len(ids)), float(self.requirements.bidirectional_prefix))
        return {
            key: torch.cat([value, new.get(key, none).to(value.dtype)], 1)
            if value.shape == shape and not value.is_floating_point()
            else value
            for key, value in encoded.tensors.items()
        }


def _inputs(given: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the model's forward takes; some processors also give what training compares with."""
    return {key: value for key, value in given.items() if key != "labels"}


def _spellings(turns: Turns, images: Iterator[Image.Image]) -> Iterator[list[dict[str, Any]]]:
    """The turns with contents as lists of parts, or where templates want it, as plain strings."""
    filled = [
        {
            **turn,
            "content": [
                {**part, "image": next(images)} if part["type"] == "image" else part
                for part in turn["content"]
            ],
        }
        for turn in turns
    ]
    yield filled
    for roles in (("assistant",), ("assistant", "user", "system")):
        yield [
            {**turn, "content": "".join(part["text"] for part in turn["content"])}
            if turn["role"] in roles and all(part["type"] == "text" for part in turn["content"])
            else turn
            for turn in filled
        ]


def reference(backbone: Backbone) -> Reference:
    """The model that a backbone has loaded, loaded once more; kept for the next check."""
    parts = backbone.vlm, backbone.processor, backbone.processor.image_processor
    own = tuple(map(type, parts))
    return _load(backbone.source, backbone.spec.requirements, own)


@lru_cache(maxsize=1)
def _load(source: str, requirements: Requirements, own: tuple[type, ...]) -> Reference:
    try:
        classes: tuple[Any, ...] = auto_classes(source)
    except WeightsError:  # no auto class knows it
        classes = own
    how = {"dtype": torch.float32, "attn_implementation": "eager"}
    vlm, processor = load_pretrained(source, *classes, **how)
    if not processor.chat_template:
        processor.chat_template = requirements.chat_template or processor.tokenizer.chat_template
    return Reference(vlm.eval().requires_grad_(False), processor, requirements)


class _ReachedDecoderError(Exception):
    """Ends a forward where the language model would begin."""


@torch.no_grad()
def decoder_embeds(vlm: Any, tensors: Mapping[str, Tensor]) -> Tensor:
    """(B, S, D), what a VLM's language model receives; it does not run."""
    received: list[Tensor] = []

    def see(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        received.append(kwargs["inputs_embeds"])
        raise _ReachedDecoderError

    handle = vlm.get_decoder().register_forward_pre_hook(see, with_kwargs=True)
    try:
        vlm.model(**tensors, use_cache=False)
    except _ReachedDecoderError:
        pass
    finally:
        handle.remove()
    return received[0]
