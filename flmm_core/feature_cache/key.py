"""What a cache depends on and the keys of its samples, computed without loading a model.

Everything that changes a feature is here. A run whose facts differ cannot use the cache; the error
names the differences.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

import flmm_core
from flmm_core.config import RunConfig
from flmm_core.data.images import read_image
from flmm_core.data.left_out import LeftOut
from flmm_core.data.sample import Sample
from flmm_core.errors import DataError, WeightsError
from flmm_core.pipeline.backbone.loading import NONE, find_adapter
from flmm_core.pipeline.backbone.weights import choose_device, choose_dtype, find_source
from flmm_core.pipeline.build import recipe_of, refiner_class
from flmm_core.plugins import load_backbones, package_version
from flmm_core.progress import Progress
from flmm_core.spec import BackboneSpec

MODEL_FILES = ("*.safetensors", "*.bin", "*.json", "*.jinja", "*.model", "*.txt")
"""The files of a model that decide its outputs: weights, settings, tokenizer, processor."""

TRAINED_HALF = {
    "boxes.py", "build.py", "check_head.py", "checkpoint_file.py", "confidence.py", "drift.py",
    "fingerprint.py", "grounder.py", "head.py", "head_folder.py", "hub.py", "kernels.py",
    "keywords.py", "load_check.py", "mask_head.py", "model_card.py", "none.py", "original.py",
    "pooling.py", "probe.py", "prompted.py", "publish.py", "result.py", "sam2_decoder.py",
    "text_prompts.py", "unet.py", "verify.py",
}  # fmt: skip
"""Files of the pipeline that features do not depend on."""


class SampleKey(NamedTuple):
    """Digests of a sample (image, caption and its phrases) and of its image file at `path`."""

    sample: str
    image: str
    path: Path


def frozen_facts(config: RunConfig, spec: BackboneSpec) -> dict[str, Any]:
    """Everything besides the sample that its features depend on, by name.

    Facts about the refiner are omitted if it needs no image.

    Raises:
        WeightsError: Files of the model or of the refiner are missing.
    """
    recipe, device = recipe_of(config), choose_device(config.device)
    facts = {
        "backbone": recipe.backbone,
        **_model_facts(find_source(spec, recipe.model), recipe.revision),
        "adapter": recipe.adapter if recipe.adapter == NONE else _adapter_digest(recipe.adapter),
        "quantize": recipe.quantize,
        "attention": config.attention,
        "dtype": str(choose_dtype(config.dtype, device.type)).removeprefix("torch."),
        "prompt": recipe.prompt,
        "system": recipe.system,
        "caption mode": recipe.caption_mode,
        "options": dict(recipe.options),
        "pool": recipe.pooled,
        "flmm": flmm_core.__version__,
        "plugin": _plugin(spec),
        "code": _code(spec),
        **{name: package_version(name) for name in ("transformers", "torch", "pillow")},
    }
    refiner, options = refiner_class(recipe)
    embeddings = refiner.embedding_facts(options, config.refiner_weights)
    if embeddings:
        facts["refiner"] = recipe.refiner
        for name, value in embeddings.items():
            if isinstance(value, Path):
                value = _files_digest(sorted(value.iterdir()) if value.is_dir() else [value])
            facts[f"refiner {name}"] = value
    return facts


def differences(cache: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    """One line for each setting of a run that the cache does not have."""
    return "\n".join(
        f"  {name}: cache {_shown(cache.get(name))}, run {_shown(wanted)}"
        for name, wanted in run.items()
        if cache.get(name) != wanted
    )


def sample_keys(
    samples: Sequence[Sample], left_out: LeftOut, progress: Progress, name: str
) -> list[SampleKey | None]:
    """The key of every sample, in order; each image file is read once.

    None for a sample that cannot be read, which goes to `left_out`.
    """
    images: dict[Path, str] = {}
    keys: list[SampleKey | None] = []
    with progress.stage(name, len(samples)) as stage:
        for index in range(len(samples)):
            try:
                sample = samples[index]
                path = sample.image_path
                if path not in images:
                    images[path] = _image_digest(path)
            except DataError as error:
                left_out.add(index, str(error))
                keys.append(None)
            else:
                keys.append(SampleKey(sample_key(sample, images[path]), images[path], path))
            stage.advance()
    return keys


def sample_key(sample: Sample, image: str) -> str:
    """The key of a sample, from the digest of its image."""
    caption = [[piece.text, piece.phrase, piece.only] for piece in sample.segments]
    facts = [image, list(sample.image_hw), caption, *(["as stored"] if sample.as_stored else [])]
    text = json.dumps(facts)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _image_digest(path: Path) -> str:
    try:
        return _digest([path])[:32]
    except OSError as error:
        read_image(path)  # its error is more specific
        raise DataError(f"The image {path} cannot be read.", found=f"{error.strerror}.") from error


def _adapter_digest(adapter: str) -> str:
    return _files_digest(sorted(find_adapter(adapter).glob("adapter_*")))


def _model_facts(source: str, revision: str) -> dict[str, Any]:
    """What identifies a model: its commit on the hub, or the digest of its files."""
    folder = Path(source)
    if folder.is_dir():
        files = sorted({file for form in MODEL_FILES for file in folder.glob(form)})
        return {"model files": _files_digest(files), "revision": None}
    try:
        snapshot = Path(snapshot_download(source, revision=revision, local_files_only=True))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise WeightsError(
            f"The files of the model '{source}' are missing.",
            found="They are not in the local hub cache; a feature cache can only be used together "
            "with the files that it was built from.",
            repair="Download them (hf download), or give the folder with --model.",
        ) from error
    return {"model files": source, "revision": snapshot.name}


def _files_digest(files: Sequence[Path]) -> str:
    try:
        return _digest(files)
    except OSError as error:
        raise WeightsError(
            f"The file '{error.filename}' cannot be read.", found=f"{error.strerror}."
        ) from error


def _digest(files: Sequence[Path]) -> str:
    """SHA-256 of the contents of files, and of their names if there are several."""
    if len(files) == 1:
        with files[0].open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    total = hashlib.sha256()
    for path in files:
        total.update(f"{path.name} {_digest([path])}\n".encode())
    return total.hexdigest()


def _code(spec: BackboneSpec) -> str:
    """Digest of the code that features depend on: recorder, frozen stages and the plugin."""
    ours = Path(flmm_core.__file__).parent / "pipeline"
    files = [path for path in sorted(ours.rglob("*.py")) if path.name not in TRAINED_HALF]
    files = [path for path in files if "conversation" not in path.relative_to(ours).parts]
    module = importlib.util.find_spec(spec.target.split(":")[0])
    if module is not None and module.origin is not None:
        files += sorted(Path(module.origin).parent.glob("*.py"))
    return _digest(files)


def _plugin(spec: BackboneSpec) -> str:
    plugin = load_backbones().plugins.get(spec.name)
    return "unregistered" if plugin is None else plugin.label


def _shown(value: Any) -> str:
    if isinstance(value, str) and len(value) == 64:  # a digest
        return repr(value[:12] + "...")
    return "none" if value is None else repr(value)
