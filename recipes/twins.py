"""Tiny models: toy-width transformers folders of the three families, with their processors.

    python -m recipes.twins qwen DIR --seed 7       # random weights, as a control

They are normal transformers folders, which `AutoProcessor` and `AutoModelForImageTextToText` load
with `from_pretrained`. `recipes.pretrain` teaches them to caption.
"""

from __future__ import annotations

import argparse
import copy
import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from flmm_core.data.drawn.scenes import COLORS, SHAPES

HIDDEN, LAYERS, HEADS, KV_HEADS, FEED_FORWARD = 128, 4, 4, 2, 352
VISION_WIDTH, VISION_HEADS, VISION_FEED_FORWARD = 96, 4, 256
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


def text_config(tokenizer: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(tokenizer),
        "hidden_size": HIDDEN,
        "intermediate_size": FEED_FORWARD,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
        **more,
    }


def qwen_parts(pixels: int = 176) -> tuple[Any, Any]:
    """(config, processor): patch 8, merge 2, every image resized to about `pixels`² pixels."""
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    template = chat_template("<|vision_start|><|image_pad|><|vision_end|>")
    tokenizer = train_tokenizer(names, template)
    ids = {name: tokenizer.convert_tokens_to_ids(text) for name, text in names.items()}
    size = {"shortest_edge": (pixels - 8) ** 2, "longest_edge": (pixels + 8) ** 2}
    patches = {"patch_size": 8, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessorPil(**patches),
        tokenizer,
        transformers.Qwen2VLVideoProcessor(**patches),
        chat_template=template,
    )
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(
            tokenizer,
            rope_parameters={
                "rope_type": "default",
                "rope_theta": 10000.0,
                "mrope_section": [4, 6, 6],
            },
        ),
        vision_config={
            "depth": 3,
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_heads": VISION_HEADS,
            "patch_size": 8,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            # One window as large as any image: small windows mean hundreds of tiny calls.
            "window_size": 4096,
            "fullatt_block_indexes": [0, 1, 2],
            "out_hidden_size": HIDDEN,
        },
        image_token_id=ids["image_token"],
        video_token_id=ids["video_token"],
        vision_start_token_id=ids["vision_bos_token"],
        vision_end_token_id=ids["vision_eos_token"],
        tie_word_embeddings=False,
    )
    return config, processor


def deepseek_vl_parts(pixels: int = 112) -> tuple[Any, Any]:
    """(config, processor): patch 8, images padded to a square of `pixels`."""
    template = chat_template("<image_placeholder>")
    tokenizer = train_tokenizer({"image_token": "<image_placeholder>"}, template)
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessorPil(
            size={"height": pixels, "width": pixels},
            min_size=14,
            image_mean=[0.5] * 3,
            image_std=[0.5] * 3,
        ),
        tokenizer,
        chat_template=template,
        num_image_tokens=(pixels // 8) ** 2,
    )
    config = transformers.DeepseekVLConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={
            "model_type": "siglip_vision_model",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_hidden_layers": 3,
            "num_attention_heads": VISION_HEADS,
            "image_size": pixels,
            "patch_size": 8,
            "vision_use_head": False,
        },
        image_token_id=tokenizer.convert_tokens_to_ids("<image_placeholder>"),
        tie_word_embeddings=False,
    )
    return config, processor


def llava_next_parts(
    pixels: int = 84, grids: tuple[tuple[int, int], ...] = ((2, 2), (1, 2), (2, 1))
) -> tuple[Any, Any]:
    """(config, processor): tiles of `pixels`, patch 12; `grids` are tiles (high, wide)."""
    template = chat_template("<image>")
    tokenizer = train_tokenizer({"image_token": "<image>"}, template)
    pinpoints = [[pixels * high, pixels * wide] for high, wide in grids]
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessorPil(
            size={"shortest_edge": pixels},
            crop_size={"height": pixels, "width": pixels},
            image_grid_pinpoints=pinpoints,
        ),
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=template,
    )
    config = transformers.LlavaNextConfig(
        text_config={"model_type": "llama", **text_config(tokenizer)},
        vision_config={
            "model_type": "clip_vision_model",
            "hidden_size": VISION_WIDTH,
            "intermediate_size": VISION_FEED_FORWARD,
            "num_hidden_layers": 4,
            "num_attention_heads": VISION_HEADS,
            "image_size": pixels,
            "patch_size": 12,
            "projection_dim": HIDDEN,
        },
        image_grid_pinpoints=pinpoints,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
        vision_feature_select_strategy="default",
        vision_feature_layer=-2,
        tie_word_embeddings=False,
    )
    return config, processor


PARTS: dict[str, Callable[..., tuple[Any, Any]]] = {
    "qwen": qwen_parts,
    "deepseek_vl": deepseek_vl_parts,
    "llava_next": llava_next_parts,
}
# Position embeddings must start at the scale of what they are added to, or they are ignored.
SCALES = {
    "deepseek_vl": {"patch_embedding": 4.0, "position_embedding": 4.0},
    "llava_next": {"position_embedding": 20.0},
}


def random_twin(family: str, seed: int, **geometry: Any) -> tuple[Any, Any]:
    """(model, processor) with random weights, float32."""
    config, processor = PARTS[family](**geometry)
    torch.manual_seed(seed)
    # from_config shares the config object with the model it makes.
    model = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for name, value in model.named_parameters():
            for part, scale in SCALES.get(family, {}).items():
                if f"{part}.weight" in name and "vision" in name:
                    value.mul_(scale)
    return model.float().eval(), processor


TOWER = re.compile(r"^(vision_tower\.|model\.vision_model\.)(?!vision_model\.)")


def build_twin(family: str, folder: str | Path, seed: int = 0, **geometry: Any) -> Path:
    """Write a tiny model with random weights as a transformers folder; returns the folder."""
    model, processor = random_twin(family, seed, **geometry)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    publish_names(Path(folder))
    return Path(folder)


def publish_names(folder: Path) -> None:
    """Rename a saved model's tensors as published models have them.

    Every version of transformers reads those; what a new one writes, an older one does not know.
    """
    path = folder / "model.safetensors"
    weights = {TOWER.sub(r"\1vision_model.", name): v for name, v in load_file(path).items()}
    save_file(weights, path, metadata={"format": "pt"})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Write a tiny model with random weights.")
    parser.add_argument("family", choices=sorted(PARTS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(build_twin(arguments.family, arguments.folder, arguments.seed))
