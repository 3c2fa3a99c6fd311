"""Texts as words, and tokens as the characters that they cover."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from flmm_core.explain.words import (
    as_segments,
    split_words,
    token_words,
)
from flmm_core.segment import caption_text

TEXTS = (
    "A man's red-brown dog, 2 cats (one asleep).",
    " Das weiß ich: «ein Kreis»\n- grün",
    "東京の猫 and ネコ",
    "लाल गेंद और 🐈‍⬛!",
    "cafe\u0301 ☕ — x_1",
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (TEXTS[0], "A|man's|red-brown|dog|,|2|cats|(|one|asleep|)|."),
        (TEXTS[1], "Das|weiß|ich|:|«|ein|Kreis|»|-|grün"),
        (TEXTS[2], "東|京|の|猫|and|ネ|コ"),
        (TEXTS[3], "लाल|गेंद|और|🐈‍|⬛|!"),
        (TEXTS[4], "cafe\u0301|☕|—|x_1"),
        ("rock 'n' roll-", "rock|'|n|'|roll|-"),
    ],
)
def test_a_text_is_words_and_marks(text: str, words: str) -> None:
    found = split_words(text)
    assert "|".join(word.text for word in found) == words
    assert all(text[word.start : word.end] == word.text for word in found)
    assert caption_text(as_segments(text, found)) == text
    assert [word.text for word in found if not word.names] == [
        mark for mark in words.split("|") if not any(letter.isalnum() for letter in mark)
    ]


def vocabulary(names: list[str], merges: list[tuple[str, str]]) -> dict[str, int]:
    every = [*names, *("".join(pair) for pair in merges)]
    return {name: place for place, name in enumerate(dict.fromkeys(every))}


@functools.cache
def tokenizer(kind: str) -> Any:
    """A byte-level BPE as Qwen's and LLaMA 3's, or a BPE of SentencePiece as LLaMA 2's."""
    names = ["<s>", "</s>", *(["▁"] if kind == "pieces" else [])]
    if kind == "bytes":
        names += sorted(pre_tokenizers.ByteLevel.alphabet())
        merges = [("Ġ", "r"), ("e", "d"), ("Ġr", "ed"), ("Ã", "Ł"), ("à", "¤"), ("Ġ", "ð")]
        core = Tokenizer(models.BPE(vocabulary(names, merges), merges))
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
    else:  # what is rare is bytes
        names += [*map(chr, range(33, 127)), "\n", *(f"<0x{byte:02X}>" for byte in range(256))]
        merges = [("▁", "r"), ("e", "d"), ("▁r", "ed"), ("▁", "-")]
        core = Tokenizer(models.BPE(vocabulary(names, merges), merges, byte_fallback=True))
        core.normalizer = normalizers.Sequence(
            [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        )
        core.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(),
             decoders.Strip(" ", 1, 0)]
        )  # fmt: skip
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core, bos_token="<s>", eos_token="</s>"
    )


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_tokens_that_share_a_character_are_one(kind: str) -> None:
    words = tokenizer(kind)
    found = token_words(words, "a 🐈 x")
    assert [word.text for word in found] == ["a", "🐈", "x"]
    assert len(words("a 🐈 x", add_special_tokens=False)["input_ids"]) > 5
