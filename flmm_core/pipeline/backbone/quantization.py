"""Which parts of a model are loaded in 8 or 4 bits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from flmm_core.errors import UsageError
from flmm_core.pipeline.hub import HUB_ARGUMENTS
from flmm_core.spec import Quantize

BITSANDBYTES = "bitsandbytes"
AVX512 = "support_avx512bf16_for_cpu"


def quantization(quantize: Quantize) -> dict[str, Any]:
    """The `quantization_config` of `--quantize`: integers of 8 bits, or NormalFloat of 4."""
    if quantize == "8bit":
        return {"quant_method": BITSANDBYTES, "load_in_8bit": True}
    return {"quant_method": BITSANDBYTES, "load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}


def with_kept_modules(model_class: Any, source: str, wanted: Any, hub: Mapping[str, Any]) -> Any:
    """What `quantization` made, with the names of the modules that are left as they are.

    Only the language model's layers are quantized: the vision encoder is small and sensitive.
    Others, such as the configuration of another method, are returned as they are given.
    """
    ours = isinstance(wanted, dict) and wanted.get("quant_method") == BITSANDBYTES
    config_class = getattr(model_class, "config_class", None)
    if not ours or config_class is None:
        return wanted
    files = {key: hub[key] for key in HUB_ARGUMENTS if key in hub}
    config = config_class.from_pretrained(source, **files)
    if getattr(config, "quantization_config", None) is not None:
        raise UsageError(
            f"The model '{source}' cannot be quantized.",
            found="Its weights are quantized already.",
            repair="Omit --quantize, or give the original model.",
        )
    with torch.device("meta"):  # names and shapes only
        model = model_class(config)
    decoder = model.get_decoder()
    return {**wanted, "llm_int8_skip_modules": [*_outside(model, decoder)]}


def keep_stored_layout(vlm: Any) -> None:
    """Keep bitsandbytes 0.50 from repacking 4-bit weights on CPUs with AVX512-BF16.

    It undoes that whenever a state dict is taken, but not for the scales, which are then wrong.
    """
    for module in vlm.modules():
        if hasattr(module, AVX512):
            setattr(module, AVX512, False)


def _outside(module: nn.Module, decoder: nn.Module, name: str = "") -> Iterator[str]:
    """The largest modules that have no part of the decoder."""
    if module is decoder:
        return
    if not any(inner is decoder for inner in module.modules()):
        yield name
        return
    for child, inner in module.named_children():
        yield from _outside(inner, decoder, f"{name}.{child}".lstrip("."))
