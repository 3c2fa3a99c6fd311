"""A trained head as a folder: `config.json`, `model.safetensors`, `confidence.json`.

The folder holds what was trained (mask head, text prompts, the refiner's trained half) and the
recipe to build the rest, never weights of the VLM or of the refiner's image encoder.
`confidence.json` is there if the head was trained with validation data.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import from_json
from safetensors.torch import load_file, save_file
from torch import Tensor

import flmm_core
from flmm_core.errors import WeightsError, first_problem
from flmm_core.files import SEAL, sealed, write_json
from flmm_core.pipeline.backbone.fingerprint import Fingerprint
from flmm_core.pipeline.backbone.identity import (
    Digest,
    ModelIdentity,
    differences,
    quantized_otherwise,
)
from flmm_core.pipeline.build import Recipe, build_mask_head
from flmm_core.pipeline.confidence import FILE as CONFIDENCE
from flmm_core.pipeline.fit import check_weights
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.hub import fetch
from flmm_core.pipeline.types import VlmShape

logger = logging.getLogger(__name__)

FORMAT = 4
CONFIG, WEIGHTS = "config.json", "model.safetensors"
SEALED = 3
"""The first format with a digest of itself."""
COPY = "Copy the folder again, or use another checkpoint."
LARGEST_CONFIG = 16 << 20
"""Bytes; a larger `config.json` is not read."""


@dataclass(frozen=True)
class HeadInfo:
    """What a head's `config.json` holds.

    Attributes:
        vlm: The shape of the VLM that the head was trained behind.
        facts: Plain values about the training: steps, data, protocol, ...
        model: What that VLM is recognized by; None if an earlier version wrote the head.
        fingerprint: What that VLM did with a drawn image; None with --no-check, too.
        vlm_sha256: Of that VLM's weights, in the dtype of training.
    """

    recipe: Recipe
    vlm: VlmShape
    facts: Mapping[str, Any] = field(default_factory=dict)
    model: ModelIdentity | None = None
    fingerprint: Fingerprint | None = None
    vlm_sha256: str | None = None

    def with_facts(self, **facts: Any) -> HeadInfo:
        """The same with more facts."""
        return replace(self, facts={**self.facts, **facts})


class _Content(BaseModel):
    """The contents of `config.json` in today's format, without its seal; facts are extra keys.

    Heads of earlier versions have no `fingerprint`, and still earlier ones neither `model` nor
    `weights_sha256`.
    """

    model_config = ConfigDict(extra="allow", strict=True, allow_inf_nan=False)

    format: Literal[4]
    flmm: str
    recipe: Recipe
    vlm: VlmShape
    model: ModelIdentity | None = None
    fingerprint: Fingerprint | None = None
    vlm_sha256: Digest | None = None
    weights_sha256: Digest | None = None


def write_head(folder: Path, head: Head, info: HeadInfo) -> None:
    """Write weights and configuration into a folder that exists."""
    state = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})
    write_info(folder, info)


def write_info(folder: Path, info: HeadInfo) -> None:
    """Write the configuration of the weights that a folder holds."""
    content = {
        **info.facts,
        "format": FORMAT,
        "flmm": flmm_core.__version__,
        "recipe": asdict(info.recipe),
        "vlm": asdict(info.vlm),
        "model": info.model and asdict(info.model),
        "fingerprint": info.fingerprint and asdict(info.fingerprint),
        "vlm_sha256": info.vlm_sha256,
        "weights_sha256": _digest(folder / WEIGHTS),
    }
    write_json(folder / CONFIG, sealed(content))


def read_info(folder: Path) -> HeadInfo:
    """What a head's `config.json` says, of this format or an earlier one.

    Raises:
        WeightsError: The file is missing, damaged, or describes no head.
    """
    content = _read_content(folder)
    return HeadInfo(
        content.recipe,
        content.vlm,
        content.model_extra or {},
        content.model,
        content.fingerprint,
        content.vlm_sha256,
    )


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a head's folder, by name.

    Raises:
        WeightsError: They cannot be read, or are not those that `config.json` was written with.
    """
    path, content = folder / WEIGHTS, _read_content(folder)
    asked = f"The head's weights in '{path}' cannot be used."
    try:
        found = _digest(path)
        if content.weights_sha256 not in (None, found):
            raise WeightsError(
                asked,
                found=f"They changed since they were written: SHA-256 {found[:12]}..., "
                f"in {CONFIG} {str(content.weights_sha256)[:12]}....",
                repair=COPY,
            )
        state = load_file(path)
    except WeightsError:
        raise
    except Exception as error:  # a damaged file of an earlier version can raise anything
        found = f"{type(error).__name__}: {error}."
        raise WeightsError(asked, found=found, repair=COPY) from error
    with torch.device("meta"):  # sizes are compared before anything is allocated
        own = build_mask_head(content.recipe, content.vlm).state_dict(prefix="mask_head.")
    given = {name: value for name, value in state.items() if name.startswith("mask_head.")}
    check_weights(own, given, asked=asked, repair=f"{CONFIG} is of another head. {COPY}")
    return state


