"""What a cache depends on, and what a sample is called in it: all without loading a model.

Everything that changes a feature is here. A run whose facts differ cannot use the cache, and is
told which of them do.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import flmm_core
from flmm_core.data.images import read_image
from flmm_core.data.sample import Sample
from flmm_core.errors import DataError, WeightsError
from flmm_core.pipeline.backbone.weights import choose_device, choose_dtype, find_source
from flmm_core.pipeline.head_folder import Recipe
from flmm_core.pipeline.refiners.sam_model import TINY_FOLDER
from flmm_core.plugins import load_backbones
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec

MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
"""What of a model's folder decides what it says: weights, settings, tokenizer, processor."""

TRAINED_HALF = {"boxes.py", "mask_head.py", "result.py", "text_prompts.py", "unet.py"}
"""Files of the flow that no feature goes through."""

SHOWN = 12
"""Digits of a digest that messages show."""

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class SampleKey:
    """What a sample is called in a cache: a name that follows from its contents.

    Attributes:
        sample: Of image and caption, with the numbers of the phrases in it.
        image: Of the image's file.
    """

    sample: str
    picture: str


def frozen_facts(
    recipe: Recipe, spec: BackboneSpec, *, dtype: str, device: str, refiner_weights: Path | None
) -> dict[str, Any]:
    """Everything that decides what the frozen parts say of a given sample, by name.

    The facts about SAM are left out where the recipe has no refiner.

    Raises:
        WeightsError: The model's or SAM's files are not here.
    """
    facts = {
        "backbone": recipe.backbone,
        **_model_facts(find_source(spec, recipe.model)),
        "dtype": str(choose_dtype(dtype, choose_device(device).type)).removeprefix("torch."),
        "prompt": recipe.prompt,
        "options": dict(recipe.options),
        "pool": recipe.pool,
        "flmm": flmm_core.__version__,
        "plugin": _plugin(spec),
        "code": _code(spec),
        **{name: _version(name) for name in ("transformers", "torch", "pillow")},
    }
    if recipe.refiner != "none":
        facts |= {
            "refiner": recipe.refiner,
            "half": recipe.half,
            "refiner weights": _files_digest(_refiner_files(refiner_weights)),
            "timm": _version("timm"),
        }
    return facts


def differences(cache: Facts, run: Facts) -> str:
    """What of a run is not as in a cache, a line each; empty if all that the run asks for is."""
    lines = []
    for name, wanted in run.items():
        found = cache.get(name)
        if found != wanted:
            lines.append(f"  {name}: cache {_shown(found)}, run {_shown(wanted)}")
    return "\n".join(lines)


def sample_keys(samples: Sequence[Sample], progress: Progress, name: str) -> list[SampleKey]:
    """The key of every sample, in order; each image's file is read once.

    Raises:
        DataError: An image cannot be read.
    """
    pictures: dict[Path, str] = {}
    keys = []
    with progress.stage(name, len(samples)) as stage:
        for sample in samples:
            path = sample.image_path
            if path not in pictures:
                pictures[path] = _image_digest(path)
            keys.append(sample_key(sample, pictures[path]))
            stage.advance()
    return keys


def sample_key(sample: Sample, picture: str) -> SampleKey:
    """The key of a sample whose image's digest is known."""
    caption = [[segment.text, segment.phrase] for segment in sample.segments]
    text = json.dumps([picture, list(sample.image_hw), caption])
    return SampleKey(hashlib.sha256(text.encode()).hexdigest()[:32], picture)


def _image_digest(path: Path) -> str:
    try:
        return _digest([path])[:32]
    except OSError as error:
        read_image(path)  # says better what is wrong with it
        raise DataError(f"The image {path} cannot be read.", found=f"{error.strerror}.") from error


def _model_facts(source: str) -> dict[str, Any]:
    """What tells a model from others: its commit on the hub, or all that its folder holds."""
    folder = Path(source)
    if folder.is_dir():
        files = sorted({file for form in MODEL_FILES for file in folder.glob(form)})
        return {"model files": _files_digest(files), "revision": None}
    try:
        snapshot = Path(snapshot_download(source, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise WeightsError(
            f"The files of the model '{source}' are not here.",
            found="They are not in the local cache of the hub; a cache of features is only used "
            "beside the files that it was made from.",
            repair="Download them (hf download), or give the folder with --model.",
        ) from error
    return {"model files": source, "revision": snapshot.name}


def _refiner_files(weights: Path | None) -> list[Path]:
    place = TINY_FOLDER if weights is None else weights
    return sorted(place.iterdir()) if place.is_dir() else [place]


def _files_digest(files: Sequence[Path]) -> str:
    try:
        return _digest(files)
    except OSError as error:
        raise WeightsError(
            f"The file '{error.filename}' cannot be read.", found=f"{error.strerror}."
        ) from error


def _digest(files: Sequence[Path]) -> str:
    """Hexadecimal SHA-256 of files, read as a stream; of several also their names."""
    if len(files) == 1:
        with files[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {_digest([path])}\n".encode())
    return total.hexdigest()


def _code(spec: BackboneSpec) -> str:
    """Digest of the code that features go through: recorder, stages, and the plugin."""
    ours = Path(flmm_core.__file__).parent / "pipeline"
    files = [path for path in sorted(ours.rglob("*.py")) if path.name not in TRAINED_HALF]
    module = importlib.util.find_spec(spec.target.split(":")[0])
    if module is not None and module.origin is not None:
        files += sorted(Path(module.origin).parent.glob("*.py"))
    return _digest(files)


def _plugin(spec: BackboneSpec) -> str:
    plugin = load_backbones().plugins.get(spec.name)
    return "unregistered" if plugin is None else plugin.label


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    is_digest = isinstance(value, str) and len(value) == 64
    return repr(value[:SHOWN] + "...") if is_digest else repr(value)
