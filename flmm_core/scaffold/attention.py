"""Which image tokens attend to later ones, measured on the toy: configs do not say it alike."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from flmm_core.pipeline.backbone.conversation import prompt_text, user_turns
from flmm_core.pipeline.backbone.probe import probe_image
from flmm_core.pipeline.backbone.tokens import encode
from flmm_core.spec import DEFAULT_PROMPT

CHANGED = 1e-5
"""Relative change of a hidden state that is more than rounding."""


@torch.no_grad()
def image_attends_to_later(model: Any, processor: Any, image_token: str) -> bool:
    """Whether the hidden state of an image token depends on a later token of its image.

    Args:
        model: In float32; at toy width, what it computes is of no use, but who reads what is.
    """
    text = prompt_text(processor, user_turns(DEFAULT_PROMPT, None))
    tokens, tensors = encode(processor, text, [probe_image()], lambda same: same, "drawn image")
    given = {**{key: value[None] for key, value in tokens.items()}, **tensors}
    image_id = processor.tokenizer.convert_tokens_to_ids(image_token)
    places = (tokens["input_ids"] == image_id).nonzero().flatten()

    def hidden(nudged: Tensor) -> Tensor:
        """(M, D) of the image's tokens, some embeddings of which are changed before."""

        def nudge(module: Any, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            embedded = kwargs["inputs_embeds"].clone()
            embedded[:, nudged] += embedded.std()
            return args, {**kwargs, "inputs_embeds": embedded}

        handle = model.get_decoder().register_forward_pre_hook(nudge, with_kwargs=True)
        try:
            found: Tensor = model.model(**given, use_cache=False).last_hidden_state[0, places]
        finally:
            handle.remove()
        return found

    before, after = hidden(places[:0]), hidden(places[-1:])
    change = (after - before)[:-1].abs().amax()
    return bool(change > CHANGED * before.abs().amax())
