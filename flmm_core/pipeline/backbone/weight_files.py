"""Looks at a model's files before they are loaded: are they all there, and whole?"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from flmm_core.errors import WeightsError
from flmm_core.pipeline.backbone.weights import check_model_type, find_source
from flmm_core.spec import BackboneSpec

SAFETENSORS, PICKLED = "model.safetensors", "pytorch_model.bin"


def check_model_files(
    spec: BackboneSpec, model: str, model_types: tuple[str, ...], hub: Mapping[str, Any]
) -> str:
    """What `Backbone.load` would refuse, in a moment.

    Looks at `config.json`, which a hub id downloads, and in a folder at the headers of the weights.

    Args:
        spec: The backbone's facts.
        model: An alias of `spec.models`, a hub id or a folder.
        model_types: As `Backbone.model_types`.
        hub: What is passed through to transformers' `from_pretrained`.

    Returns:
        The folder or hub id of the model.

    Raises:
        UsageError: The model is no alias and looks like neither a hub id nor a folder.
        WeightsError: It is missing, incomplete or of another family.
    """
    source = find_source(spec, model)
    check_model_type(spec, source, model_types, hub)
    if Path(source).is_dir() and not {"variant", "gguf_file"} & hub.keys():
        check_weight_files(Path(source))
    return source


def check_weight_files(folder: Path) -> None:
    """`WeightsError` if a folder lacks weights that transformers would load, or one is cut off.

    Reads the headers only; what is not named as `save_pretrained` does is not looked at.
    """
    asked = f"The weights in '{folder}' are incomplete."
    repair = "Download the folder again, with all its weights files."
    files = list(weight_files(folder))
    others = [*folder.glob("*.safetensors"), *folder.glob("*.bin"), *folder.glob("*.gguf")]
    if not files and not others:
        raise WeightsError(asked, found="It has no weights files.", repair=repair)
    if missing := [path.name for path in files if not path.is_file()]:
        count = f"{len(missing)} of {len(files)} files are missing"
        shown = ", ".join(missing[:3]) + (", ..." if missing[3:] else "")
        raise WeightsError(asked, found=f"{count}: {shown}.", repair=repair)
    for path in files:
        if reason := _fault(path):
            raise WeightsError(asked, found=f"{path.name} is damaged: {reason}.", repair=repair)


def loaded_bytes(folder: Path, dtype: str | torch.dtype) -> int:
    """Bytes of a model's weights once they are loaded in a dtype; "auto" is as they are stored.

    Reads the headers only; of files that are not safetensors, their size.
    """
    total = 0
    for path in weight_files(folder):
        if path.suffix != ".safetensors" or isinstance(dtype, str):
            total += path.stat().st_size
            continue
        with safe_open(path, "pt") as file:
            sizes = (prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118
            total += sum(sizes) * dtype.itemsize
    return total


def weight_files(folder: Path) -> Iterator[Path]:
    """What transformers would load: safetensors before pickled, one file before shards."""
    for name in (SAFETENSORS, PICKLED):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            yield folder / name
            return
        if index.is_file():
            try:
                names = set(json.loads(index.read_bytes())["weight_map"].values())
            except (OSError, ValueError, KeyError, AttributeError) as error:
                raise WeightsError(
                    f"The weights in '{folder}' are incomplete.",
                    found=f"{index.name} cannot be read: {type(error).__name__}: {error}.",
                    repair="Download the folder again, with all its weights files.",
                ) from error
            yield from (folder / str(each) for each in sorted(names, key=str))
            return


def _fault(path: Path) -> str:
    """What is wrong with a weights file; empty if nothing is."""
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt"):  # compares the header with the size of the file
                return ""
        if path.stat().st_size == 0:
            return "it is empty"
        with path.open("rb") as file:
            begun = file.read(4)
        # torch.save writes a zip archive, whose end lists what is in it; it once wrote none.
        return "it is cut off" if begun == b"PK\3\4" and not zipfile.is_zipfile(path) else ""
    except (OSError, SafetensorError) as error:
        return " ".join(str(error).split())
