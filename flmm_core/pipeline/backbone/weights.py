"""Where a model's weights are, and whether they are the right ones: without loading them."""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    StrictDataclassError,
)
from pydantic import ValidationError
from safetensors import SafetensorError

from flmm_core.errors import ConfigError, UsageError, WeightsError, did_you_mean
from flmm_core.spec import BackboneOptions, BackboneSpec

HUB_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
PACKAGE_FOLDER = re.compile(r"([A-Za-z_][\w.]*):([\w./-]+)")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
ELSEWHERE = (
    "Download it on a machine with a network (hf download) and give the folder with --model."
)


def find_source(spec: BackboneSpec, model: str) -> str:
    """The local folder or hub id that a model's name stands for.

    Raises:
        UsageError: It is no alias and looks like neither a hub id nor a folder.
        WeightsError: The folder does not exist or holds no config.json.
    """
    source = spec.models[model].source if model in spec.models else model
    packaged = PACKAGE_FOLDER.fullmatch(source)
    if packaged and not Path(source).exists():
        return str(_existing(spec, model, _package_folder(*packaged.groups())))
    folder = Path(source).expanduser()
    if folder.exists() or source.startswith((".", "/", "~")):
        return str(_existing(spec, model, folder))
    if HUB_ID.fullmatch(source):
        return source
    if len(folder.parts) > 1:
        return str(_existing(spec, model, folder))
    raise UsageError(
        f"Unknown model '{model}' of backbone '{spec.name}'. "
        f"{did_you_mean(model, spec.models)}".rstrip(),
        found=f"Known: {', '.join(spec.models)}.",
        repair="A hub id (owner/name) or the path of a folder works too.",
    )


def _package_folder(package: str, folder: str) -> Path:
    try:
        return Path(str(importlib.resources.files(package))) / folder
    except ModuleNotFoundError:
        return Path(package.replace(".", "/")) / folder


def _existing(spec: BackboneSpec, model: str, folder: Path) -> Path:
    asked = f"The weights of model '{model}' of backbone '{spec.name}' are missing."
    if not folder.is_dir():
        found = f"There is no folder {folder}."
    elif not (folder / "config.json").is_file():
        found = f"The folder {folder} holds no config.json."
    else:
        return folder
    raise WeightsError(
        asked,
        found=found,
        repair="Give the folder of a complete transformers model, a hub id, "
        f"or one of: {', '.join(spec.models)}.",
    )


def check_model_type(
    spec: BackboneSpec, source: str, expected: tuple[str, ...], hub: Mapping[str, Any]
) -> None:
    """See that the weights are of a family that the backbone can read, before loading them.

    Args:
        spec: The backbone's facts, for messages.
        source: A folder or a hub id.
        expected: The `model_type`s that fit; none means any.
        hub: What was passed through; `revision`, `token`, `cache_dir` reach the hub.

    Raises:
        WeightsError: Another family, an unreadable config.json, or no way to the hub.
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
            f"The model '{source}' is not one that backbone '{spec.name}' can read.",
            found=f"Its config.json says model_type '{found}'; expected: {', '.join(expected)}.",
            repair="Choose the backbone of that family (flmm backbones list), or another model.",
        )


def _hub_config(source: str, hub: Mapping[str, Any]) -> Path:
    wanted = {k: hub[k] for k in ("revision", "token", "cache_dir", "local_files_only") if k in hub}
    try:
        return Path(hf_hub_download(source, "config.json", **wanted))
    except (OSError, HFValidationError, EntryNotFoundError) as error:
        found, repair = _why_not_fetched(error)
        raise WeightsError(
            f"The model '{source}' cannot be fetched from the Hugging Face hub.",
            found=found,
            repair=repair,
        ) from error


def _why_not_fetched(error: Exception) -> tuple[str, str]:
    """(what was found, what repairs it); the hub's errors derive from each other."""
    if isinstance(error, GatedRepoError):
        return (
            "Its owner asks for consent first.",
            "Accept the conditions on its page and log in (hf auth login).",
        )
    if isinstance(error, (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError)):
        return (
            "There is no folder of that name here, and no such model or revision there.",
            "Check the name; a private model needs hf auth login.",
        )
    if isinstance(error, LocalEntryNotFoundError):
        return (
            "It is not in the local cache, and there is no network (or HF_HUB_OFFLINE is set).",
            ELSEWHERE,
        )
    if isinstance(error, EntryNotFoundError):
        return "It has no config.json.", "Choose a transformers model."
    return f"The hub cannot be reached: {error}", ELSEWHERE


@contextmanager
def load_errors(spec: BackboneSpec, source: str) -> Iterator[None]:
    """Turn what `from_pretrained` raises on bad or missing files into a `WeightsError`."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"The model '{source}' cannot be loaded by backbone '{spec.name}'.",
            found=reason,
            repair="See that the folder is complete (weights, tokenizer and processor files), "
            f"or fetch it again. {ELSEWHERE}",
        ) from error


def check_processor(processor: Any, config: Any, source: str) -> None:
    """See that a processor has a chat template and the model's image token.

    Raises:
        WeightsError: It has not.
    """
    asked = f"The processor of '{source}' cannot be used."
    repair = "Take the processor files from the model's original folder."
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


def parse_options(
    spec: BackboneSpec, options: Mapping[str, Any] | BackboneOptions | None
) -> BackboneOptions:
    """The plugin's own settings, validated.

    Raises:
        ConfigError: All unknown keys and wrong values, with the fields that there are.
    """
    if isinstance(options, spec.options):
        return options
    given = options.model_dump() if isinstance(options, BackboneOptions) else dict(options or {})
    fields = spec.options.model_fields
    try:
        return spec.options(**given)
    except ValidationError as error:
        problems = []
        for problem in error.errors():
            key = ".".join(map(str, problem["loc"])) or "options"
            if problem["type"] == "extra_forbidden":
                problems.append(f"Unknown option '{key}'. {did_you_mean(key, fields)}".rstrip())
            else:
                problems.append(f"Option '{key}' = {problem['input']!r}: {problem['msg']}.")
        known = ", ".join(fields) or "none"
        raise ConfigError(
            f"The options of backbone '{spec.name}' cannot be used.",
            found="\n".join(problems),
            repair=f"Its options: {known}.",
        ) from error


def choose_device(device: str | torch.device) -> torch.device:
    """A device; "auto" is the first accelerator, or else the CPU.

    Raises:
        UsageError: There is no such device.
    """
    if device == "auto":
        # A torch built for CUDA names it as the accelerator on machines without one, too.
        found = torch.accelerator.current_accelerator(check_available=True)
        return torch.device("cpu") if found is None else found
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(
            f"The device '{device}' cannot be used.",
            found=str(error).splitlines()[0],
            repair="Use 'auto' or 'cpu', or a device that torch was built for.",
        ) from error
    return chosen


def choose_dtype(dtype: str | torch.dtype, device_type: str) -> str | torch.dtype:
    """What to load as; "auto" is float32 on the CPU, elsewhere as stored.

    Half precision on a CPU is slower than single, and the tiny models are stored in it.

    Raises:
        ConfigError: The name is unknown.
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
    """Hexadecimal SHA-256 over the names, types, shapes and values of a module's weights.

    Raises:
        WeightsError: Some weights are offloaded, so that their values cannot be read.
    """
    total = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            raise WeightsError(
                "The weights of an offloaded model cannot be digested.",
                found=f"'{name}' is not in memory.",
                repair="Load the model without offloading.",
            )
        total.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        total.update(data.view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
