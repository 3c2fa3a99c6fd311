"""Which model a head was trained behind: enough to recognize it, cheap enough for any size.

Paths and aliases say little: the same path can hold another model, and another path the same one.
So a head keeps the sizes of the architecture, a few weights of many tensors, digests of tokenizer
and chat template, and the settings of the image processor. Hashing all weights would take as long
as reading them, and would differ where nothing is wrong: in another dtype, quantized, offloaded.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from pydantic import ConfigDict, Field, JsonValue
from torch import Tensor

TENSORS, VALUES = 64, 8
"""How many tensors are sampled, and how many values of each."""

ULP = 2.0**-7
"""Largest relative step of bfloat16, the coarsest dtype that sampled weights can have."""

SMALLEST = 2.0**-23
"""Values that differ by less are equal: float16 has no finer steps near zero."""

SIZES = (
    "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "vocab_size", "depth", "image_size", "patch_size",
)  # fmt: skip
"""The settings of a language or vision model that decide which weights it has."""

NOT_PIXELS = {
    "image_processor_type", "processor_class", "auto_map", "backend", "data_format", "device",
    "input_data_format", "return_tensors", "disable_grouping",
}  # fmt: skip
"""Settings of an image processor that do not change the pixels."""

PROBE = "A red ring, 12 cups; l'été où «tout» finit.\n\tA(b)=c_d  東京の猫 🐈 <|x|> </s>"
"""Its tokens differ where a tokenizer splits or normalizes differently with the same vocabulary."""

Sample = Annotated[str, Field(pattern=f"^(?:[0-9a-f]{{4}}){{1,{VALUES}}}$")]
"""Values of a tensor, rounded to bfloat16, as hexadecimal digits."""

Geometry = Mapping[str, Mapping[str, tuple[float, ...]]]

BOX = 0.05
"""How far apart the boxes of two measurements may be, in cells."""

Digest = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]


@dataclass(frozen=True)
class ModelIdentity:
    """What a VLM is recognized by; part of a head's `config.json`.

    Attributes:
        architecture: Class, types and sizes, by dotted name.
        weights: Sampled values by the name of their tensor.
        adapter: The same of an adapter (LoRA) that was applied to the model; empty without.
        tokenizer: SHA-256 of its vocabulary and of how it splits a sentence.
        chat_template: SHA-256 of its text.
        image_processor: The settings that decide the pixels.
        quantization: How the weights are quantized ("bitsandbytes 4bit"); empty if they are not.
        geometry: Where it was measured: by image size and view, rows and columns of its grid and
            its box on the image.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    architecture: Mapping[str, str | int]
    weights: Mapping[str, Sample]
    adapter: Mapping[str, Sample]
    tokenizer: Digest
    chat_template: Digest
    image_processor: Mapping[str, JsonValue]
    quantization: str = ""
    geometry: Geometry = field(default_factory=dict)

    @property
    def square(self) -> int | None:
        """The side in pixels of the square that every image becomes; None if it becomes another."""
        size = self.image_processor.get("size")
        if not isinstance(size, Mapping) or size.get("height") != size.get("width"):
            return None
        side = size.get("height")
        return side if isinstance(side, int) else None


def identify(vlm: Any, processor: Any, geometry: Geometry | None = None) -> ModelIdentity:
    """The identity of a loaded transformers model; reads a few of its weights."""
    adapters = set(getattr(vlm, "peft_config", None) or ())
    embeddings = vlm.get_input_embeddings().weight  # in memory whatever else is quantized
    base: dict[str, Tensor] = {}
    adapter: dict[str, Tensor] = {}
    for name, tensor in vlm.named_parameters():
        kind = adapter if adapters.intersection(name.split(".")) else base
        kind[name.replace(".base_layer.", ".")] = tensor
    template = getattr(processor, "chat_template", None) or processor.tokenizer.chat_template
    return ModelIdentity(
        architecture=_architecture(vlm),
        weights=_samples(base, always=embeddings),
        adapter=_samples(adapter),
        tokenizer=_digest(_tokens(processor.tokenizer)),
        chat_template=_digest(template),
        image_processor=_pixel_settings(processor.image_processor),
        quantization=_quantization(vlm.config),
        geometry=geometry or {},
    )


def differences(head: ModelIdentity, model: ModelIdentity) -> list[str]:
    """In words, how a model differs from the one that a head was trained behind.

    A weight that cannot be compared (quantized, offloaded, fused into another tensor) is no
    difference; nor is a setting that one of two versions of transformers does not have.
    """
    found = list(_unequal(head.architecture, model.architecture))
    compared = head.weights.keys() & model.weights.keys()
    other = sum(not _close(head.weights[name], model.weights[name]) for name in compared)
    if other:
        found.append(f"weights: {other} of {len(compared)} sampled tensors differ")
    if not _same_samples(head.adapter, model.adapter):
        kinds = ["an adapter" if each.adapter else "no adapter" for each in (head, model)]
        same = "another adapter" if head.adapter and model.adapter else kinds[1]
        found.append(f"adapter: head {kinds[0]}, model {same}")
    if head.tokenizer != model.tokenizer:
        found.append("tokenizer: not the same")
    if head.chat_template != model.chat_template:
        found.append("chat template: not the same")
    pixels = _unequal(head.image_processor, model.image_processor)
    places = _moved(head.geometry, model.geometry)
    return [*found, *(f"image processor, {text}" for text in pixels), *places]


