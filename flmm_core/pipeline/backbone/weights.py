"""Finds a model's weights, checks that they are the right ones, and loads them."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from flmm_core.errors import ConfigError, UsageError, WeightsError, did_you_mean
from flmm_core.spec import BackboneSpec

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PACKAGE_FOLDER = re.compile(r"([A-Za-z_][\w.]*):([\w./-]+)")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
HUB_ARGUMENTS = ("revision", "token", "cache_dir", "local_files_only")
LOAD_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, hub_errors.StrictDataclassError)
DOWNLOAD = "Download it on a machine with network access (hf download) and pass it with --model."


def load_pretrained(
    source: str, model_class: Any, processor_class: Any, image_class: Any, **kwargs: Any
) -> tuple[Any, Any]:
    """Load a model and its processor by `from_pretrained`; what most plugins' `load_model` does.

    Pillow resizes the images: it gives the same pixels on every machine, and the weights were
    trained with it. transformers would use torchvision where it is installed.

    Args:
        source: A folder or a hub id.
        model_class: A transformers class, as `processor_class` and `image_class` are, such as
            `AutoProcessor` and `AutoImageProcessor`.
        kwargs: For the model; those that say where the files come from go to all three.

    Returns:
        (model, processor).

    Raises:
        WeightsError: Some of the model's weights are missing. transformers would initialize them
            randomly and go on.
    """
    model, report = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    if missing := sorted(report["missing_keys"]):
        shown = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise WeightsError(
            f"The weights in '{source}' are incomplete.",
            found=f"{len(missing)} of the model's tensors are missing: {shown}.",
            repair="Download the folder again, with all its *.safetensors files.",
        )
    files = {k: kwargs[k] for k in (*HUB_ARGUMENTS, "trust_remote_code") if k in kwargs}
    processor = processor_class.from_pretrained(source, **files)
    processor.image_processor = image_class.from_pretrained(source, backend="pil", **files)
    return model, processor


def find_source(spec: BackboneSpec, model: str) -> str:
    """The local folder or hub id of a model: an alias of `spec.models`, a hub id or a folder.

    Raises:
        UsageError: It is no alias and looks like neither a hub id nor a folder.
        WeightsError: The folder does not exist or has no config.json.
    """
    source = spec.models[model].source if model in spec.models else model
    folder = Path(source).expanduser()
    if not folder.exists():
        if packaged := PACKAGE_FOLDER.fullmatch(source):
            package, within = packaged.groups()
            with suppress(ModuleNotFoundError):
                folder = Path(str(importlib.resources.files(package))) / within
        elif HUB_ID.fullmatch(source):
            return source
        elif len(folder.parts) == 1:
            raise UsageError(
                f"Unknown model '{model}' of backbone '{spec.name}'. "
                f"{did_you_mean(model, spec.models)}".rstrip(),
                found=f"Known: {', '.join(spec.models)}.",
                repair="A hub id (owner/name) or the path of a folder also works.",
            )
    if (folder / "config.json").is_file():
        return str(folder)
    raise WeightsError(
        f"The weights of model '{model}' of backbone '{spec.name}' are missing.",
        found=f"The folder {folder} has no config.json."
        if folder.is_dir()
        else f"There is no folder {folder}.",
        repair="Pass the folder of a complete transformers model, a hub id, "
        f"or one of: {', '.join(spec.models)}.",
    )


def check_model_type(
    spec: BackboneSpec, source: str, expected: tuple[str, ...], hub: Mapping[str, Any]
) -> None:
    """`WeightsError` before loading if the weights are not of a family of the backbone.

    Args:
        spec: The backbone's facts, for messages.
        source: A folder or a hub id.
        expected: The supported `model_type`s; empty means any.
        hub: Of these, `HUB_ARGUMENTS` reach the hub.
    """
    folder = Path(source)
    file = folder / "config.json" if folder.is_dir() else _hub_config(source, hub)
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"The config.json of '{source}' cannot be read.",
            found=str(error),
            repair="Copy or download the model again.",
        ) from error
    if expected and found not in expected:
        raise WeightsError(
            f"Backbone '{spec.name}' does not support the model '{source}'.",
            found=f"Its config.json says model_type '{found}'; expected: {', '.join(expected)}.",
            repair="Use the backbone of that family (flmm backbones list), or another model.",
        )


def _hub_config(source: str, hub: Mapping[str, Any]) -> Path:
    wanted = {key: hub[key] for key in HUB_ARGUMENTS if key in hub}
    try:
        return Path(hf_hub_download(source, "config.json", **wanted))
    except (OSError, hub_errors.HFValidationError, hub_errors.EntryNotFoundError) as error:
        found, repair = _explain_hub_error(error)
        asked = f"The model '{source}' cannot be downloaded from the Hugging Face hub."
        raise WeightsError(asked, found=found, repair=repair) from error


def _explain_hub_error(error: Exception) -> tuple[str, str]:
    """(what was found, what repairs it); the order matters, the hub's errors are subclasses."""
    if isinstance(error, hub_errors.GatedRepoError):
        repair = "Accept the conditions on its page and log in (hf auth login)."
        return "Access to it is gated.", repair
    unknown = hub_errors.RepositoryNotFoundError, hub_errors.RevisionNotFoundError
    if isinstance(error, (*unknown, hub_errors.HFValidationError)):
        found = "There is no local folder of that name, and no such model or revision on the hub."
        return found, "Check the name; a private model needs hf auth login."
    if isinstance(error, hub_errors.LocalEntryNotFoundError):
        found = "It is not in the local cache, and there is no network (or HF_HUB_OFFLINE is set)."
        return found, DOWNLOAD
    if isinstance(error, hub_errors.EntryNotFoundError):
        return "It has no config.json.", "Choose a transformers model."
    return f"The hub cannot be reached: {error}", DOWNLOAD


