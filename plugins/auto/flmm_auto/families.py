"""Families that were tried: measured with their published settings, at six sizes of images.

The models were of toy width with random weights (`python -m recipes.auto`); repainting parts of
images changed the tokens that were measured to lie there.
"""

from __future__ import annotations

LISTED = {
    "aya_vision": "5.24",
    "cohere2_vision": "5.24",
    "deepseek_vl": "5.24",
    "gemma3": "5.24",
    "glm4v": "5.24",
    "idefics3": "5.24",
    "internvl": "5.24",
    "janus": "5.24",
    "lighton_ocr": "5.24",
    "llava": "5.24",
    "llava_next": "5.24",
    "mistral3": "5.24",
    "ovis2": "5.24",
    "paddleocr_vl": "5.24",
    "qwen2_5_vl": "5.24",
    "qwen2_vl": "5.24",
    "qwen3_vl": "5.24",
    "video_llama_3": "5.24",
    "vipllava": "5.24",
}
"""The `model_type` of config.json -> the version of transformers."""
