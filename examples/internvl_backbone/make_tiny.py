"""Write a tiny InternVL3 with random weights: enough for the tests, without a download.

    python make_tiny.py flmm_internvl/tiny

`pip install .` then takes the folder along, and `flmm ... --backbone internvl` finds it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'].upper() }}: "
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_tokenizer(special: list[str], **named: str) -> transformers.PreTrainedTokenizerFast:
    """One token a byte, and the control tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    known = ["<pad>", "<s>", "</s>", *named.values(), *special]
    trainer = trainers.BpeTrainer(special_tokens=known, initial_alphabet=alphabet)
    core.train_from_iterator([], trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        extra_special_tokens=named,
    )


def make_tiny(folder: str | Path, tile: int = 64, patch: int = 8, most_tiles: int = 6) -> Path:
    """Write config, weights, tokenizer and processor to a folder; gives the folder."""
    tokenizer = make_tokenizer(
        [],
        start_image_token="<img>",
        end_image_token="</img>",
        context_image_token="<IMG_CONTEXT>",
        video_token="<video>",
    )
    image_processor = transformers.GotOcr2ImageProcessor(
        size={"height": tile, "width": tile},
        crop_to_patches=True,
        min_patches=1,
        max_patches=most_tiles,
    )
    tokens = (tile // patch // 2) ** 2  # four patches make a token
    processor = transformers.InternVLProcessor(
        image_processor,
        tokenizer,
        transformers.InternVLVideoProcessor(),
        image_seq_length=tokens,
        chat_template=TEMPLATE,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.InternVLConfig(
        text_config={
            "model_type": "qwen2",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **widths,
        },
        vision_config={
            "num_hidden_layers": 2,
            "image_size": [tile, tile],
            "patch_size": [patch, patch],
            **widths,
        },
        image_seq_length=tokens,
        image_token_id=tokenizer.convert_tokens_to_ids("<IMG_CONTEXT>"),
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.InternVLForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    make_tiny(sys.argv[1])
