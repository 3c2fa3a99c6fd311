"""Heads of the original F-LMM: its checkpoints to heads of ours and back.

Both hold the same tensors; only the first parts of their names differ.
"""

from __future__ import annotations

import hashlib
import io
import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from flmm_core.errors import UsageError, WeightsError, shortened
from flmm_core.files import whole_folder, write_bytes
from flmm_core.pipeline.backbone.base import Backbone
from flmm_core.pipeline.build import Recipe, build_head, load_refiner, refiner_class
from flmm_core.pipeline.checkpoint_file import read_tensors
from flmm_core.pipeline.fit import weight_problems
from flmm_core.pipeline.head_folder import HeadInfo, find_head, read_info, read_weights, write_head
from flmm_core.pipeline.refiners import SamOptions
from flmm_core.pipeline.refiners.base import Refiner
from flmm_core.pipeline.refiners.sam import SamRefiner
from flmm_core.pipeline.refiners.sam_model import (
    OFFICIAL,
    build_sam,
    build_untrained_sam,
    sam_state,
)
from flmm_core.pipeline.types import VlmShape
from flmm_core.plugins import load_backbones, load_class
from flmm_core.spec import BackboneSpec

logger = logging.getLogger(__name__)

SAM = "sam.model."
RENAMED = (
    ("mask_head.", "mask_head.unet."),
    ("text_proj.", "text_prompts.proj."),
    ("text_layer_weights", "text_prompts.layer_weights"),
    (SAM, "refiner."),
)
"""The first parts of the names of all tensors of a head: the original's, ours."""

ENCODER = SAM + "image_encoder."
POSITIONS = SAM + "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
"""SAM's fixed positions: never trained, so a checkpoint may lack them."""

LAYERS, FIRST, LAST = (
    "text_layer_weights", "mask_head.encoder.0.0.convs.0.conv.weight", "mask_head.conv_seg.weight"
)  # fmt: skip
PROJECTION = "text_proj.weight"

MOST_LISTED = 30
"""More differences than these are those of another kind of file."""

EXPRESSIBLE: Mapping[str, Any] = {
    "refiner": "sam", "caption_mode": "pieces", "paper_rounding": True, "enlarge_to": 64,
    "channels": (), "presence": False, "keywords": False,
}  # fmt: skip
"""What all heads of the original are like, by the fields of `Recipe`."""

BASE_CHANNELS = 64
"""The width of its U-Net's first stage, if a checkpoint does not say otherwise."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint of the original, its tensors told apart.

    Attributes:
        head: What was trained, and SAM's positions if it holds them; names are the original's.
        encoder: SAM's frozen image encoder, named as in SAM's own files; often empty.
        vlm: How many tensors are the frozen VLM's.
        others: What is none of these.
    """

    path: Path
    head: Mapping[str, Tensor]
    encoder: Mapping[str, Tensor]
    vlm: int
    others: Mapping[str, Tensor]

    @property
    def base_channels(self) -> int:
        """The width of the U-Net's first stage."""
        last = self.head.get(LAST)
        found = int(last.shape[1]) if last is not None and last.ndim == 4 else 0
        return found if 1 <= found <= 4096 else BASE_CHANNELS

    @property
    def sam_size(self) -> str | None:
        """Which of Meta's SAMs it is made with; None if the file does not tell."""
        places = self.encoder.get("image_encoder.pos_embed")
        width = None if places is None else places.shape[-1]
        sizes = {official.shape.embed_dim: name for name, official in OFFICIAL.items()}
        return sizes.get(width or 0)


def read_checkpoint(path: Path, spec: BackboneSpec) -> Checkpoint:
    """Read a checkpoint of the original; nothing in it is run.

    Raises:
        WeightsError: The file is missing, damaged, needs code, or holds no head of F-LMM.
    """
    head, encoder, others, vlm = {}, {}, {}, 0
    tensors = read_tensors(path)
    for name, tensor in tensors.items():
        if name.startswith(ENCODER):
            encoder[name.removeprefix(SAM)] = tensor
        elif any(name.startswith(theirs) for theirs, _ in RENAMED):
            head[name] = tensor
        elif name.startswith(spec.original.prefixes):
            vlm += 1
        else:
            others[name] = tensor
    if not any(name.startswith("mask_head.") for name in head):
        begin = sorted({name.partition(".")[0] for name in tensors})
        raise WeightsError(
            f"The checkpoint '{path}' holds no head of F-LMM.",
            found=f"Its {len(tensors)} tensors begin with: {', '.join(begin[:8])}; "
            "expected: mask_head, text_proj, text_layer_weights, sam.model.",
            repair="Give a checkpoint that F-LMM's training wrote.",
        )
    return Checkpoint(path, head, encoder, vlm, others)


