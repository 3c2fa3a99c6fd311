"""Reads the tensors of a checkpoint that other programs wrote, without running any of its code."""

from __future__ import annotations

import pickle
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, serialization

from flmm_core.errors import WeightsError, shortened
from flmm_core.pipeline.backbone.weights import WRAPPERS

LEVELS = ("state_dict", "model", "model_state_dict", "module")
"""Where training programs put the tensors, beside epochs, optimizers and logs."""

LOGS = ("mmengine", "mmcv", "numpy")
"""Packages whose objects stand in the logs that MMEngine keeps in its checkpoints."""


class _LeftOut:
    """Stands where a log's object would be; whatever it is made of is dropped."""

    def __init__(self, *parts: Any) -> None:
        pass

    def __new__(cls, *parts: Any) -> _LeftOut:
        return super().__new__(cls)

    def __setstate__(self, state: Any) -> None:
        pass


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint by name, without what wrappers put before the names.

    They lie flat in the file or under "state_dict" and the like. Files of `torch.save` in its
    today's format, and safetensors, stay on the disk until a tensor is used.

    Raises:
        WeightsError: The file is missing, damaged, needs code to be read, or holds no tensors.
    """
    asked = f"The checkpoint '{path}' cannot be read."
    if not path.is_file():
        what = "It is a folder." if path.is_dir() else "No such file."
        raise WeightsError(asked, found=what, repair="Give the file of a checkpoint.")
    content = _safetensors(path, asked) if _is_safetensors(path) else _pickled(path, asked)
    for _ in LEVELS:
        level = next((content[k] for k in LEVELS if isinstance(content.get(k), Mapping)), None)
        if level is None:
            break
        content = dict(level)
    tensors = {WRAPPERS.sub("", str(k)): x for k, x in content.items() if isinstance(x, Tensor)}
    if not tensors:
        keys = ", ".join(shortened(str(key), 40) for key in list(content)[:5])
        raise WeightsError(
            asked,
            found=f"It holds no tensors by name; its keys are: {keys or 'none'}.",
            repair="Give a state dict that torch.save or safetensors wrote.",
        )
    return tensors


def _is_safetensors(path: Path) -> bool:
    """By its contents: a length, then JSON."""
    with path.open("rb") as file:
        return path.suffix == ".safetensors" or file.read(9)[8:] == b"{"


def _safetensors(path: Path, asked: str) -> dict[str, Any]:
    try:
        with safe_open(path, "pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        found = f"It is damaged or no safetensors file: {' '.join(str(error).split())}."
        raise WeightsError(asked, found=found, repair="Copy or download it again.") from error


def _pickled(path: Path, asked: str) -> dict[str, Any]:
    """What `torch.save` wrote, by the unpickler of torch that knows tensors and plain values only.

    It cannot import or call anything else, so a hostile file is refused like a damaged one.
    """
    archive = zipfile.is_zipfile(path)  # torch.save once wrote other files
    foreign, logged = list[str](), list[str]()
    try:
        if archive:
            _check_sums(path)
            foreign, logged = _apart(serialization.get_unsafe_globals_in_checkpoint(path))
        with _without_logs(logged), warnings.catch_warnings(action="ignore"):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as error:  # a damaged pickle can raise anything
        reason = f"It is cut off, damaged, or no file of torch.save ({type(error).__name__})."
        repair = "Copy or download it again."
        if foreign or (isinstance(error, pickle.UnpicklingError) and "GLOBAL" in str(error)):
            names = shortened(", ".join(foreign), 200) or "code of other programs"
            reason = f"Besides tensors it holds {names}, which is not run."
            repair = (
                "Only open it with the program that wrote it, if you trust it, and save its state "
                "dict: torch.save(model.state_dict(), FILE)."
            )
        raise WeightsError(asked, found=reason, repair=repair) from error
    return dict(content) if isinstance(content, Mapping) else {}


def _check_sums(path: Path) -> None:
    """torch does not compare the check sums of its archives."""
    with zipfile.ZipFile(path) as archive:
        if (damaged := archive.testzip()) is not None:
            raise zipfile.BadZipFile(damaged)


def _apart(names: list[str]) -> tuple[list[str], list[str]]:
    """(what must not be in a checkpoint, what MMEngine's logs are made of)."""
    logged = {n for n in names if n.split(".")[0] in LOGS or n == "builtins.getattr"}
    return sorted(set(names) - logged), sorted(logged)


@contextmanager
def _without_logs(names: list[str]) -> Iterator[None]:
    with serialization.safe_globals([(_LeftOut, name) for name in names]):
        yield