@contextmanager
def explain_errors(spec: BackboneSpec, source: str) -> Iterator[None]:
    """Turn the errors of `from_pretrained` for bad or missing files into a `WeightsError`."""
    try:
        yield
    except LOAD_ERRORS as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"Backbone '{spec.name}' cannot load the model '{source}'.",
            found=reason,
            repair="Check that the folder is complete (weights, tokenizer and processor files), "
            f"or download it again. {DOWNLOAD}",
        ) from error


def check_processor(processor: Any, config: Any, source: str) -> None:
    """`WeightsError` unless a processor has a chat template and the model's image token."""
    asked = f"The processor of '{source}' cannot be used."
    repair = "Use the processor files of the model's original folder."
    tokenizer = processor.tokenizer
    if not (getattr(processor, "chat_template", None) or tokenizer.chat_template):
        raise WeightsError(asked, found="It has no chat template.", repair=repair)
    token = getattr(processor, "image_token", None)
    found = None if token is None else tokenizer.convert_tokens_to_ids(token)
    expected = getattr(config, "image_token_id", None)
    if expected is None or found != expected:
        raise WeightsError(
            asked,
            found=f"Its image token {token!r} has id {found}; the model's is {expected}.",
            repair=repair,
        )


def choose_device(device: str | torch.device) -> torch.device:
    """A device ("auto": the first accelerator or else the CPU); `UsageError` if unusable."""
    if device == "auto":
        # A torch built for CUDA names it as the accelerator even on machines without a GPU.
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device '{device}' cannot be used.",
            found=str(error).splitlines()[0],
            repair="Use 'auto', 'cpu', or a device that this build of torch supports.",
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype, device_type: str) -> str | torch.dtype:
    """The dtype to load weights in, `ConfigError` for an unknown name.

    "auto" is float32 on the CPU, where half precision is slower, and elsewhere as stored.
    """
    if isinstance(dtype, torch.dtype):
        return dtype
    if dtype == "auto":
        return torch.float32 if device_type == "cpu" else "auto"
    if dtype not in DTYPES:
        raise ConfigError(
            f"Unknown dtype '{dtype}'. {did_you_mean(dtype, DTYPES)}".rstrip(),
            repair=f"Use auto, {', '.join(DTYPES)}.",
        )
    return DTYPES[dtype]


def digest(module: torch.nn.Module) -> str:
    """Hexadecimal SHA-256 over the names, dtypes, shapes and values of a module's weights.

    `WeightsError` if some are offloaded.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise WeightsError(
                "The digest of an offloaded model's weights cannot be computed.",
                found=f"'{name}' is not in memory.",
                repair="Load the model without offloading.",
            )
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        total.update(data.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