def quantized_otherwise(head: ModelIdentity, model: ModelIdentity) -> str:
    """In words, that a model is quantized otherwise than in training; empty if it is not.

    It is the same model, a little less exact.
    """
    if head.quantization == model.quantization:
        return ""
    kinds = [each.quantization or "not quantized" for each in (head, model)]
    return f"quantization: head {kinds[0]}, model {kinds[1]}"


def _unequal(head: Mapping[str, Any], model: Mapping[str, Any]) -> Iterator[str]:
    for name, value in head.items():
        if name in model and model[name] != value:
            yield f"{name}: head {value}, model {model[name]}"


def _moved(head: Geometry, model: Geometry) -> Iterator[str]:
    for size in head.keys() & model.keys():
        one, other = head[size], model[size]
        for view in dict.fromkeys((*one, *other)):
            before, now = one.get(view), other.get(view)
            if before is None or now is None or before[:2] != now[:2] or _apart(before, now) > BOX:
                shown = f"head {_grid(before)}, model {_grid(now)}"
                yield f"measured geometry of images of {size} pixels, view '{view}': {shown}"


def _apart(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    """How far two boxes are apart, in cells."""
    cells = (*one[:2], *one[:2])
    sizes = (one[4] - one[2], one[5] - one[3]) * 2
    pairs = zip(one[2:], other[2:], cells, sizes, strict=True)
    return max(abs(a - b) * count / size for a, b, count, size in pairs)


def _grid(facts: tuple[float, ...] | None) -> str:
    if facts is None:
        return "none"
    return f"{facts[0]:.0f} x {facts[1]:.0f} at ({', '.join(f'{x:.3f}' for x in facts[2:])})"


def _architecture(vlm: Any) -> dict[str, str | int]:
    config = vlm.config
    sizes: dict[str, str | int] = {"class": type(vlm).__name__}
    parts = {"text": config.get_text_config(), "vision": getattr(config, "vision_config", None)}
    for part, settings in parts.items():
        for name in SIZES:
            value = getattr(settings, name, None)
            if isinstance(value, str | int):
                sizes[f"{part}.{name}"] = value
    return sizes


def _quantization(config: Any) -> str:
    """The method, and its bits if it says them: "bitsandbytes 4bit", "awq 4bit"."""
    settings = getattr(config, "quantization_config", None)
    if settings is None:
        return ""
    known = settings if isinstance(settings, Mapping) else settings.to_dict()
    method = known.get("quant_method", "unknown")
    words = [str(getattr(method, "value", method))]
    flags = {"load_in_8bit": 8, "load_in_4bit": 4}
    bits = next((bits for flag, bits in flags.items() if known.get(flag)), known.get("bits"))
    return " ".join([*words, *([f"{bits}bit"] if bits else [])])


def _readable(tensor: Tensor | None) -> bool:
    """Whether a weight is in memory, as numbers of at least 16 bits."""
    return (
        tensor is not None
        and not tensor.is_meta
        and type(tensor.data) is Tensor  # quantized weights can be other classes
        and tensor.is_floating_point()
        and tensor.element_size() > 1
        and tensor.numel() > 0
    )


def _samples(tensors: Mapping[str, Tensor], always: Tensor | None = None) -> dict[str, str]:
    """Samples of `always` and of `TENSORS` other tensors.

    They are chosen by a hash of the name: where fewer can be read, those that can are the same.
    """
    readable = {name: tensor for name, tensor in tensors.items() if _readable(tensor)}
    # Norms and biases are often all ones or zeros; quantization methods rescale them.
    names = [name for name, tensor in readable.items() if tensor.ndim > 1] or list(readable)
    names.sort(key=lambda name: (readable[name] is not always, _digest(name)))
    return {name: _sample(readable[name]) for name in sorted(names[: TENSORS + 1])}


def _sample(tensor: Tensor) -> str:
    flat = tensor.detach().reshape(-1)
    count = min(VALUES, len(flat))  # evenly spread, away from both ends
    places = [(2 * i + 1) * len(flat) // (2 * count) for i in range(count)]
    bits = flat[places].float().bfloat16().view(torch.int16).tolist()
    return "".join(f"{value & 0xFFFF:04x}" for value in bits)


def _values(sample: str) -> Tensor:
    bits = [int(sample[i : i + 4], 16) for i in range(0, len(sample), 4)]
    words = torch.tensor([bit - 0x10000 if bit > 0x7FFF else bit for bit in bits])
    return words.to(torch.int16).view(torch.bfloat16).float()


def _close(head: str, model: str) -> bool:
    """Whether samples are equal but for the rounding of a dtype."""
    if len(head) != len(model):
        return False
    return torch.allclose(_values(head), _values(model), rtol=ULP, atol=SMALLEST)


def _same_samples(head: Mapping[str, str], model: Mapping[str, str]) -> bool:
    return head.keys() == model.keys() and all(_close(head[name], model[name]) for name in head)


def _tokens(tokenizer: Any) -> Iterable[Any]:
    vocabulary = sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0]))
    return [vocabulary, tokenizer(PROBE, add_special_tokens=False)["input_ids"]]


def _pixel_settings(image_processor: Any) -> dict[str, Any]:
    settings = json.loads(json.dumps(image_processor.to_dict(), default=_plain))
    return {
        name: value
        for name, value in sorted(settings.items())
        if value is not None and name not in NOT_PIXELS and not name.startswith("_")
    }


def _plain(value: Any) -> Any:
    """Settings that JSON does not know: sizes are classes of their own in transformers."""
    return dict(value) if isinstance(value, Mapping) else str(value)


def _digest(content: Any) -> str:
    return hashlib.sha256(
        json.dumps(content, ensure_ascii=False).encode(errors="surrogatepass")
    ).hexdigest()
