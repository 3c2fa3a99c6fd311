"""Loads models as people have them: quantized, spread over devices, with an adapter.

check_loading  what would fail, in a moment
Loading        one way to load: arguments of `from_pretrained`, then an adapter (LoRA) on top
input_device   where a loaded model takes its inputs
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from flmm_core.errors import MissingExtraError, UsageError, WeightsError, machine_error
from flmm_core.pipeline.backbone import weights
from flmm_core.pipeline.backbone.quantization import keep_stored_layout, quantization
from flmm_core.pipeline.hub import HUB_ID, LATEST, fetch, split_revision
from flmm_core.spec import Attention, BackboneSpec, Quantize

NONE = "none"
ADAPTER, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.*"


def check_loading(
    source: str,
    *,
    adapter: str = NONE,
    quantize: Quantize = "none",
    attention: Attention = "auto",
    revision: str = LATEST,
    **others: Any,
) -> None:
    """What would fail when a model is loaded so, in a moment; a hub adapter is downloaded.

    Raises:
        MissingExtraError: A package is not installed.
        UsageError: A folder was asked for in a revision.
        WeightsError: The adapter is missing.
    """
    if revision != LATEST and Path(source).is_dir():
        raise UsageError(
            f"The model '{source}' has no revision '{revision}'.",
            found="It is a folder, not a repository of the hub.",
            repair="Omit the revision, or give a hub id (owner/name) as the model.",
        )
    if quantize != NONE:
        _need(
            "bitsandbytes",
            f"The model cannot be loaded in {quantize.removesuffix('bit')} bits.",
            'Install it (pip install "flmm[quantize]"), or omit --quantize.',
        )
    if attention == "flash_attention_2":
        _need(
            "flash_attn",
            f"The attention '{attention}' cannot be used.",
            "Install it (pip install flash-attn), or use --attention sdpa.",
        )
    if adapter != NONE:
        _need(
            "peft",
            f"The adapter '{adapter}' cannot be applied.",
            'Install it (pip install "flmm[adapters]"); or merge the adapter into the weights '
            "(merge_and_unload) and give that folder as the model.",
        )
        find_adapter(adapter)


def _need(package: str, asked: str, repair: str) -> None:
    if importlib.util.find_spec(package) is None:
        found = f"The package {package} is not installed."
        raise MissingExtraError(asked, found=found, repair=repair)


@dataclass(frozen=True)
class Loading:
    """How a VLM's weights are loaded; the fields are arguments of `Backbone.load`."""

    dtype: str | torch.dtype
    device: str | torch.device
    adapter: str
    quantize: Quantize
    attention: Attention
    given: Mapping[str, Any]

    def load(self, spec: BackboneSpec, source: str, load_model: Callable[..., Any]) -> Any:
        """(vlm, processor), by a plugin's `load_model`; raises as `Backbone.load`."""
        target = weights.choose_device(self.device)
        kwargs = {"trust_remote_code": False, **self._arguments(target)}
        placed = "device_map" in kwargs or "quantization_config" in kwargs
        on_cpu = target.type == "cpu" and (not placed or self.quantize != NONE)
        kwargs["dtype"] = weights.choose_dtype(self.dtype, "cpu" if on_cpu else "auto")
        with weights.explain_errors(spec, source):
            vlm, processor = load_model(**kwargs)
        keep_stored_layout(vlm)
        if self.adapter != NONE:
            apply_adapter(vlm, self.adapter, source)
        return (vlm if placed else vlm.to(target)), processor

    def _arguments(self, device: torch.device) -> dict[str, Any]:
        """The arguments of `from_pretrained` that the settings mean."""
        wanted = dict(self.given)
        if wanted.get("device_map") == NONE:
            del wanted["device_map"]
        if self.attention != "auto":
            wanted["attn_implementation"] = self.attention
        if self.quantize != NONE:
            # A warning for each layer says that float32 is rounded on the way.
            logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
            wanted["quantization_config"] = quantization(self.quantize)
            wanted.setdefault("device_map", {"": str(device)})
        return wanted


def input_device(vlm: Any) -> torch.device:
    """Where a model takes its inputs, even if its first weights are not in memory."""
    device = getattr(getattr(vlm, "_hf_hook", None), "execution_device", None)
    device = torch.device(vlm.device if device is None else device)
    return torch.device("cpu") if device.type == "meta" else device


def find_adapter(adapter: str) -> Path:
    """The folder of an adapter, downloaded if it is on the hub; `WeightsError` if there is none."""
    asked = f"The adapter '{adapter}' cannot be used."
    folder = Path(adapter).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(split_revision(adapter)[0]):
        folder = fetch(adapter, asked, [ADAPTER, ADAPTER_WEIGHTS])
    files = (folder / ADAPTER).is_file(), any(folder.glob(ADAPTER_WEIGHTS))
    if not all(files):
        missing = "There is no such folder."
        if folder.is_dir():
            missing = f"The folder has no {'adapter_model.safetensors' if files[0] else ADAPTER}."
        repair = "Give a folder that peft's save_pretrained wrote, or a hub id."
        raise WeightsError(asked, found=missing, repair=repair)
    return folder


def apply_adapter(vlm: Any, adapter: str, source: str) -> None:
    """Add an adapter to a model in place.

    Raises:
        WeightsError: It does not fit the model, or is of a kind that adds no weights to layers.
    """
    folder = find_adapter(adapter)
    asked = f"The adapter '{adapter}' does not fit the model '{source}'."
    repair = "Give the adapter that was trained on this model, or the model that it was trained on."
    try:
        report = vlm.load_adapter(str(folder), ignore_mismatched_sizes=True)
    except Exception as error:  # a damaged file can raise anything
        if (known := machine_error(error)) is not None:
            raise known from error
        reason = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(asked, found=reason, repair=repair) from error
    faults = {
        "are missing": report.missing_keys,
        "are not the model's": report.unexpected_keys,
        "have other shapes": [key for key, *_ in report.mismatched_keys],
    }
    found = [
        f"{len(names)} of its tensors {what}: {', '.join(sorted(names)[:3])}"
        for what, names in faults.items()
        if names
    ]
    if found:
        raise WeightsError(asked, found="; ".join(found) + ".", repair=repair)
