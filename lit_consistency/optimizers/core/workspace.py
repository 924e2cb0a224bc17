"""Memory that is reused from step to step, so that large temporary tensors are not allocated in each.

A tensor of some megabytes that was just made costs more to write than a whole pass over one that is there: the system
maps it page by page (measured: 3 ms for 9 MB, beside 0.5 ms). Given up: the memory stays with its owner between steps.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Workspace:
    """Named pieces of CPU memory, each as large as the largest tensor that was asked for under its name."""

    def __init__(self) -> None:
        self._memory: dict[str, Tensor] = {}

    def __reduce__(self) -> tuple[type[Workspace], tuple[()]]:
        """A copy is empty: what lies here is of no use to another."""
        return Workspace, ()

    def take(self, name: str, shape: tuple[int, ...] | torch.Size, dtype: torch.dtype) -> Tensor:
        """A contiguous tensor with any content; it is overwritten when its name is taken again.

        Args:
            name: of the piece of memory.
            shape: of the tensor.
            dtype: of the tensor.
        """
        nbytes = math.prod(shape) * dtype.itemsize
        if name not in self._memory or self._memory[name].numel() < nbytes:
            self._memory.pop(name, None)
            self._memory[name] = torch.empty(nbytes, dtype=torch.uint8)
        return self._memory[name][:nbytes].view(dtype).view(shape)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(memory.numel() for memory in self._memory.values())
