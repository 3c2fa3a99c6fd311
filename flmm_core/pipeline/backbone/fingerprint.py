"""What a frozen model does with a drawn image, small enough to be kept with a head.

A head reads the attention of one model under one set of library versions. Another version can
change what the model reads (template, tokens, pixels) or how it runs (masks, positions) without an
error. So a head keeps a sketch of both, taken where it was trained, and loading compares.

Texts, token ids and grids must be equal. Pixels, attention and hidden states may differ by what
another dtype, device or batch changes: see `TOLERANCES`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import ConfigDict, Field
from torch import Tensor

from flmm_core.errors import RunError
from flmm_core.pipeline.backbone.identity import Digest
from flmm_core.pipeline.backbone.load_check import Witness, misplaced_views
from flmm_core.pipeline.backbone.probe import (
    CAPTION,
    capturing,
    hashed,
    misread_phrases,
    probe_image,
)
from flmm_core.pipeline.finite import DAMAGED, OVERFLOW
from flmm_core.pipeline.types import BackboneInputs, Trace
from flmm_core.plugins import package_version
from flmm_core.spec import DEFAULT_PROMPT

if TYPE_CHECKING:
    from flmm_core.pipeline.backbone.base import Backbone

PACKAGES = ("transformers", "tokenizers", "torch", "pillow")
"""What decides how a model runs, most likely culprit first."""

TOLERANCES = {"float32": 0.02, "bfloat16": 0.12, "float16": 0.12, "quantized": 0.5}
"""By the coarser of two dtypes: share of a map that may lie elsewhere, and relative difference of
hidden states. What dtype, device and batch change stays below a third of it; see the tests."""

PIXELS = 0.06
"""Of the spread (standard deviation) of the pixels: about 4 of 255 levels. Pillow's versions may
round differently."""

CELLS, DIRECTIONS, SAMPLES = 4, 16, 256
"""A map is kept as CELLS x CELLS sums, a hidden state along DIRECTIONS, an image as SAMPLES."""

Numbers = Annotated[str, Field(pattern="^(?:[0-9a-f]{4})*$", max_length=1 << 16)]
"""float16 values, as hexadecimal digits."""


@dataclass(frozen=True)
class Fingerprint:
    """Part of a head's `config.json`.

    Attributes:
        versions: Of the packages that decide how the model runs.
        precision: Dtype of the weights, or "quantized".
        processor: Classes of the processor and its image processor.
        reads: The text that the model reads, each image as one token.
        tokens: SHA-256 of the token ids.
        views: By name, the grid's shape and box on the image.
        pixels: By name and shape, samples of the image's tensors; of integers the name says all.
        attention: Per layer, how the phrases' attention is spread over the views.
        hidden: Per layer, the phrases' hidden states along fixed directions.
    """

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    versions: Mapping[str, str]
    precision: str
    processor: tuple[str, ...]
    reads: str
    tokens: Digest
    views: Mapping[str, tuple[float, ...]]
    pixels: Mapping[str, Numbers]
    attention: tuple[Numbers, ...]
    hidden: tuple[Numbers, ...]


_TAKEN: dict[Any, Fingerprint] = {}
"""The model runs once a process, however often it is loaded: libraries do not change meanwhile."""


def take_fingerprint(backbone: Backbone) -> Fingerprint:
    """Run the model on a drawn image and caption, and check that it keeps its promises.

    The prompt and the system message of the backbone do not matter.

    Raises:
        RunError: A token attends to later ones, the recorded attention is not what the model
            used, a phrase's rows are other words, the processor is of another class, or a view is
            not where its grid says.
    """
    identity = backbone.identity()
    known = repr((type(backbone), backbone.options, backbone.caption_mode, identity))
    key = known, _precision(backbone.vlm), str(backbone.vlm.device)
    if key not in _TAKEN:
        _TAKEN[key] = _take(backbone)
    return _TAKEN[key]


def forget_fingerprints() -> None:
    """Let every model run again when it is loaded next."""
    _TAKEN.clear()


def _take(backbone: Backbone) -> Fingerprint:
    plain: Backbone = object.__new__(type(backbone))  # the same model, asked the same everywhere
    plain.__dict__.update(backbone.__dict__, prompt=DEFAULT_PROMPT, system=None)
    image = probe_image()
    inputs = plain.prepare(image, CAPTION, name="drawn image")
    witness = Witness(torch.cat(inputs.phrase_rows))
    with capturing(plain) as captured, witness.watching(plain.vlm.get_decoder()):
        (trace,) = plain.trace(plain.collate([inputs]))
    embedded = captured["inputs_embeds"][0]  # (S, D)
    if not trace.hidden.isfinite().all():
        raise RunError(
            f"The hidden states of the model '{backbone.model}' are not finite on a drawn image.",
            found=f"It runs in {_precision(plain.vlm)}.",
            repair=OVERFLOW if plain.vlm.dtype == torch.float16 else DAMAGED,
        )
    faults = [
        *_other_classes(plain),
        *misread_phrases(plain, inputs, CAPTION),
        *witness.faults(plain.vlm.dtype),
        *misplaced_views(plain, image, inputs, embedded),
    ]
    if faults:
        raise RunError(
            f"The model '{backbone.model}' does not do what its backbone promises, on a drawn "
            "image.",
            found="\n".join([*faults, f"Versions: {_shown(installed())}."]),
            repair="Install versions of these libraries that the model works with, or go on at "
            "your own risk with --no-check (Python: check=False).",
        )
    ids = inputs.tokens["input_ids"].tolist()
    once = [i for i, run in groupby(ids) for _ in (run if i != plain.image_token_id else (0,))]
    return Fingerprint(
        versions=installed(),
        precision=_precision(plain.vlm),
        processor=_classes(plain.processor),
        reads=plain.tokenizer.decode(once, clean_up_tokenization_spaces=False),
        tokens=hashlib.sha256(repr(ids).encode()).hexdigest(),
        views={
            view.name: (*map(float, view.token_index.shape), *(round(x, 6) for x in view.image_box))
            for view in inputs.views
        },
        pixels=dict(_pixels(inputs)),
        attention=tuple(_attention(trace)),
        hidden=tuple(_hidden(trace)),
    )


def installed() -> dict[str, str]:
    """The versions of the packages that decide how a model runs."""
    return {name: package_version(name) or "none" for name in PACKAGES}


def deviations(then: Fingerprint, now: Fingerprint) -> list[str]:
    """In words, how a model does otherwise than when the fingerprint `then` was taken."""
    found = list(_unequal(then, now))
    if then.pixels.keys() != now.pixels.keys():
        found.append(f"pixels: {', '.join(then.pixels)}; now {', '.join(now.pixels)}")
    for name in then.pixels.keys() & now.pixels.keys():
        worst = _apart_at_most(then.pixels[name], now.pixels[name])
        if not worst <= PIXELS:
            found.append(
                f"pixels: {name} by up to {worst:.0%} of their spread (rounding: {PIXELS:.0%})"
            )
    layers = [(len(each.attention), len(each.hidden)) for each in (then, now)]
    if layers[0] != layers[1]:
        found.append(f"layers: {layers[0][1]}; now {layers[1][1]}")
    elif then.views.keys() == now.views.keys():
        most = max(_tolerance(then), _tolerance(now))
        maps = [
            _elsewhere(*pair, len(then.views)) for pair in _pairs(then.attention, now.attention)
        ]
        states = [_apart(*pair) for pair in _pairs(then.hidden, now.hidden)]
        for what, values in (("attention: share elsewhere", maps), ("hidden states", states)):
            worst = max(values, default=0.0)
            if not worst <= most:
                found.append(
                    f"{what}: {worst:.0%} in layer {values.index(worst)} (rounding: {most:.0%})"
                )
    return found


def _unequal(then: Fingerprint, now: Fingerprint) -> Iterator[str]:
    if then.processor != now.processor:
        yield f"processor: {', '.join(then.processor)}; now {', '.join(now.processor)}"
    if then.reads != now.reads:
        yield f"tokens: the model read {then.reads!r}; now {now.reads!r}"
    elif then.tokens != now.tokens:
        yield "tokens: other ids of the same text, or another number of image tokens"
    for name in dict.fromkeys([*then.views, *now.views]):
        if then.views.get(name) != now.views.get(name):
            yield f"views: {name} {then.views.get(name)}; now {now.views.get(name)}"


def versions_apart(then: Fingerprint, now: Fingerprint) -> str:
    """The versions of both that differ, in one sentence."""
    names = [n for n in PACKAGES if then.versions.get(n) != now.versions.get(n)]
    if not names:
        return f"The versions are the same: {_shown(now.versions)}."
    one, other = ({n: each.versions.get(n, "none") for n in names} for each in (then, now))
    return f"Then: {_shown(one)}. Now: {_shown(other)}."


def _shown(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


def _precision(vlm: Any) -> str:
    if getattr(vlm, "is_quantized", False) or getattr(vlm, "hf_quantizer", None) is not None:
        return "quantized"
    return str(vlm.dtype).removeprefix("torch.")


def _tolerance(fingerprint: Fingerprint) -> float:
    return TOLERANCES.get(fingerprint.precision, TOLERANCES["bfloat16"])


def _classes(processor: Any) -> tuple[str, ...]:
    """Without the suffix that says which library resizes, or in which language it is written."""
    parts = processor, processor.image_processor
    return tuple(type(p).__name__.removesuffix("Fast").removesuffix("Pil") for p in parts)


def _other_classes(backbone: Backbone) -> Iterator[str]:
    wanted = backbone.processor_types
    bases = [base.__name__ for base in type(backbone.processor).__mro__]
    if wanted and not set(wanted) & set(bases):
        yield f"processor: it is a {bases[0]}, not a {' or '.join(wanted)}"


# --- sketches -----------------------------------------------------------------------------------


def _pixels(inputs: BackboneInputs) -> Iterator[tuple[str, str]]:
    for name, tensor in sorted(inputs.prefix.image.items()):
        shape = "x".join(map(str, tensor.shape))
        flat = tensor.flatten().float()
        if not tensor.is_floating_point():
            yield f"{name} {shape} {flat.int().tolist()[:16]}", ""
            continue
        count = min(SAMPLES, len(flat))  # an odd stride: all channels, rows and columns
        places = [(2 * i + 1) * len(flat) // (2 * count) for i in range(count)]
        yield f"{name} {shape}", _digits(flat[places])


def _attention(trace: Trace) -> Iterator[str]:
    """Per layer and phrase: each view's share, and its map as sums of parts; heads weighted."""
    heads = np.arange(trace.attention.shape[1])
    weights = torch.from_numpy((hashed(heads) % 8).astype(np.float32)) + 1
    weights = (weights / weights.sum()).to(trace.attention)
    maps = torch.einsum("n,lnpm->lpm", weights, trace.attention).cpu()  # (L, P, M)
    grids = [view.token_index.shape for view in trace.views]
    kept = []
    for part, grid in zip(maps.split([g.numel() for g in grids], 2), grids, strict=True):
        total = part.sum(2, keepdim=True)  # (L, P, 1)
        pooled = F.adaptive_avg_pool2d(part.unflatten(2, grid), CELLS).flatten(2)
        kept += [total, pooled / pooled.sum(2, keepdim=True).clamp(min=1e-12)]
    yield from (_digits(each.flatten()) for each in torch.cat(kept, 2))  # (L, P, V * 17)


