"""Families of models whose geometry was measured and which were loaded and trained behind."""

from __future__ import annotations

LISTED = {
    "deepseek_vl": "5.24",
    "llava_next": "5.24",
    "qwen2_5_vl": "5.24",
}
"""The `model_type` of config.json -> the version of transformers."""
