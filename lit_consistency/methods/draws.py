"""Random weights of a model that no rank ever holds in full: what a CPU draws for whole tensors, a tensor at a time.

A model is built on the meta device and sharded; then each rank draws every tensor in full, in the same order and from
the same seed as for one device, keeps its own shard, and drops the rest. The drawing takes as long as for one device.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lit_consistency.distributed.dtensors import local_shard, shard_like

aten = torch.ops.aten
RANDOM = (aten.uniform_.default, aten.normal_.default)
FILLS = (*RANDOM, aten.zero_.default, aten.fill_.Scalar)


class Fill(NamedTuple):
    """An operator that has filled a tensor, and the state of the CPU's generator before it, if it has drawn."""

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    state: Tensor | None

    def apply(self, tensor: Tensor) -> Tensor:
        """Fill another tensor alike."""
        if self.state is not None:
            torch.set_rng_state(self.state)
        return self.function(tensor, *self.args, **self.kwargs)


class Draws(TorchDispatchMode):
    """Within, tensors on the meta device move the CPU's generator on, and tensors in shards get their part of a whole.

    What has filled a tensor on the meta device is remembered, to fill its shards with later.
    """

    def __init__(self) -> None:
        super().__init__()
        self._fills: defaultdict[Tensor, list[Fill]] = defaultdict(list)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run an operator; one that fills a tensor in its own way."""
        kwargs = kwargs or {}
        tensor = args[0] if func in FILLS else None
        if tensor is None or not (tensor.is_meta or isinstance(tensor, DTensor)):
            return func(*args, **kwargs)
        fill = Fill(func, args[1:], kwargs, torch.get_rng_state() if func in RANDOM else None)
        if not tensor.is_meta:
            self._into_shard([fill], tensor)
            return tensor
        self._fills[tensor].append(fill)
        if func in RANDOM:  # others are drawn from where this ends
            func(_like(tensor), *args[1:], **kwargs)
        return tensor

    def repeat(self, tensor: Tensor, target: Tensor) -> None:
        """Fill a tensor in shards as one of its shape on the meta device was filled.

        Raises:
            ValueError: nothing has filled it.
        """
        if tensor not in self._fills:
            raise ValueError(f"a parameter of shape {tuple(tensor.shape)} has no value: expected one of the checkpoint")
        self._into_shard(self._fills[tensor], target)

    def _into_shard(self, fills: list[Fill], target: Tensor) -> None:
        whole = _like(target)
        for fill in fills:
            fill.apply(whole)
        local_shard(target).copy_(local_shard(shard_like(whole, target)))


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu")