def import_original(
    checkpoint: Checkpoint,
    recipe: Recipe,
    folder: Path,
    *,
    refiner_weights: Path | None = None,
    force: bool = False,
) -> HeadInfo:
    """Write a head's folder with the weights of a checkpoint, whole or not at all.

    Of the VLM only its settings and its processor are read.

    Args:
        recipe: How the head is built. The original's own: caption mode "pieces", paper rounding,
            no presence, all channels.
        folder: Must not exist, or be empty.
        refiner_weights: SAM's own file. It can be left out if the checkpoint has SAM's positions.
        force: Go on with another SAM than the checkpoint's, and leave out tensors that are
            neither a head's nor the VLM's.

    Raises:
        WeightsError: The head does not fit the model, tensors are missing, unexpected or of
            another shape (all are listed), or the SAM is another.
        UsageError: The backbone, its model or the refiner is unknown.
    """
    spec = load_backbones().get(recipe.backbone)
    backbone: Backbone = load_class(spec).load(
        spec,
        recipe.model,
        device_map="meta",  # without its weights
        prompt=recipe.prompt,
        system=recipe.system,
        caption_mode=recipe.caption_mode,
        options=recipe.options,
    )
    vlm = VlmShape(
        backbone.num_layers, backbone.num_heads, backbone.hidden_size, backbone.view_names
    )
    refiner, sam = _refiner(recipe, refiner_weights)
    with torch.device("meta"):
        head = build_head(recipe, vlm, refiner)
    _check_sam(checkpoint, sam, refiner_weights, force)
    given = dict(checkpoint.head)
    if (positions := sam.get(POSITIONS.removeprefix(SAM))) is not None:
        given.setdefault(POSITIONS, positions)
    own = {_theirs(name): tensor for name, tensor in head.state_dict().items()}
    _check_tensors(checkpoint, own, given, vlm, recipe.model, force)
    state = {_ours(name): tensor.float() for name, tensor in given.items()}
    head.load_state_dict(state, assign=True)
    with checkpoint.path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    facts = {
        "protocol": "flmm-paper",
        "imported": {"file": checkpoint.path.name, "sha256": digest},
        "reads": backbone.rendered_prompt(),
    }
    info = HeadInfo(recipe, vlm, facts, backbone.identity())
    with whole_folder(folder) as aside:
        write_head(aside, head, info)
    return info


def export_original(source: str | Path, file: Path, *, half: bool = False) -> int:
    """Write a head as a checkpoint of the original: a flat dict, its names, float32.

    Args:
        source: A run folder, a checkpoint or head folder, or a hub id.
        file: By `torch.save`, or as safetensors if it ends so.
        half: Write float16.

    Returns:
        The number of tensors.

    Raises:
        UsageError: The original has no such heads.
        WeightsError: The head is missing or damaged, or too large for float16.
    """
    folder = find_head(source)
    info = read_info(folder)
    _check_expressible(source, info)
    dtype = torch.float16 if half else torch.float32
    state = {
        _theirs(name): tensor.to(dtype).contiguous()
        for name, tensor in read_weights(folder).items()
    }
    large = [name for name, tensor in state.items() if not tensor.isfinite().all()]
    if large:
        raise WeightsError(
            f"The head in '{source}' cannot be written as float16.",
            found=f"{large[0]} has values beyond 65504.",
            repair="Leave out --half.",
        )
    if file.suffix == ".safetensors":
        write_bytes(file, save(state, metadata={"format": "pt"}))
    else:
        buffer = io.BytesIO()  # on a full disk, torch.save would not say why it fails
        torch.save(state, buffer)
        write_bytes(file, buffer.getvalue())
    return len(state)


def _theirs(name: str) -> str:
    return next((a + name.removeprefix(b) for a, b in RENAMED if name.startswith(b)), name)


def _ours(name: str) -> str:
    return next((b + name.removeprefix(a) for a, b in RENAMED if name.startswith(a)), name)


def _refiner(recipe: Recipe, weights: Path | None) -> tuple[Refiner, Mapping[str, Tensor]]:
    """A head's refiner, and SAM's own weights by their names; none if they are not at hand."""
    kind, options = refiner_class(recipe)
    if not (issubclass(kind, SamRefiner) and isinstance(options, SamOptions)):
        return load_refiner(recipe, weights)[1], {}
    if weights is None and options.size in OFFICIAL:
        with torch.device("meta"):
            sam = build_untrained_sam(OFFICIAL[options.size].shape, options.size)
        return kind.of(sam, options, paper_rounding=recipe.paper_rounding), {}
    sam = build_sam(options.size, weights)
    own = sam_state(sam)
    return kind.of(sam, options, paper_rounding=recipe.paper_rounding), own


