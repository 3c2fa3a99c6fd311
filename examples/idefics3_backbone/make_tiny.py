"""Write a tiny Idefics3 with random weights: enough for the tests, without a download.

    python make_tiny.py DIR

`flmm ... --backbone idefics3 --model DIR` loads it. The package has a trained one, `tiny`.
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
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
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


def make_tiny(folder: str | Path, tile: int = 64, patch: int = 8, merge: int = 2) -> Path:
    """Write config, weights, tokenizer and processor to a folder; gives the folder."""
    places = [f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)]
    special = ["<fake_token_around_image>", "<end_of_utterance>", "<global-img>", *places]
    tokenizer = make_tokenizer(special, image_token="<image>")
    image_processor = transformers.Idefics3ImageProcessor(
        size={"longest_edge": 3 * tile}, max_image_size={"longest_edge": tile}
    )
    processor = transformers.Idefics3Processor(
        image_processor,
        tokenizer,
        image_seq_len=(tile // patch // merge) ** 2,
        chat_template=TEMPLATE,
    )
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.Idefics3Config(
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **widths,
        },
        vision_config={"num_hidden_layers": 2, "image_size": tile, "patch_size": patch, **widths},
        scale_factor=merge,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.Idefics3ForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    make_tiny(sys.argv[1])
