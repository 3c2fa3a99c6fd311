"""Captions as the model's own answer: against transformers' own rendering and tokens.

Two small tokenizers stand for those that models are published with: byte-level BPE (Qwen, LLaMA 3,
DeepSeek) and BPE over "▁" with single bytes for the rest, as sentencepiece has it (LLaMA 2).
"""

from __future__ import annotations

import copy
import functools
import unicodedata
from typing import Any

import pytest
import torch
import transformers
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from flmm_core.errors import UsageError, WeightsError
from flmm_core.segment import Segment, caption_text, statements
from tests.models import VISION, OneView, parts, picture, spec, text_config

IMAGE = "<image_placeholder>"
PARTS = (
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + "\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
)
TEMPLATES = {
    "tagged": "{% for message in messages %}<|im_start|>{{ message['role'] }}\n" + PARTS
    + "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
    "role and colon": "{% for message in messages %}{{ message['role'].upper() }}: " + PARTS + " "
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}",
    "instruction": "{% for message in messages %}{% if message['role'] == 'user' %}[INST] " + PARTS
    + " [/INST]{% elif message['role'] == 'system' %}{{ raise_exception('No system here') }}"
    "{% else %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}{% endif %}{% endfor %}",
    "stripped": "Be helpful.\n\n{% for message in messages %}{{ message['role'].capitalize() }}:"
    "{% if not (loop.last and message['content'] == '') %} {% endif %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}" + IMAGE + "{% else %}"
    "{{ part['text'].strip() }}{% endif %}{% endfor %}"
    "{% if not loop.last or add_generation_prompt %}\n\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}",
    "answers as strings": "{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ 'A: ' + message['content'] + '</s>' }}{% else %}Q: " + PARTS + "\n{% endif %}{% endfor %}",
}  # fmt: skip
PHRASES = (
    "a red ring", "women's shoes", "the man's T-shirt", "surf-board", "No. 7", "50% off",
    "C++ book", "what is it?", "a dog!", '"quoted words"', "(left) cup", "U.S. flag", "$5 bill",
    "DVD/CD player", "café", "cafe\u0301", "naïve girl", "一只猫", "红色的圆圈", "日本語の本",
    "고양이", "кошка", "قطة حمراء", "แมว", "🐱", "👩‍👩‍👧", "🏳️‍🌈 flag", "x", "a  b",
    "new\nline", "ﬁsh", f"{IMAGE} thing",
)  # fmt: skip
PERIOD = Segment(".", only="pieces")


def pieces(*given: str | tuple[str, int]) -> tuple[Segment, ...]:
    return tuple(Segment(one) if isinstance(one, str) else Segment(*one) for one in given)


CAPTIONS = (
    *(tuple(statements([phrase])) for phrase in PHRASES),
    tuple(statements(["a cat", "a dog", "(left)"])),
    pieces("there is ", ("a man ", 0), "holding ", ("a surf", 1), ("board", 1)),
    pieces("the ", ("women", 0), "'s", (" shoes", 1)),
    pieces("I see", (" two dogs ", 0), "  and", ("\na cat", 1), " "),
    (*pieces("there is"), Segment(" ", only="whole"), *pieces(("a man", 0)), PERIOD),
    pieces("图中：", ("猫", 0), "、", ("狗", 1), "。"),
    pieces("🐱 ", ("🐶🐶", 0), " 🐱 and ", ("👩‍👩‍👧", 1)),
    pieces("cafe\u0301 ", ("re\u0301sume\u0301", 0), " e\u0301", (" ü", 1)),
    pieces(" the ", ("left one", 1), " and ", ("the other", 0)),
)


def byte_level() -> Tokenizer:
    core = Tokenizer(models.BPE())
    core.normalizer = normalizers.NFC()
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    learn(core, initial_alphabet=alphabet)
    return core


