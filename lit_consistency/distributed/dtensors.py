"""Tensors that lie in shards on several ranks (DTensor), and tensors that lie on one: the same calls for both.

Gathering is a collective call: every rank makes it, for the same tensors in the same order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor, on every rank; one that is not sharded as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part(tensor: Tensor) -> Tensor:
    """What lies on this rank of a tensor, without gradient, sharing its memory."""
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


@torch.no_grad()
def laid_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor cut as ``like`` is, on its device; every rank takes its own part and nothing is sent.

    Args:
        tensor: the same on all ranks; one of another shape is left as it is, for whoever loads it to refuse.
        like: sharded or not.
    """
    if not isinstance(like, DTensor) or tensor.shape != like.shape:
        return tensor
    here, mesh = tensor.detach(), like.device_mesh
    for i, placement in enumerate(like.placements):
        if isinstance(placement, Shard):
            pieces, mine = here.chunk(mesh.size(i), placement.dim), mesh.get_local_rank(i)
            here = pieces[mine] if mine < len(pieces) else here.narrow(placement.dim, 0, 0)
    device, layout = _layout(like)
    # copied: a view would keep all of the tensor alive
    return DTensor.from_local(here.to(device, copy=True), run_check=False, **layout)


class KeptShards(Mapping[str, Tensor]):
    """Copies of tensors on the CPU, of which each rank holds its shards; read one by one, each is whole.

    Args:
        tensors: name -> tensor, sharded or not.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self.parts = {name: part(tensor).cpu().clone() for name, tensor in tensors.items()}
        self._layouts = {name: _layout(tensor) for name, tensor in tensors.items() if isinstance(tensor, DTensor)}

    def __getitem__(self, name: str) -> Tensor:
        """The whole tensor; a collective call where it is sharded."""
        here = self.parts[name]
        if name not in self._layouts:
            return here
        device, layout = self._layouts[name]
        return DTensor.from_local(here.to(device), run_check=False, **layout).full_tensor()

    def __iter__(self) -> Iterator[str]:
        return iter(self.parts)

    def __len__(self) -> int:
        return len(self.parts)


def _layout(tensor: DTensor) -> tuple[torch.device, dict[str, Any]]:
    """What makes a sharded tensor of a shard; shards of uneven sizes do not tell the shape by themselves."""
    layout = {"device_mesh": tensor.device_mesh, "placements": tensor.placements}
    return tensor.to_local().device, {**layout, "shape": tensor.shape, "stride": tensor.stride()}