def _check_sam(
    checkpoint: Checkpoint, sam: Mapping[str, Tensor], weights: Path | None, force: bool
) -> None:
    """`WeightsError` if a checkpoint holds frozen parts of another SAM, a warning with `force`."""
    held = dict(checkpoint.encoder)
    if POSITIONS in checkpoint.head:
        held[POSITIONS.removeprefix(SAM)] = checkpoint.head[POSITIONS]
    if not held or not sam:
        return
    other = [name for name, x in held.items() if name not in sam or not _same(sam[name], x)]
    if not other:
        return
    first = other[0]
    own_shape = tuple(sam[first].shape) if first in sam else "none"
    error = WeightsError(
        f"The checkpoint '{checkpoint.path}' was trained with another SAM than "
        f"'{weights or 'the packaged one'}'.",
        found=f"{len(other)} of {len(held)} tensors that training leaves unchanged differ, such as "
        f"{first} (shapes {tuple(held[first].shape)} and {own_shape}).",
        repair=f"Give --refiner sam:{checkpoint.sam_size or 'SIZE'} and the --refiner-weights that "
        "it was trained with, or go on with --force.",
    )
    if not force:
        raise error
    logger.warning("%s\n%s", error.asked, error.found)


def _same(own: Tensor, stored: Tensor) -> bool:
    """Whether weights are equal but for a rounding to 16 bits."""
    if own.shape != stored.shape or not stored.is_floating_point():
        return False
    kinds = stored.dtype, torch.float16, torch.bfloat16
    return any(torch.equal(own.to(kind).float(), stored.float()) for kind in kinds)


def _check_tensors(
    checkpoint: Checkpoint,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    vlm: VlmShape,
    model: str,
    force: bool,
) -> None:
    """`WeightsError` that lists all that is missing, unexpected or of another shape."""
    others = checkpoint.others
    if force and others:
        logger.warning("Left out: %s.", shortened(", ".join(others), 300))
        others = {}
    problems = [*_shape_of_vlm(given, own, vlm, model), *weight_problems(own, {**given, **others})]
    if not problems:
        return
    more = [f"and {len(problems) - MOST_LISTED} more"] if len(problems) > MOST_LISTED else []
    repair = "Give the --model and the --refiner that it was trained with, and a whole file."
    if POSITIONS in own and POSITIONS not in given:
        repair += " --refiner-weights, SAM's own file, has SAM's positions."
    if others:
        repair += " --force leaves out what begins with other names than a head's tensors."
    raise WeightsError(
        f"The checkpoint '{checkpoint.path}' does not fit.",
        found="\n".join(f"  {line}" for line in [*problems[:MOST_LISTED], *more]),
        repair=repair,
    )


def _shape_of_vlm(
    given: Mapping[str, Tensor], own: Mapping[str, Tensor], vlm: VlmShape, model: str
) -> Iterator[str]:
    """What the shapes of a checkpoint say of its VLM, where that is not the model's."""
    views = f" x {len(vlm.views)} views" if len(vlm.views) > 1 else ""
    channels = f" = {vlm.layers} layers x {vlm.heads} heads{views}"
    for what, name, axis, formula in (
        ("layers", LAYERS, 0, ""),
        ("attention channels", FIRST, 1, channels),
        ("hidden size", PROJECTION, 1, ""),
    ):
        if name in given and name in own and given[name].ndim == own[name].ndim:
            found, expected = given[name].shape[axis], own[name].shape[axis]
            if found != expected:
                yield f"{what}: checkpoint {found}, model '{model}' {expected}{formula}"


def _check_expressible(source: str | Path, info: HeadInfo) -> None:
    """`UsageError` naming all settings of a head that the original does not have."""
    recipe, wanted = info.recipe, dict(EXPRESSIBLE)
    if "imported" not in info.facts:
        wanted["base_channels"] = BASE_CHANNELS
    other = [
        f"{name.replace('_', ' ')} is {_shown(getattr(recipe, name))}, not {_shown(value)}"
        for name, value in wanted.items()
        if getattr(recipe, name) != value
    ]
    if recipe.pool == "learned":
        other.append("the tokens of a phrase are weighed as learned, not averaged")
    if recipe.refiner == "sam" and not recipe.refiner_options.get("text", True):
        other.append("SAM is not prompted with text")
    if other:
        raise UsageError(
            f"The head in '{source}' is none that the original F-LMM can express.",
            found=f"{'; '.join(other)}.",
            repair="Export an imported head, or one trained with --caption-mode pieces "
            "--head-paper-rounding --head-base-channels 64 --head-enlarge-to 64 and SAM.",
        )
    options = load_backbones().get(recipe.backbone).original.options
    for name, value in options.items():
        if recipe.options.get(name) != value:
            logger.warning(
                "The head in '%s' was trained with %s=%s; the original's images are as with %s=%s.",
                *(source, name, recipe.options.get(name), name, value),
            )


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value) if value != () else "all"