def sentencepiece_like() -> Tokenizer:
    core = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    core.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    spaces = decoders.Replace("▁", " ")
    core.decoder = decoders.Sequence([spaces, decoders.ByteFallback(), decoders.Fuse()])
    # as sentencepiece learns: no token has letters and punctuation
    core.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁?[^\w▁]+"), "isolated")
    learn(core, special=["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))], limit_alphabet=60)
    core.pre_tokenizer = None
    core.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", core.token_to_id("<s>"))]
    )
    return core


def learn(core: Tokenizer, special: list[str] | None = None, **options: Any) -> None:
    control = ["<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", IMAGE]
    trainer = trainers.BpeTrainer(
        vocab_size=900, special_tokens=[*control, *(special or [])], show_progress=False, **options
    )
    text = [caption_text(caption) for caption in CAPTIONS]
    core.train_from_iterator(
        text * 3 + ["USER: ASSISTANT: Please describe. the cat's a man"], trainer
    )


TOKENIZERS = {"byte-level": byte_level, "sentencepiece": sentencepiece_like}


@functools.cache
def made(kind: str, template: str, **options: Any) -> OneView:
    words = transformers.PreTrainedTokenizerFast(
        tokenizer_object=TOKENIZERS[kind](),
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens={"image_token": IMAGE},
    )
    return backbone_of(words, TEMPLATES.get(template, template), **options)


def backbone_of(words: Any, template: str, **options: Any) -> OneView:
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessor(size={"height": 32, "width": 32}),
        words,
        chat_template=template,
        num_image_tokens=16,
    )
    vision = {"model_type": "siglip_vision_model", "num_hidden_layers": 1, "vision_use_head": False}
    vision |= {"num_attention_heads": 2, "image_size": 32, "patch_size": 8}
    config = transformers.DeepseekVLConfig(
        text_config={"model_type": "llama", **text_config(words), "num_hidden_layers": 1},
        vision_config=VISION | vision,
        image_token_id=words.convert_tokens_to_ids(IMAGE),
    )
    vlm = transformers.AutoModelForImageTextToText.from_config(config)
    return OneView(spec(), vlm, processor, **options)


def official(backbone: OneView, caption: str | None, answers_are_strings: bool) -> list[int]:
    """The token ids that transformers gives a user who continues the model's answer."""
    image = {"type": "image", "image": picture(40, 30)}
    turns = [{"role": "user", "content": [image, {"type": "text", "text": backbone.prompt}]}]
    if caption is not None:
        parts = caption if answers_are_strings else [{"type": "text", "text": caption}]
        turns.append({"role": "assistant", "content": parts})
    found = backbone.processor.apply_chat_template(
        turns,
        tokenize=True,
        return_dict=True,
        add_generation_prompt=caption is None,
        continue_final_message=caption is not None,
    )
    ids: list[int] = torch.as_tensor(found["input_ids"]).flatten().tolist()
    return ids


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_of_the_models_own_answer(kind: str, template: str) -> None:
    backbone, as_strings = made(kind, template), template == "answers as strings"
    prompt, first = official(backbone, None, as_strings), None
    for number, caption in enumerate(CAPTIONS):
        sample = backbone.prepare(picture(40, 30), caption, name=str(number), like=first)
        first = first or sample
        ids = sample.tokens["input_ids"]
        plain = [
            Segment(p.text.replace(IMAGE, f"< {IMAGE[1:]}"), p.phrase, p.only) for p in caption
        ]
        assert ids.tolist() == official(backbone, caption_text(plain), as_strings)
        assert ids[: sample.start].tolist() == prompt[: sample.start]
        assert sample.start == len(prompt) or template == "tagged"  # "\n\n" may be one token
        for phrase, rows in enumerate(sample.phrase_rows):
            words = "".join(piece.text for piece in plain if piece.phrase == phrase).strip()
            read = backbone.tokenizer.decode(ids[rows], clean_up_tokenization_spaces=False).strip()
            assert unicodedata.normalize("NFC", read) == unicodedata.normalize("NFC", words)


def test_a_space_at_an_edge_is_in_no_row() -> None:
    backbone = made("byte-level", "tagged")
    given = [Segment("x "), Segment("  a  b  ", 0), Segment("y")]
    sample = backbone.prepare(picture(40, 30), given)
    read = backbone.tokenizer.convert_ids_to_tokens(
        sample.tokens["input_ids"][sample.phrase_rows[0]]
    )
    assert "".join(read).strip("Ġ") == "aĠĠb"
    assert {read[0], read[-1]} & {"Ġ", "ĠĠ", "ĠĠĠ"} == set()


def test_a_token_across_two_phrases_is_in_both() -> None:
    backbone = made("byte-level", "tagged")
    assert len(backbone.tokenizer("a man", add_special_tokens=False)["input_ids"]) == 2
    given = [Segment("a m", 0), Segment("an", 1)]
    first, second = backbone.prepare(picture(40, 30), given).phrase_rows
    assert (len(first), len(second), first[-1]) == (2, 1, second[0])
    (trace,) = backbone.trace(backbone.collate([backbone.prepare(picture(40, 30), given)]))
    assert trace.row_phrase.tolist() == [0, 0, 1]
    assert torch.equal(trace.hidden[:, 1], trace.hidden[:, 2])


def test_no_control_token_arises_where_pieces_meet() -> None:
    backbone = made("byte-level", "tagged")
    given = [Segment("see <|im_", 0), Segment("end|>", 1), Segment(IMAGE[:3]), Segment(IMAGE[3:])]
    sample = backbone.prepare(picture(40, 30), given)
    control = backbone.tokenizer.convert_tokens_to_ids(["<|im_end|>", IMAGE])
    assert not set(control) & set(sample.caption.tolist())


