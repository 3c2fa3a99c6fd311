"""A trained head as a folder: `config.json`, `model.safetensors`, `confidence.json`.

The folder holds what was trained (mask head, text prompts, the refiner's trained half) and the
recipe to build the rest, never weights of the VLM or of the refiner's image encoder.
`confidence.json` is there if the head was trained with validation data.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

import flmm_core
from flmm_core.errors import WeightsError
from flmm_core.files import write_json
from flmm_core.pipeline.build import Recipe
from flmm_core.pipeline.confidence import FILE as CONFIDENCE
from flmm_core.pipeline.head import Head
from flmm_core.pipeline.types import VlmShape

FORMAT = 2
CONFIG, WEIGHTS = "config.json", "model.safetensors"


@dataclass(frozen=True)
class HeadInfo:
    """What a head's `config.json` holds.

    `vlm` is that of the VLM that the head was trained behind; `facts` are plain values about the
    training: steps, data, protocol, ...
    """

    recipe: Recipe
    vlm: VlmShape
    facts: Mapping[str, Any] = field(default_factory=dict)

    def with_facts(self, **facts: Any) -> HeadInfo:
        """The same with more facts."""
        return replace(self, facts={**self.facts, **facts})


def write_head(folder: Path, head: Head, info: HeadInfo) -> None:
    """Write weights and configuration into a folder that exists."""
    content = {
        "format": FORMAT,
        "flmm": flmm_core.__version__,
        "recipe": asdict(info.recipe),
        "vlm": asdict(info.vlm),
        **info.facts,
    }
    write_json(folder / CONFIG, content)
    state = {key: value.cpu().contiguous() for key, value in head.state_dict().items()}
    save_file(state, folder / WEIGHTS, metadata={"format": "pt"})


def read_info(folder: Path) -> HeadInfo:
    """What a head's `config.json` says, of this format or an earlier one.

    Raises:
        WeightsError: The file is missing or describes no head.
    """
    path = folder / CONFIG
    try:
        content = _migrated(json.loads(path.read_text(encoding="utf-8")))
        known = {key: content.pop(key, None) for key in ("format", "flmm", "recipe", "vlm")}
        vlm = VlmShape(**known["vlm"] | {"views": tuple(known["vlm"]["views"])})
        return HeadInfo(Recipe(**known["recipe"]), vlm, content)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(
            f"'{path}' does not describe a head of flmm.",
            found=f"{type(error).__name__}: {error}.",
            repair="Give a folder that `flmm train` or save_pretrained wrote.",
        ) from error


def _migrated(content: dict[str, Any]) -> dict[str, Any]:
    """The content of a `config.json` of any known format, in today's."""
    if content["format"] == 1:  # the refiner's settings stood flat beside those of the mask head
        recipe = dict(content["recipe"])
        name, _, size = recipe["refiner"].partition(":")
        options = {key: recipe.pop(key) for key in ("mask", "box", "text", "multimask", "half")}
        recipe |= {"refiner": name, "refiner_options": {"size": size, **options} if size else {}}
        return {**content, "format": FORMAT, "recipe": recipe}
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']}, this version reads 1 to {FORMAT}")
    return dict(content)


def read_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a head's folder, by name; `WeightsError` if they cannot be read."""
    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        raise WeightsError(
            f"The head's weights in '{folder / WEIGHTS}' cannot be read.",
            found=f"{type(error).__name__}: {error}.",
            repair="The file may be cut off; copy it again or use another checkpoint.",
        ) from error


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


def find_head(source: str | os.PathLike[str], *, revision: str | None = None) -> Path:
    """The folder of a head; `WeightsError` if there is none.

    Args:
        source: A run folder (its best checkpoint, else its last), a checkpoint or head folder, or
            a hub id.
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
    try:
        wanted = [CONFIG, WEIGHTS, CONFIDENCE]
        return Path(snapshot_download(str(source), revision=revision, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else ""
        raise WeightsError(
            f"The head '{source}' cannot be fetched from the hub.",
            found=f"No such folder here; the hub said: {type(error).__name__}: {reason}",
            repair="Check the name and the network, or download it elsewhere and give the folder.",
        ) from error
