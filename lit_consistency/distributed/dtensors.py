"""Tensors that lie in shards on several ranks (DTensor), and tensors that lie on one: the same calls for both.

``full_tensor`` is a collective call: every rank makes it, for the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard, zeros


def full_tensor(tensor: Tensor) -> Tensor:
    """The full tensor on every rank; a tensor that is not sharded is returned unchanged."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local_shard(tensor: Tensor) -> Tensor:
    """The shard on this rank, or a tensor that is not sharded; without gradient, sharing its memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A full tensor sharded as ``like`` is, on its device; every rank cuts out its own shard and nothing is sent.

    Args:
        tensor: the same on all ranks; one of another shape is left as it is, for whoever loads it to refuse.
        like: sharded or not.
    """
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    shard, mesh = tensor.detach(), like.device_mesh
    for i, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            chunks, rank = shard.chunk(mesh.size(i), placement.dim), mesh.get_local_rank(i)
            shard = chunks[rank] if rank < len(chunks) else shard.narrow(placement.dim, 0, 0)
    device, layout = _layout(like)
    # copied: a view would keep all of the tensor alive
    return DTensor.from_local(shard.to(device, copy=True), run_check=False, **layout)


def zeros_sharded_as(parameter: Tensor, size: torch.Size, dtype: torch.dtype) -> Tensor:
    """Zeros of one state of a parameter, sharded as it is if they have its rows (NorMuon's have one number a row)."""
    if not isinstance(parameter, DTensor) or len(size) != parameter.ndim or size[0] != parameter.shape[0]:
        return torch.zeros(size, dtype=dtype)
    return zeros(size, dtype=dtype, device_mesh=parameter.device_mesh, placements=parameter.placements)


class KeptShards:
    """Copies of tensors on the CPU, of which each rank holds its shards.

    Args:
        tensors: name -> tensor, sharded or not.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.shards = {name: local_shard(tensor).cpu().clone() for name, tensor in tensors.items()}
        self._layouts = {name: _layout(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}

    @property
    def names(self) -> Iterable[str]:
        """Names of the tensors, in the order in which they were given."""
        return self.shards.keys()

    def full_tensor(self, name: str) -> Tensor:
        """One of the tensors, full; where it is sharded a collective call, which all ranks make in the same order."""
        shard = self.shards[name]
        if name not in self._layouts:
            return shard
        device, layout = self._layouts[name]
        return DTensor.from_local(shard.to(device), run_check=False, **layout).full_tensor()


def _layout(tensor: DTensor) -> tuple[torch.device, dict[str, Any]]:
    """Device and arguments that make a DTensor of a shard; uneven shards do not determine the full shape."""
    layout = {"device_mesh": tensor.device_mesh, "placements": tensor.placements}
    return tensor.to_local().device, {**layout, "shape": tensor.shape, "stride": tensor.stride()}
