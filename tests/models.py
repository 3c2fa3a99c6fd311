"""Toy-width models of the real transformers classes with random weights, and their processors.

Nothing is downloaded: the tokenizer knows single bytes and the control tokens, no more.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor

from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.types import ImageView
from flmm_core.segment import Segment
from flmm_core.spec import BackboneOptions, BackboneSpec, ModelInfo

FAMILIES = ("qwen", "deepseek_vl", "llava_next", "llava_next_mistral")
LAYERS, HEADS, KV_HEADS, HIDDEN = 3, 4, 2, 32
MAX_LENGTH = 512
TILE, PATCH = 24, 8

VISION = {"intermediate_size": 48, "hidden_size": 32}


def tokenizer(template: str, **special: str) -> Any:
    """One token a byte, so that every text has tokens and no two texts share any by accident."""
    names = ["<|pad|>", "<|bos|>", "<|eos|>", *special.values(), *pre_tokenizers_alphabet()]
    core = Tokenizer(models.BPE(vocab={name: i for i, name in enumerate(names)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<|pad|>",
        bos_token="<|bos|>",
        eos_token="<|eos|>",
        extra_special_tokens=special,
        chat_template=template,
    )


def pre_tokenizers_alphabet() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def template(image: str) -> str:
    return (
        "{{ bos_token }}{% for message in messages %}"
        "{{ ' ASSISTANT:' if message['role'] == 'assistant' else message['role'].upper() + ': ' }}"
        "{% for part in message['content'] %}"
        "{% if part['type'] == 'image' %}" + image + "{% else %}{{ part['text'] }}{% endif %}"
        "{% endfor %}{% endfor %}{% if add_generation_prompt %} ASSISTANT:{% endif %}"
    )


def text_config(words: Any, **more: Any) -> dict[str, Any]:
    return {
        "vocab_size": len(words),
        "hidden_size": HIDDEN,
        "intermediate_size": 48,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": MAX_LENGTH,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
        **more,
    }


def qwen() -> tuple[Any, Any]:
    chat = template("<|vision_start|><|image_pad|><|vision_end|>")
    names = {
        "image_token": "<|image_pad|>",
        "video_token": "<|video_pad|>",
        "vision_bos_token": "<|vision_start|>",
        "vision_eos_token": "<|vision_end|>",
    }
    words = tokenizer(chat, **names)
    size = {"shortest_edge": 32 * 32, "longest_edge": 96 * 96}
    patches = {"patch_size": PATCH, "merge_size": 2, "temporal_patch_size": 2, "size": size}
    processor = transformers.Qwen2_5_VLProcessor(
        transformers.Qwen2VLImageProcessor(**patches),
        words,
        transformers.Qwen2VLVideoProcessor(**patches),
        chat_template=chat,
    )
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(
        text_config=text_config(words, rope_parameters=rope),
        vision_config=VISION
        | {
            "depth": 2,
            "num_heads": 2,
            "patch_size": PATCH,
            "window_size": 32,
            "fullatt_block_indexes": [1],
            "out_hidden_size": HIDDEN,
        },
        image_token_id=words.convert_tokens_to_ids("<|image_pad|>"),
        video_token_id=words.convert_tokens_to_ids("<|video_pad|>"),
        vision_start_token_id=words.convert_tokens_to_ids("<|vision_start|>"),
        vision_end_token_id=words.convert_tokens_to_ids("<|vision_end|>"),
    )
    return config, processor


def deepseek_vl() -> tuple[Any, Any]:
    chat = template("<image_placeholder>")
    words = tokenizer(chat, image_token="<image_placeholder>")
    processor = transformers.DeepseekVLProcessor(
        transformers.DeepseekVLImageProcessor(size={"height": 32, "width": 32}),
        words,
        chat_template=chat,
        num_image_tokens=16,
    )
    config = transformers.DeepseekVLConfig(
        text_config={"model_type": "llama", **text_config(words)},
        vision_config=VISION
        | {
            "model_type": "siglip_vision_model",
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": PATCH,
            "vision_use_head": False,
        },
        image_token_id=words.convert_tokens_to_ids("<image_placeholder>"),
    )
    return config, processor


def llava_next(text: str = "llama", **more: Any) -> tuple[Any, Any]:
    chat = template("<image>")
    words = tokenizer(chat, image_token="<image>")
    pinpoints = [[2 * TILE, 2 * TILE], [TILE, 2 * TILE], [2 * TILE, TILE]]
    processor = transformers.LlavaNextProcessor(
        transformers.LlavaNextImageProcessor(
            size={"shortest_edge": TILE},
            crop_size={"height": TILE, "width": TILE},
            image_grid_pinpoints=pinpoints,
        ),
        words,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat,
    )
    config = transformers.LlavaNextConfig(
        text_config={"model_type": text, **text_config(words, **more)},
        vision_config=VISION
        | {
            "model_type": "clip_vision_model",
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "image_size": TILE,
            "patch_size": PATCH,
        },
        image_grid_pinpoints=pinpoints,
        image_token_index=words.convert_tokens_to_ids("<image>"),
    )
    return config, processor


def parts(family: str) -> tuple[Any, Any]:
    """(config, processor)."""
    return {
        "qwen": qwen,
        "deepseek_vl": deepseek_vl,
        "llava_next": llava_next,
        "llava_next_mistral": lambda: llava_next("mistral", sliding_window=None),
        # shorter than the sequence, as Mistral's own default can be
        "llava_next_window": lambda: llava_next("mistral", sliding_window=100),
    }[family]()


class OneView(Backbone):
    """A single grid that covers the whole image."""

    model_types = ("qwen2_5_vl", "deepseek_vl")

    @classmethod
    def load_model(cls, source: str, options: BackboneOptions, **kwargs: Any) -> tuple[Any, Any]:
        vlm = transformers.AutoModelForImageTextToText.from_pretrained(source, **kwargs)
        return vlm, transformers.AutoProcessor.from_pretrained(source)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        h, w = 4, 4
        if "image_grid_thw" in tensors:
            h, w = (int(side) // 2 for side in tensors["image_grid_thw"][0, 1:])
        return (ImageView("image", self.image_token_positions(input_ids, h * w).view(h, w)),)


class TwoViews(OneView):
    """A small and a large grid, the large one with line ends; for images of a canvas's shape."""

    view_names = ("coarse", "fine")
    model_types = ("llava_next",)

    def views(
        self, input_ids: Tensor, image_hw: tuple[int, int], tensors: Mapping[str, Tensor]
    ) -> tuple[ImageView, ...]:
        n = TILE // PATCH
        high, wide = image_hw
        h, w = (n if high < wide else 2 * n), (n if wide < high else 2 * n)
        places = self.image_token_positions(input_ids, n * n + h * (w + 1))
        fine = places[n * n :].view(h, w + 1)[:, :w]
        return (ImageView("coarse", places[: n * n].view(n, n)), ImageView("fine", fine))

    def separator_tokens(self, views: Sequence[ImageView]) -> int:
        return views[1].token_index.shape[0]


