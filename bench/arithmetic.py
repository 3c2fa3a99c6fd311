"""What must be computed and kept, from the shapes alone: to hold measurements against."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

ITEM = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Must:
    """Lower bounds of one recorded forward.

    Attributes:
        forward_flops: Products of the language model's layers and of the vision tower with their
            tokens, and causal attention, half of S x S; norms and activations are left out.
        row_flops: Products of the wanted queries with all keys: what recording adds.
        forward_bytes: All weights, once.
        row_bytes: Keys of every layer read once more, and the result written.
        returned_bytes: The result: pooled maps and hidden states, float32.
        eager_bytes: What keeping everything keeps: attention of all layers, S x S a head, and
            hidden states of all tokens.
    """

    forward_flops: float
    row_flops: float
    forward_bytes: float
    row_bytes: float
    returned_bytes: float
    eager_bytes: float


def recording(facts: Mapping[str, Any], dtype: str) -> Must:
    """Of the facts that `RecordingCase.run` gives."""
    tokens, rows, layers = facts["tokens"], facts["rows"], facts["layers"]
    heads, key_heads, width = facts["heads"], facts["key_heads"], facts["head_size"]
    item = ITEM[dtype]
    products = 2 * facts["decoder_parameters"] * tokens
    products += 2 * facts["vision_parameters"] * facts["patches"]
    causal = layers * heads * width * 2 * tokens**2  # scores and values, half of each
    returned = 4 * layers * heads * facts["phrases"] * facts["image_tokens"]
    returned += 4 * layers * rows * facts["hidden_size"]
    keys = layers * key_heads * tokens * width * item
    return Must(
        forward_flops=products + causal,
        row_flops=2 * layers * heads * width * rows * tokens,
        forward_bytes=item * (facts["decoder_parameters"] + facts["vision_parameters"]),
        row_bytes=keys + returned,
        returned_bytes=returned,
        eager_bytes=item * layers * (heads * tokens**2 + tokens * facts["hidden_size"]),
    )
