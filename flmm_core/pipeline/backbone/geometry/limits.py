"""How much time and memory the measurement of one image size may take."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import psutil
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from flmm_core.pipeline.backbone.geometry.refused import refuse

SECONDS = 20.0
BYTES = 4 << 30

_PRODUCTS = {torch.ops.aten.bmm.default, torch.ops.aten.mm.default}
_CAST = torch.ops.aten._to_copy.default


class Limits(TorchDispatchMode):
    """Checks the limits before each tensor operation of the block, forward and backward.

    It also computes in float64 where a model asks for float32, as norms do: gradients then tell
    tokens apart to 12 digits.

    Args:
        seconds: CPU seconds of this thread from here on.
        memory: Bytes that the process may grow by.
    """

    def __init__(self, seconds: float = SECONDS, memory: int = BYTES) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seconds, self.memory = seconds, memory
        self._began = time.thread_time()
        self._process = psutil.Process()
        self._held = self._process.memory_info().rss

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        self.check(_product_bytes(*args[:2]) if func in _PRODUCTS else 0)
        if any(map(_is_double, args)):
            if func is _CAST and kwargs.get("dtype") == torch.float32:
                kwargs["dtype"] = torch.float64
            if not func._schema.is_mutable:  # type: ignore[attr-defined]
                args = tuple(map(_promoted, args))
        return func(*args, **kwargs)

    @property
    def used(self) -> float:
        """CPU seconds so far."""
        return time.thread_time() - self._began

    def check(self, wanted: int = 0) -> None:
        """`GeometryRefused` if a limit is exceeded, or would be by `wanted` more bytes."""
        if self.used > self.seconds:
            raise refuse(f"It takes more than {self.seconds:.0f} seconds of CPU time.")
        grown = self._process.memory_info().rss - self._held + wanted
        if grown > self.memory:
            raise refuse(f"It takes more than {self.memory / 2**30:.1f} GiB of memory.")


def _is_double(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.float64


def _promoted(value: Any) -> Any:
    """float64 for float32, as it is beside a float64 tensor."""
    is_float = isinstance(value, torch.Tensor) and value.dtype == torch.float32
    return value.double() if is_float else value


def _product_bytes(one: torch.Tensor, other: torch.Tensor) -> int:
    """Bytes of the product of two matrices, or of two batches of them."""
    return one.shape[:-1].numel() * other.shape[-1] * one.element_size()