def spec(**more: Any) -> BackboneSpec:
    facts = {"models": {"tiny": ModelInfo("nowhere/nothing", "none")}, **more}
    return BackboneSpec(name="toy", target="tests.models:OneView", summary="", **facts)


def kind(family: str) -> type[OneView]:
    return TwoViews if family.startswith("llava") else OneView


def build(
    family: str, seed: int = 0, dtype: torch.dtype = torch.float32, **options: Any
) -> OneView:
    """A backbone with random weights, large enough that attention is far from uniform."""
    config, processor = parts(family)
    torch.manual_seed(seed)
    vlm = transformers.AutoModelForImageTextToText.from_config(copy.deepcopy(config))
    with torch.no_grad():
        for name, value in vlm.named_parameters():
            if value.ndim == 2:
                value.mul_(8 if "q_proj" in name or "k_proj" in name else 4)
    return kind(family)(spec(), vlm.to(dtype), processor, **options)


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    noise = torch.randint(
        0, 256, (height, width, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed)
    )
    return Image.fromarray(noise.numpy())


CAPTIONS = (
    (Segment("a red ring", 0), Segment(" left of "), Segment("it", 1)),
    (Segment("the sky", 0), Segment(".")),
)


def samples(backbone: Backbone) -> list[Any]:
    """Two samples of different length, with images of different shape."""
    pictures = picture(48, 48, 1), picture(48, 24, 2)
    return [
        backbone.prepare(image, caption, name=f"sample-{i}")
        for i, (image, caption) in enumerate(zip(pictures, CAPTIONS, strict=True))
    ]
