"""Write a tiny Gemma 3 with random weights: enough for the tests, without a download.

    python make_tiny.py flmm_gemma3/tiny

`pip install .` then takes the folder along, and `flmm ... --backbone gemma3` finds it.
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
    "{% if part['type'] == 'image' %}<start_of_image>{% else %}{{ part['text'] }}{% endif %}"
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


def make_tiny(folder: str | Path, side: int = 96, patch: int = 8, merge: int = 2) -> Path:
    """Write config, weights, tokenizer and processor to a folder; gives the folder."""
    named = {
        "image_token": "<image_soft_token>",
        "boi_token": "<start_of_image>",
        "eoi_token": "<end_of_image>",
    }
    tokenizer = make_tokenizer([], **named)
    ids = {name: tokenizer.convert_tokens_to_ids(text) for name, text in named.items()}
    count = (side // patch // merge) ** 2
    processor = transformers.Gemma3Processor(
        transformers.Gemma3ImageProcessor(size={"height": side, "width": side}),
        tokenizer,
        image_seq_length=count,
        chat_template=TEMPLATE,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config={
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
            "sliding_window": 128,
            "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **widths,
        },
        vision_config={
            "num_hidden_layers": 2,
            "image_size": side,
            "patch_size": patch,
            "vision_use_head": False,
            **widths,
        },
        mm_tokens_per_image=count,
        image_token_index=ids["image_token"],
        boi_token_index=ids["boi_token"],
        eoi_token_index=ids["eoi_token"],
    )
    torch.manual_seed(0)
    model = transformers.Gemma3ForConditionalGeneration(config)
    # transformers begins with zeros, with which no image would change anything
    torch.nn.init.normal_(model.model.multi_modal_projector.mm_input_projection_weight, std=0.1)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    make_tiny(sys.argv[1])
