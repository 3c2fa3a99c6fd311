"""Many tensors as one, on their way from one process to another.

Each tensor that PyTorch hands from a worker to the main process costs a file descriptor and a
mapping of shared memory. A batch holds more than a hundred, most of them tiny: one buffer for all
costs these once.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

ALIGNED = 64
"""Bytes; every tensor begins at a multiple of it."""


@dataclass(frozen=True)
class Packed:
    """A value whose tensors lie in one buffer.

    Attributes:
        structure: The value pickled, its tensors by their numbers.
        tensors: Of each, its type, its shape and where it begins in bytes.
        buffer: (bytes,) uint8.
    """

    structure: bytes
    tensors: tuple[tuple[torch.dtype, tuple[int, ...], int], ...]
    buffer: Tensor

    def pin_memory(self) -> Packed:
        """The same with a page-locked buffer, and so with page-locked tensors."""
        return replace(self, buffer=self.buffer.pin_memory())

    def unpack(self) -> Any:
        """The value; its tensors share the buffer's memory."""
        tensors = []
        for dtype, shape, begin in self.tensors:
            end = begin + math.prod(shape) * dtype.itemsize
            tensors.append(self.buffer[begin:end].view(dtype).view(shape))
        return _Reader(io.BytesIO(self.structure), tensors).load()


def pack(value: Any) -> Packed:
    """Pack a value whose tensors are on the CPU; one that is in it twice stays one."""
    file = io.BytesIO()
    writer = _Writer(file)
    writer.dump(value)
    layout, end = [], 0
    for tensor in writer.tensors:
        layout.append((tensor.dtype, tuple(tensor.shape), end))
        end += -(-tensor.nbytes // ALIGNED) * ALIGNED
    packed = Packed(file.getvalue(), tuple(layout), torch.empty(end, dtype=torch.uint8))
    for tensor, (_, _, begin) in zip(writer.tensors, layout, strict=True):
        flat = tensor.contiguous().view(-1).view(torch.uint8)
        packed.buffer[begin : begin + tensor.nbytes] = flat
    return packed


class _Writer(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor):
            return None
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self.tensors)
            self.tensors.append(value)
        return self._numbers[id(value)]


class _Reader(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, tensors: list[Tensor]) -> None:
        super().__init__(file)
        self._tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self._tensors[number]
