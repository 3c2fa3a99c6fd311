"""A value for every setting that is not its default, and the options that give it."""

from __future__ import annotations

from typing import Any, Literal, get_args, get_origin

from flmm_core.config import option_name
from flmm_core.pipeline.refiners import SamOptions


def other_value(setting: Any) -> Any:
    """A value that is not the default."""
    if setting.key == "options":
        return {"min_pixels": 3136, "max_pixels": 50_000}
    if setting.key == "refiner_options":
        return SamOptions(size="vit_b", mask=False, text=False, half=True).model_dump()
    if setting.key in ("backbone", "refiner"):
        return {"backbone": "qwen", "refiner": "sam"}[setting.key]
    if setting.key in ("train", "log_with"):
        return {"train": ["head", "sam"], "log_with": ["tensorboard", "wandb"]}[setting.key]
    if get_origin(setting.type) is list:
        return ["refcoco:/a@b", "jsonl:/c"]
    if setting.type is bool:
        return not setting.default
    if get_origin(setting.type) is Literal:
        return next(value for value in get_args(setting.type) if value != setting.default)
    if setting.key in ("workers", "max_skipped", "batch_size", "head.pool_ends"):
        some = {"workers": 3, "max_skipped": "7%", "batch_size": 777, "head.pool_ends": 7}
        return some[setting.key]
    return {int: 777, float: 0.25}.get(setting.type, "some/where")


def as_arguments(key: str, value: Any) -> list[str]:
    if isinstance(value, bool):
        return [option_name(key if value else f"no_{key}")]
    if isinstance(value, dict):
        option = option_name(key)
        return [part for pair in value.items() for part in (option, "{}={}".format(*pair))]
    if isinstance(value, list):
        return [part for item in value for part in (option_name(key), item)]
    return [option_name(key), str(value)]
