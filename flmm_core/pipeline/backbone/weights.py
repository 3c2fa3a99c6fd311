"""Finds a model's weights, checks that they are the right ones, and loads them."""

from __future__ import annotations

import hashlib
import importlib.resources
import importlib.util
import json
import logging
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import align_module_device
from huggingface_hub import errors as hub_errors
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError

from flmm_core.errors import (
    ConfigError,
    MissingExtraError,
    UsageError,
    WeightsError,
    did_you_mean,
    install_advice,
    machine_error,
    shortened,
)
from flmm_core.pipeline.backbone.quantization import with_kept_modules
from flmm_core.pipeline.hub import HUB_ARGUMENTS, HUB_ID, explain, explained, root
from flmm_core.plugins import load_backbones
from flmm_core.spec import BackboneSpec

logger = logging.getLogger(__name__)

PACKAGE_FOLDER = re.compile(r"([A-Za-z_][\w.]*):([\w./-]+)")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
LOAD_ERRORS = (OSError, ValueError, RuntimeError, SafetensorError, hub_errors.StrictDataclassError)
ADAPTER = "adapter_config.json"
WRAPPERS = re.compile(r"^(?:module\.|_orig_mod\.)+")
"""What DataParallel and torch.compile write before the names of a model's tensors."""
CLASS_TOKENS = "class_embedding", "cls_token"
"""What vision models call the token that they add to those of the image."""


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
        kwargs: For the model; those that say where the files come from go to all three. With
            `device_map="meta"` the model has no values, and its weights need not be there.

    Returns:
        (model, processor).

    Raises:
        WeightsError: Some of the model's weights are missing, or there is an adapter that cannot be
            applied. transformers would go on, with random weights or without the adapter.
    """
    files = {k: kwargs[k] for k in (*HUB_ARGUMENTS, "trust_remote_code") if k in kwargs}
    _check_adapter(source, kwargs)
    if how := kwargs.get("quantization_config"):
        kwargs["quantization_config"] = with_kept_modules(model_class, source, how, kwargs)
    if kwargs.get("device_map") == "meta":
        with torch.device("meta"):
            model = model_class(model_class.config_class.from_pretrained(source, **files))
    else:
        model = _with_weights(source, model_class, kwargs)
    processor = processor_class.from_pretrained(source, **files)
    processor.image_processor = image_class.from_pretrained(source, backend="pil", **files)
    complete_processor(processor, model)
    return model, processor


def _with_weights(source: str, model_class: Any, kwargs: Mapping[str, Any]) -> Any:
    """The model with all of its weights; raises as `load_pretrained`."""
    model, report = _reported(source, model_class, kwargs)
    unknown = sorted(report["unexpected_keys"])
    if report["missing_keys"] and unknown and all(map(WRAPPERS.match, unknown)):
        del model
        mapping = {WRAPPERS.pattern: ""}
        model, report = _reported(source, model_class, {**kwargs, "key_mapping": mapping})
        unknown = sorted(report["unexpected_keys"])
    if missing := sorted(report["missing_keys"]):
        others = f" {len(unknown)} others are not the model's: {_few(unknown)}." if unknown else ""
        raise WeightsError(
            f"The weights in '{source}' are incomplete.",
            found=f"{len(missing)} of the model's tensors are missing: {_few(missing)}.{others}",
            repair="Download the folder again, with all its *.safetensors files."
            if not unknown
            else "Save the model with transformers' save_pretrained, without a wrapper around it.",
        )
    if unknown:
        logger.warning(
            "%d tensors in '%s' are not the model's and are not used: %s.",
            *(len(unknown), source, _few(unknown)),
        )
    return model


def _reported(source: str, model_class: Any, kwargs: Mapping[str, Any]) -> Any:
    """(model, missing and unexpected tensors), also those of the base of an adapter beside it."""
    model, report = model_class.from_pretrained(source, output_loading_info=True, **kwargs)
    if not getattr(model, "peft_config", None):
        return model, report
    # transformers reports what it found of the adapter only.
    folder = Path(source) if Path(source).is_dir() else _hub_file(source, ADAPTER, kwargs).parent
    how = {key: kwargs[key] for key in ("key_mapping", "trust_remote_code") if key in kwargs}
    with tempfile.TemporaryDirectory() as name:
        for file in folder.iterdir():
            if file.name != ADAPTER:
                (Path(name) / file.name).symlink_to(file.resolve())
        _, base = model_class.from_pretrained(
            name, output_loading_info=True, device_map={"": "meta"}, **how
        )
    keys = ("missing_keys", "unexpected_keys")
    return model, {key: {*report[key], *base[key]} for key in keys}


def _few(names: list[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def _check_adapter(source: str, hub: Mapping[str, Any]) -> None:
    """`WeightsError` if an adapter (LoRA) is beside the weights and nothing here can apply it."""
    if importlib.util.find_spec("peft") is not None:
        return
    folder = Path(source)
    if not folder.is_dir():
        with suppress(OSError, hub_errors.EntryNotFoundError):
            folder = _hub_file(source, ADAPTER, hub).parent
    if (folder / ADAPTER).is_file():
        raise WeightsError(
            f"The model '{source}' has an adapter that cannot be applied.",
            found=f"It has {ADAPTER}, and the package peft is not installed.",
            repair="Install it (pip install peft); or merge the adapter into the weights "
            f"(merge_and_unload); or remove {ADAPTER} to use the base model.",
        )


def complete_processor(processor: Any, vlm: Any) -> None:
    """Fill in what a processor does not say because an older transformers saved it.

    The model's own settings say it too: patches, which features are used, the class token.
    """
    config = vlm.config
    known = {
        "patch_size": getattr(getattr(config, "vision_config", None), "patch_size", None),
        "vision_feature_select_strategy": getattr(config, "vision_feature_select_strategy", None),
    }
    for name, value in known.items():
        if hasattr(processor, name) and getattr(processor, name) is None:
            setattr(processor, name, value)
    if getattr(processor, "num_additional_image_tokens", None) == 0:
        names = [name.rpartition(".")[2] for name, _ in vlm.named_parameters()]
        processor.num_additional_image_tokens = sum(name in CLASS_TOKENS for name in names)


def find_source(spec: BackboneSpec, model: str) -> str:
    """The local folder or hub id of a model: an alias of `spec.models`, a hub id or a folder.

    Raises:
        UsageError: It is no alias and looks like neither a hub id nor a folder.
        WeightsError: The folder does not exist or has no config.json.
    """
    source = spec.models[model].source if model in spec.models else model
    folder = Path(source).expanduser()
    if not _exists(folder):
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
    if (folder / ADAPTER).is_file():
        raise WeightsError(
            f"The folder '{folder}' holds an adapter (LoRA) without its base model.",
            found=f"It has {ADAPTER}, but no config.json.",
            repair="Merge the adapter into the base model (peft: merge_and_unload) and give that "
            "folder, or copy the adapter's files into the base model's folder.",
        )
    raise WeightsError(
        f"The weights of model '{model}' of backbone '{spec.name}' are missing.",
        found=f"The folder {folder} has no config.json."
        if folder.is_dir()
        else f"There is no folder {folder}.",
        repair="Pass the folder of a complete transformers model, a hub id, "
        f"or one of: {', '.join(spec.models)}.",
    )


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name too long for the file system
        return False


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
        config = json.loads(file.read_text(encoding="utf-8"))
        found, classes = config.get("model_type"), config.get("architectures") or []
    except (OSError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"The config.json of '{source}' cannot be read.",
            found=str(error),
            repair="Copy or download the model again.",
        ) from error
    # First: authors may have used a model_type that transformers gave to its own format later.
    _check_converted(spec, source, (found, *classes))
    if not expected or found in expected:
        return
    for other in load_backbones().specs.values():
        _check_converted(other, source, (found, *classes))
    raise WeightsError(
        f"Backbone '{spec.name}' does not support the model '{source}'.",
        found=f"Its config.json says model_type '{found}'; expected: {', '.join(expected)}.",
        repair="Use the backbone of that family (flmm backbones list), or another model.",
    )


def _check_converted(spec: BackboneSpec, source: str, names: Iterable[str]) -> None:
    for name in names:
        if name in spec.converted:
            raise WeightsError(
                f"The model '{source}' is in its authors' own format.",
                found=f"Its config.json says '{name}', which transformers does not read.",
                repair="Use the weights converted for transformers: "
                f"--backbone {spec.name} --model {spec.converted[name]}.",
            )


def _hub_file(source: str, name: str, hub: Mapping[str, Any]) -> Path:
    wanted = {key: hub[key] for key in HUB_ARGUMENTS if key in hub}
    return Path(hf_hub_download(source, name, **wanted))


def _hub_config(source: str, hub: Mapping[str, Any]) -> Path:
    with explained(f"The model '{source}' cannot be downloaded from the Hugging Face hub."):
        return _hub_file(source, "config.json", hub)


@contextmanager
def explain_errors(spec: BackboneSpec, source: str) -> Iterator[None]:
    """Turn the errors of `from_pretrained` for bad or missing files or packages into ours."""
    try:
        yield
    except ImportError as error:
        raise MissingExtraError(
            f"The model '{source}' needs a package that is missing or too old.",
            found=shortened(" ".join(str(error).split()), 300),
            repair=_package_advice(error),
        ) from error
    except LOAD_ERRORS as error:
        if (known := machine_error(error)) is not None:
            raise known from error
        asked = f"The model '{source}' cannot be downloaded from the Hugging Face hub."
        if (cause := root(error)) is not error or isinstance(error, hub_errors.HfHubHTTPError):
            found, repair = explain(cause)
            raise WeightsError(asked, found=found, repair=repair) from error
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise WeightsError(
            f"Backbone '{spec.name}' cannot load the model '{source}'.",
            found=reason,
            repair="Check that the folder is complete (weights, tokenizer and processor files), "
            "or download it again.",
        ) from error


def _package_advice(error: ImportError) -> str:
    if "FlashAttention" in str(error):
        return (
            "Install it (pip install flash-attn); or choose another attention: remove "
            "_attn_implementation from the model's config.json, or give attn_implementation='sdpa'."
        )
    advice = install_advice(error)
    return f"{advice}; or choose weights that do not need it, such as the ones not quantized."


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
    """Hexadecimal SHA-256 over the dtypes, shapes and values of a module's weights.

    Without their names, which change from one version of transformers to the next. Those that are
    offloaded are read into memory, one layer at a time.
    """
    known = set()
    for name, tensor in sorted(module.state_dict().items()):
        if tensor.is_meta:
            owner, _, leaf = name.rpartition(".")
            layer = module.get_submodule(owner)
            with align_module_device(layer):
                tensor = getattr(layer, leaf).detach().cpu()
        one = hashlib.sha256(f"{tensor.dtype} {tuple(tensor.shape)}\n".encode())
        data = tensor.detach().cpu().contiguous().flatten()
        one.update(data.view(torch.uint8).numpy().tobytes())
        known.add(one.digest())
    return hashlib.sha256(b"".join(sorted(known))).hexdigest()