def _read_content(folder: Path) -> _Content:
    path = folder / CONFIG
    try:
        if path.stat().st_size > LARGEST_CONFIG:
            raise ValueError(f"it has {path.stat().st_size} bytes")
        content = from_json(path.read_bytes(), allow_inf_nan=False)
        seal = content.pop(SEAL, None)
        migrated = _migrated(content)
        if seal != (sealed(content)[SEAL] if content["format"] >= SEALED else None):
            raise ValueError("it changed since it was written, its digest is another")
        # JSON again: only that can be read strictly into dataclasses
        known = _Content.model_validate_json(json.dumps(migrated))
        unknown = [n for n in known.recipe.channels if n >= known.vlm.attention_channels]
        if unknown:
            raise ValueError(f"channels {unknown[:3]} of {known.vlm.attention_channels}")
        return known
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        found = f"{type(error).__name__}: {error}"
        if isinstance(error, ValueError):
            found = first_problem(error) if isinstance(error, ValidationError) else str(error)
        raise WeightsError(
            f"'{path}' does not describe a head of flmm.",
            found=f"{found}.",
            repair=f"Give a folder that `flmm train` or save_pretrained wrote. {COPY}",
        ) from error


def _migrated(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` of any known format, in today's."""
    if content["format"] == 1:  # the refiner's settings stood flat beside those of the mask head
        recipe = dict(content["recipe"])
        name, _, size = recipe["refiner"].partition(":")
        options = {key: recipe.pop(key) for key in ("mask", "box", "text", "multimask", "half")}
        recipe |= {"refiner": name, "refiner_options": {"size": size, **options} if size else {}}
        content = {**content, "format": 2, "recipe": recipe}
    if content["format"] in (2, 3):  # knew neither its model nor its weights; no fingerprint
        content = {**content, "format": FORMAT}
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, this version reads 1 to {FORMAT}")
    # earlier versions tokenized each piece of a caption alone
    return {**content, "recipe": {"caption_mode": "pieces", **content["recipe"]}}


def digest_of_head(source: str | os.PathLike[str], *, revision: str | None = None) -> str:
    """Hexadecimal SHA-256 of all that a head's folder holds; args and errors as `find_head`."""
    folder = find_head(source, revision=revision)
    files = (folder / name for name in (CONFIG, WEIGHTS, CONFIDENCE))
    digests = [_digest(path) for path in files if path.is_file()]
    return hashlib.sha256(" ".join(digests).encode()).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_fit(folder: Path, info: HeadInfo, vlm: VlmShape) -> None:
    """`WeightsError` if a head was trained behind a VLM of another shape than `vlm`."""
    if info.vlm != vlm:
        head = asdict(info.vlm)
        different = [
            f"{name.replace('_', ' ')}: head {head[name]}, model {value}"
            for name, value in asdict(vlm).items()
            if head[name] != value
        ]
        raise WeightsError(
            f"The head in '{folder}' does not fit the model '{info.recipe.model}'.",
            found=f"{'; '.join(different)}.",
            repair="Give the model that the head was trained with, or train a new head.",
        )


def check_model(
    head: str, trained: HeadInfo, model: str, found: ModelIdentity, *, force: bool = False
) -> None:
    """`WeightsError` if a head was trained behind another model, or a warning with `force`.

    Args:
        head: Names the head in messages.
        trained: What the head's folder says.
        model: Names the loaded model; `found` is its identity.
    """
    if trained.model is None:
        _note_unknown_model(head)
        return
    if note := quantized_otherwise(trained.model, found):
        logger.warning("The head in '%s' was trained behind other weights: %s.", head, note)
    if different := differences(trained.model, found):
        error = WeightsError(
            f"The head in '{head}' was trained behind another model than '{model}'.",
            found="\n".join([f"Its model was '{trained.recipe.model}'. Differences:", *different]),
            repair="Give the model that it was trained with, train a new head, or go on "
            "with --force (Python: force=True).",
        )
        if not force:
            raise error
        logger.warning("%s\n%s", error.asked, error.found)


@cache
def _note_unknown_model(head: str) -> None:
    logger.warning("The head in '%s' does not record its model; it cannot be compared.", head)


def find_head(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a head; `WeightsError` if there is none.

    Args:
        source: A run folder (its best checkpoint, else its last), a checkpoint or head folder, or
            a hub id, which may end in `@revision`.
        revision: Of the hub repository.
    """
    folder = Path(source)
    for place in (folder, folder / "best", folder / "last"):
        if (place / CONFIG).is_file() and (place / WEIGHTS).is_file():
            return place
    if folder.exists() or folder.is_absolute() or str(source).count("/") != 1:
        what = "a folder" if folder.is_dir() else "a file" if folder.exists() else "missing"
        raise WeightsError(
            f"There is no trained head in '{source}'.",
            found=f"It is {what}. Looked for {CONFIG} and {WEIGHTS} in it, in best/ and in last/.",
            repair="Give a run folder of `flmm train`, one of its checkpoints, or a hub id.",
        )
    asked = f"The head '{source}' cannot be fetched from the hub."
    folder = fetch(str(source), asked, [CONFIG, WEIGHTS, CONFIDENCE], revision)
    if missing := [name for name in (CONFIG, WEIGHTS) if not (folder / name).is_file()]:
        found = f"The repository has no {' and no '.join(missing)}."
        raise WeightsError(asked, found=found, repair="Give one that `flmm push` made.")
    return folder
