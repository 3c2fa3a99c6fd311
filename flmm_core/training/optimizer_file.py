"""The optimizer's state in a checkpoint: `optimizer.pt`, and its digest in `optimizer.json`.

Only tensors and plain values are read (`weights_only`), so a file cannot run code. A file is
checked as a whole before anything takes its values.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from flmm_core.errors import WeightsError
from flmm_core.files import write_bytes, write_json

STATE, ABOUT = "optimizer.pt", "optimizer.json"


@dataclass(frozen=True)
class OptimizerState:
    """The step that a checkpoint was written after, and torch's state of each parameter.

    Attributes:
        weights: The trained weights by name, if those of the checkpoint are their average.
    """

    step: int
    state: Mapping[int, Mapping[str, Any]]
    weights: Mapping[str, Tensor] | None = None

    def load_into(self, optimizer: Optimizer) -> None:
        """Continue from this state, with the optimizer's own rates and other settings."""
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": dict(self.state), "param_groups": groups})


def write_optimizer(
    folder: Path, step: int, optimizer: Optimizer, weights: Mapping[str, Tensor] | None = None
) -> None:
    """Write the state into a checkpoint's folder, which exists; see `OptimizerState`."""
    buffer = io.BytesIO()  # torch.save turns a full disk into a RuntimeError without its reason
    content: dict[str, Any] = {"step": step, "optimizer": optimizer.state_dict()}
    torch.save(content | ({} if weights is None else {"weights": dict(weights)}), buffer)
    saved = buffer.getvalue()
    write_bytes(folder / STATE, saved)
    write_json(folder / ABOUT, {"sha256": hashlib.sha256(saved).hexdigest()})


def read_optimizer(folder: Path, optimizer: Optimizer) -> OptimizerState:
    """The state in a checkpoint's folder, checked to fit an optimizer; nothing is changed.

    Raises:
        WeightsError: It is missing, damaged, of other parameters, or has values that are not
            finite.
    """
    path = folder / STATE
    try:
        content = path.read_bytes()
        _check_digest(content, folder / ABOUT)
        whole = torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        found = OptimizerState(whole["step"], whole["optimizer"]["state"], whole.get("weights"))
        if problem := next(_problems(found, optimizer), None):
            raise ValueError(problem)
    except Exception as error:  # unpickling a damaged file may raise anything
        raise WeightsError(
            f"The optimizer state in '{path}' cannot be used.",
            found=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            repair="Copy the file again, or resume from another checkpoint by linking 'last' to "
            "it.",
        ) from error
    return found


def _check_digest(content: bytes, about: Path) -> None:
    """ValueError if a digest was recorded (older checkpoints have none) and differs."""
    if about.is_file():
        recorded = json.loads(about.read_bytes())["sha256"]
        if (digest := hashlib.sha256(content).hexdigest()) != recorded:
            raise ValueError(f"its SHA-256 is {digest[:12]}..., not {str(recorded)[:12]}...")


def _problems(found: OptimizerState, optimizer: Optimizer) -> Iterator[str]:
    """What is wrong with a state; nothing if it can be loaded."""
    if type(found.step) is not int or found.step < 1:
        yield f"the step is {found.step!r}"
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    if not isinstance(found.state, dict) or not set(found.state) <= set(range(len(weights))):
        yield f"its states are not those of {len(weights)} parameters"
    for number, state in found.state.items():  # none of a weight that has never had a gradient
        weight = weights[number]
        if set(state) != {"step", "exp_avg", "exp_avg_sq"}:
            yield f"parameter {number} has {sorted(map(str, state))}"
        for name, value in state.items():
            shape = torch.Size([]) if name == "step" else weight.shape
            if not isinstance(value, Tensor) or value.shape != shape:
                yield f"{name} of parameter {number} is not a tensor of shape {tuple(shape)}"
            elif not value.is_floating_point() or not torch.isfinite(value).all():
                yield f"{name} of parameter {number} has values that are not finite numbers"
            elif name != "exp_avg" and (value < 0).any():
                yield f"{name} of parameter {number} is negative"
