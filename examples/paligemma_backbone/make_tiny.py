"""Write a tiny PaliGemma 2 with random weights: enough for the tests, without a download.

    python make_tiny.py flmm_paligemma/tiny

`pip install .` then takes the folder along, and `flmm ... --backbone paligemma` finds it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

GEMMA2 = {  # what PaliGemma 2 has and PaliGemma, a Gemma, has not
    "model_type": "gemma2",
    "attn_logit_softcapping": 0.5,  # 50 in the released models, whose logits are larger
    "final_logit_softcapping": 30.0,
    "query_pre_attn_scalar": 8,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 128,
}


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


def make_tiny(
    folder: str | Path, side: int = 64, patch: int = 8, text: dict[str, Any] = GEMMA2
) -> Path:
    """Write config, weights, tokenizer and processor to a folder; gives the folder."""
    tokenizer = make_tokenizer([], image_token="<image>")
    image_processor = transformers.SiglipImageProcessor(size={"height": side, "width": side})
    image_processor.image_seq_length = (side // patch) ** 2
    processor = transformers.PaliGemmaProcessor(image_processor, tokenizer)
    widths = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = transformers.PaliGemmaConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "num_hidden_layers": 2,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 1024,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            **widths,
            **text,
        },
        vision_config={
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "image_size": side,
            "patch_size": patch,
            "vision_use_head": False,
            **widths,
        },
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        projection_dim=widths["hidden_size"],
        hidden_size=widths["hidden_size"],
        vocab_size=len(tokenizer),
    )
    torch.manual_seed(0)
    transformers.PaliGemmaForConditionalGeneration(config).save_pretrained(folder)
    processor.save_pretrained(folder)
    return Path(folder)


if __name__ == "__main__":
    make_tiny(sys.argv[1])
