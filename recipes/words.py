"""The tokenizer and the chat template of models that are made here."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flmm_core.data.drawn.scenes import COLORS, SHAPES

MAX_LENGTH = 2048
PROMPT = "Please give me a description of the image."


def corpus() -> Iterator[str]:
    """The tokenizer's training text: every word of drawn scenes next to every word it can meet.

    It does not depend on which scenes are drawn, so a change there changes no token.
    """
    places = ["in the middle", "at the top", "at the bottom", "on the left", "on the right"]
    places += [
        f"in the {row} {column}" for row in ("top", "bottom") for column in ("left", "right")
    ]
    relations = ("left of", "right of", "above", "below")
    sizes, sides = ("small", "large"), ("left", "right", "upper", "lower")
    for color, name in product(COLORS, SHAPES):
        words = f"{color} {name}"
        for place in (*places, *(f"{relation} the {words}" for relation in relations)):
            yield f"a {words} {place}, an {words} and a {words} {place}."
        for adjective in (*sizes, *sides):
            yield f"the {adjective} {words}, a {adjective} {words} and the {words}."
        yield words
        yield PROMPT


def train_tokenizer(special: dict[str, str], chat_template: str) -> Any:
    """A byte-level BPE that encodes any text; words of drawn scenes are one token each."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<|pad|>", "<|bos|>", "<|eos|>", *special.values()],
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus(), trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        extra_special_tokens=special,
        model_max_length=MAX_LENGTH,
        chat_template=chat_template,
        padding_side="left",
    )


def chat_template(image: str) -> str:
    """Turns of "USER: ... ", "SYSTEM: ... " and "ASSISTANT:...": no space stands before an answer.

    `recipes.pretrain` teaches answers that begin so.
    """
    return (
        "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}:"
        "{% if message['role'] != 'assistant' %} {% endif %}"
        "{% if message['content'] is string %}{{ message['content'] }}"
        "{% else %}{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "\n"
        "{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
        "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %} {% endif %}{% endfor %}"
        "{% if add_generation_prompt %}ASSISTANT:{% endif %}"
    )
