"""Settings of transformers' `generate`: which are taken, and random numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from flmm_core.errors import UsageError, did_you_mean

LONGEST = 256
"""New tokens, unless another number is asked for."""

_HELPERS = {
    "streamer", "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn",
    "assistant_model", "assistant_tokenizer", "generation_config", "tokenizer",
}  # fmt: skip
_OURS = {"return_dict_in_generate", "output_attentions", "output_hidden_states", "output_scores"}


def check_options(config: Any, given: Mapping[str, Any]) -> None:
    """Refuse what `generate` does not know, or what has no single answer to ground.

    Raises:
        UsageError: It names the option.
    """
    known = {name for name in vars(config) if not name.startswith("_")} | _HELPERS
    for name, value in given.items():
        if name in _OURS or name not in known:
            raise UsageError(
                f"Unknown setting of generation '{name}'. "
                f"{did_you_mean(name, known - _OURS)}".rstrip(),
                found="Settings are those of transformers' GenerationConfig.",
            )
        if name in ("num_beams", "num_return_sequences") and value not in (None, 1):
            raise UsageError(
                f"{name}={value!r} is not supported.",
                found="Beams and several answers run as several sequences; their attention is "
                "recorded of one.",
                repair="Leave it at 1; do_sample=True gives other answers with other seeds.",
            )


def settings(given: Mapping[str, Any], tokenizer: Any) -> dict[str, Any]:
    """What `generate` is given: greedy unless asked for otherwise."""
    ours: dict[str, Any] = {"do_sample": False, "num_beams": 1}
    if not given.get("do_sample"):  # greedy decoding warns about a model's own settings
        ours |= {"temperature": None, "top_p": None, "top_k": None}
    if not {"max_new_tokens", "max_length", "generation_config"} & set(given):
        ours["max_new_tokens"] = LONGEST
    if given.get("stop_strings"):
        ours["tokenizer"] = tokenizer
    return {**ours, **given}


@contextmanager
def seeded(seed: int | None, device: torch.device) -> Iterator[None]:
    """Random numbers as after `torch.manual_seed`; those of the caller go on as if unused."""
    if seed is None:
        yield
        return
    accelerators = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(accelerators):
        torch.manual_seed(seed)
        yield