def _hidden(trace: Trace) -> Iterator[str]:
    """Per layer: the states of the phrases' tokens, each of length 1, along fixed directions."""
    width = trace.hidden.shape[2]
    signs = hashed(np.arange(DIRECTIONS * width)).reshape(DIRECTIONS, width) % 2
    directions = torch.from_numpy(signs.astype(np.float32) * 2 - 1)
    states = F.normalize(trace.hidden.float().cpu(), dim=2) @ directions.T  # (L, T, DIRECTIONS)
    yield from (_digits(each.flatten()) for each in states)


def _digits(values: Tensor) -> str:
    return values.numpy().astype("<f2").tobytes().hex()


def _numbers(digits: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(bytes.fromhex(digits), "<f2").astype(np.float32))


def _pairs(then: tuple[str, ...], now: tuple[str, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    return ((_numbers(a), _numbers(b)) for a, b in zip(then, now, strict=True))


def _largest(values: Tensor) -> float:
    return float(values.abs().max().nan_to_num(nan=torch.inf)) if len(values) else 0.0


def _apart_at_most(then: str, now: str) -> float:
    one, other = _numbers(then), _numbers(now)
    if len(one) != len(other):
        return torch.inf
    return _largest(one - other) / max(float(one.std()), 1e-6) if len(one) > 1 else 0.0


def _elsewhere(then: Tensor, now: Tensor, views: int) -> float:
    """The largest share of a map that lies elsewhere, and change of a view's share of attention."""
    if then.shape != now.shape:
        return torch.inf
    apart = (then - now).abs().view(-1, views, 1 + CELLS**2)
    return max(_largest(apart[..., 0]), _largest(apart[..., 1:].sum(2).flatten() / 2))


def _apart(then: Tensor, now: Tensor) -> float:
    """Relative difference of two sets of states."""
    if then.shape != now.shape:
        return torch.inf
    return _largest(((then - now).norm() / then.norm().clamp(min=1e-12))[None])
