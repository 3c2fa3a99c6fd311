"""Heads of the original F-LMM: its checkpoint files to heads of flmm, and back."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from flmm_core.errors import UsageError, WeightsError
from flmm_core.files import write_bytes
from flmm_core.pipeline.build import Recipe, build_flow
from flmm_core.pipeline.fit import weight_problems
from flmm_core.pipeline.grounder import Grounder
from flmm_core.pipeline.head_folder import HeadInfo, find_head, read_info, read_weights
from flmm_core.pipeline.observer import Observer
from flmm_core.spec import BackboneSpec

NAMES = {
    "mask_head.": "mask_head.unet.",
    "text_": "text_prompts.",
    "sam.model.prompt_encoder.": "refiner.prompt_encoder.",
    "sam.model.mask_decoder.": "refiner.mask_decoder.",
}
"""How names of the original begin, and what flmm's begin with instead."""
ENCODER = "sam.model.image_encoder."
MATRIX = "sam.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""SAM's random matrix of positions: never trained, and not in every file."""
HALF_APART = 1e-3
"""How far values in float16 may be from those in float32, relative to the largest."""
RECIPE: Mapping[str, Any] = {
    "caption_mode": "pieces",
    "paper_rounding": True,
    "presence": False,
    "enlarge_to": 64,
    "channels": (),
    "refiner": "sam",
}
"""What all heads of the original have in common."""
SAM_PROMPTS = {"mask": True, "box": True, "text": True}


def import_head(
    path: Path,
    recipe: Recipe,
    spec: BackboneSpec,
    *,
    refiner_weights: Path | None = None,
    **arguments: Any,
) -> Grounder:
    """A checkpoint of the original as a head of flmm, behind its VLM.

    Args:
        path: A flat or nested state dict, in float16 or float32, as .pth or .safetensors. SAM's
            image encoder and matrix, if it has them, are compared with those of `refiner_weights`.
        recipe: Backbone, model, pooling and refiner; what `RECIPE` says and the U-Net's width
            are put in.
        spec: The backbone's facts.
        refiner_weights: The public SAM file that the original was trained with.
        arguments: For `build_flow`.

    Raises:
        WeightsError: The file cannot be read; tensors are missing, unexpected or of another shape;
            or its SAM is another.
    """
    tensors = read_checkpoint(path)
    last = tensors.get("mask_head.conv_seg.weight")
    width = {} if last is None or last.ndim != 4 else {"base_channels": last.shape[1]}
    options = {**recipe.refiner_options, **SAM_PROMPTS}
    recipe = replace(recipe, refiner_options=options, **{**RECIPE, **width})
    observer, head = build_flow(recipe, spec=spec, refiner_weights=refiner_weights, **arguments)
    own = head.state_dict()
    theirs = {original_name(name): value for name, value in own.items()}
    trained = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith((ENCODER, *spec.original.prefixes))
    }
    given = {MATRIX: theirs[MATRIX], **trained}
    if problems := weight_problems(theirs, given):
        vlm = observer.vlm
        raise WeightsError(
            f"'{path}' holds no head of the original F-LMM for the model '{recipe.model}'.",
            found="\n".join([f"{len(problems)} differences:", *(f"  {p}" for p in problems)]),
            repair=f"'{recipe.model}' has {vlm.layers} layers, {vlm.attention_channels} attention "
            f"channels and width {vlm.hidden_size}. Give the model that the head was trained "
            "with, and the SAM with --refiner.",
        )
    _check_sam(path, tensors, observer, theirs[MATRIX], refiner_weights)
    head.load_weights(
        {name: given[original_name(name)].float().to(own[name].device) for name in own}
    )
    facts = {
        "protocol": "flmm-paper",
        "reads": observer.backbone.rendered_prompt(),
        "imported": {"file": path.name, "sha256": _digest(path)},
    }
    return Grounder(
        observer, head, HeadInfo(recipe, observer.vlm, facts, observer.backbone.identity())
    )


def export_head(head: Path, path: Path, *, half: bool = False) -> int:
    """Write a head as the original writes its own, a flat state dict; returns how many tensors.

    Args:
        head: A run folder or a head folder.
        half: In float16 instead of float32.

    Raises:
        UsageError: The original has no head like this one.
        WeightsError: The head is missing or damaged.
    """
    folder = find_head(head)
    info = read_info(folder)
    prompts = {name: info.recipe.refiner_options.get(name, True) for name in SAM_PROMPTS}
    found = {**{name: getattr(info.recipe, name) for name in RECIPE}, **prompts}
    wanted = {**RECIPE, **SAM_PROMPTS}
    if different := [
        f"  {name.replace('_', ' ')}: {_said(found[name])}; in the original {_said(wanted[name])}"
        for name in wanted
        if found[name] != wanted[name]
    ]:
        raise UsageError(
            f"The head in '{head}' is none that the original F-LMM can have.",
            found="\n".join(different),
            repair="Train it with --head-paper-rounding --caption-mode pieces --head-enlarge-to 64 "
            "and SAM with text, mask and box prompts.",
        )
    dtype = torch.float16 if half else torch.float32
    state = {original_name(name): x.to(dtype) for name, x in read_weights(folder).items()}
    buffer = io.BytesIO()  # torch.save turns a full disk into a RuntimeError without its reason
    torch.save(state, buffer)
    write_bytes(path, buffer.getvalue())
    return len(state)


def original_name(name: str) -> str:
    """The original's name of a weight of a head."""
    for theirs, ours in NAMES.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name; no code in it is run.

    Raises:
        WeightsError: The file is missing, damaged, or holds something else.
    """

    def failed(found: str) -> WeightsError:
        return WeightsError(
            f"The checkpoint '{path}' cannot be read.",
            found=found,
            repair="Give the .pth or .safetensors file of an F-LMM head; convert a folder of "
            "DeepSpeed with its own zero_to_fp32.py first.",
        )

    if not path.is_file():
        raise failed("It is a folder." if path.is_dir() else "No such file.")
    try:
        if path.suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            mapped = zipfile.is_zipfile(path)
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # a damaged pickle can raise anything
        kind = type(error).__name__
        raise failed(f"It is truncated or holds no plain tensors ({kind}).") from error
    for key in ("state_dict", "model", "module"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise failed(f"It holds a {type(content).__name__}, not tensors by name.")
    if others := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise failed(f"'{others[0]}' is a {type(content[others[0]]).__name__}, not a tensor.")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _check_sam(
    path: Path,
    tensors: Mapping[str, Tensor],
    observer: Observer,
    matrix: Tensor,
    weights: Path | None,
) -> None:
    """WeightsError if the frozen part of the file's SAM is not the one that is used here."""
    frozen = {MATRIX: matrix}
    module = getattr(observer.encoder, "module", None)
    if module is not None:
        frozen |= {ENCODER + name: value for name, value in module.state_dict().items()}
    for name, ours in frozen.items():
        theirs = tensors.get(name)
        if theirs is None:
            continue
        ours = ours.float().cpu()
        if theirs.shape == ours.shape:
            apart = (theirs.float() - ours).abs().max()
            if apart <= HALF_APART * ours.abs().max():
                continue
        raise WeightsError(
            f"The SAM in '{path}' is not the one in '{weights or 'the package'}'.",
            found=f"'{name}' differs.",
            repair="Give the SAM file that the head was trained with by --refiner-weights.",
        )


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return "some" if value else "all"
    return (
        {True: "on", False: "off"}.get(value, str(value)) if isinstance(value, bool) else str(value)
    )