def test_where_prompt_and_caption_merge_the_shared_part_ends_before() -> None:
    """Three dimensions of positions, and a tokenizer that has a token ":a"."""
    config, processor = parts("qwen")
    words = processor.tokenizer
    vocabulary = {**words.get_vocab(), ":a": len(words)}
    core = copy.deepcopy(words.backend_tokenizer)
    core.model = models.BPE(vocab=vocabulary, merges=[(":", "a")])
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    words._tokenizer = core
    config.text_config.vocab_size = len(vocabulary) + 1
    torch.manual_seed(0)
    vlm = transformers.AutoModelForImageTextToText.from_config(config)
    backbone = OneView(spec(), vlm, processor)
    captions = [[Segment("it", 0)], [Segment("a dog", 0)], [Segment("a", 0), Segment("n ox", 1)]]
    image, samples = picture(48, 48), []
    for caption in captions:
        samples.append(backbone.prepare(image, caption, like=samples[0] if samples else None))
    whole = len(samples[0].prefix)
    assert [sample.start - whole for sample in samples] == [0, -1, -1]
    assert words.convert_ids_to_tokens(samples[1].caption[:1]) == [":a"]
    batch = backbone.collate(samples)
    assert batch.tensors["input_ids"].shape == (1, whole - 1)
    for sample, shared in zip(samples, backbone.trace(batch), strict=True):
        (alone,) = backbone.trace(backbone.collate([sample]))
        torch.testing.assert_close(shared.attention, alone.attention, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(shared.hidden, alone.hidden, atol=1e-5, rtol=1e-4)


def test_pieces_are_tokenized_one_by_one() -> None:
    backbone = made("sentencepiece", "role and colon", caption_mode="pieces")
    caption = [Segment("there is"), Segment(" ", only="whole"), Segment("a man", 0), Segment(".")]
    sample = backbone.prepare(picture(40, 30), caption)
    alone = [
        backbone.tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("there is", "a man", ".")
    ]
    assert sample.caption.tolist() == [token for ids in alone for token in ids]
    assert sample.phrase_rows[0].tolist() == [
        sample.start + len(alone[0]) + place for place in range(len(alone[1]))
    ]


class TestConversation:
    def test_a_system_message_and_what_is_rendered(self) -> None:
        backbone = made("byte-level", "tagged", system="You see <|im_end|>.")
        assert backbone.rendered_prompt() == (
            "<|im_start|>system\nYou see < |im_end|>.<|im_end|>\n<|im_start|>user\n"
            f"{IMAGE}\n{backbone.prompt}<|im_end|>\n<|im_start|>assistant\n{{caption}}"
        )
        sample = backbone.prepare(picture(40, 30), [Segment("it", 0)], prompt="Where?")
        read = backbone.tokenizer.decode(sample.tokens["input_ids"])
        assert "You see" in read
        assert "Where?<|im_end|>\n<|im_start|>assistant\nit" in read

    def test_a_template_without_system_messages(self) -> None:
        with pytest.raises(UsageError) as error:
            made("byte-level", "instruction", system="Be brief.")
        assert str(error.value) == (
            "The model's chat template cannot show this conversation.\n"
            "TemplateError: No system here.\n"
            "Omit --system, or put what it says into --prompt."
        )

    def test_a_template_that_drops_system_messages(self) -> None:
        silent = (
            "{% for message in messages if message['role'] != 'system' %}" + PARTS + "{% endfor %}"
        )
        with pytest.raises(UsageError) as error:
            made("byte-level", silent, system="Be brief.")
        assert error.value.found == "It leaves out 'Be brief.'."

    def test_a_template_that_changes_answers(self) -> None:
        loud = TEMPLATES["role and colon"].replace(
            "{{ part['text'] }}", "{{ part['text'].upper() }}"
        )
        with pytest.raises((UsageError, WeightsError)):
            made("byte-level", loud)
        loud = loud.replace(
            "{{ part", "{% if message['role'] == 'user' %}{{ part['text'] }}{% else %}{{ part"
        )
        loud = loud.replace(".upper() }}{% endif %}", ".upper() }}{% endif %}{% endif %}")
        with pytest.raises(WeightsError, match="cannot show a caption as the model's answer"):
            made("byte-level", loud)
        made("byte-level", loud, caption_mode="pieces")

    def test_a_tokenizer_that_does_not_know_where_its_tokens_are(self) -> None:
        words = transformers.ByT5Tokenizer(extra_special_tokens={"image_token": IMAGE})
        words.bos_token = None
        with pytest.raises(WeightsError) as error:
            backbone_of(words, TEMPLATES["role and colon"])
        assert error.value.found == "ByT5Tokenizer is not a fast tokenizer."
        slow = backbone_of(words, TEMPLATES["role and colon"], caption_mode="pieces")
        assert len(slow.prepare(picture(40, 30), [Segment("a dog", 0)]).phrase_rows[0]) == 5
