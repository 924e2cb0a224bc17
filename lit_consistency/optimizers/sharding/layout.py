"""Where the rows of a sharded parameter lie, and rows and sums over the ranks that hold them.

A parameter that is sharded by rows (FSDP2's ``Shard(0)``, with HSDP's ``Replicate()`` beside it) is a flat range of
coordinates on every rank. Given up: shards by columns, and rows over more than one dimension of the mesh.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard


class Layout(NamedTuple):
    """Flat ranges of a parameter's coordinates on the ranks of a process group."""

    bounds: tuple[int, ...]  # where each rank's range begins, and where the last ends
    rank: int
    group: Any  # ProcessGroup, or None where the parameter is whole

    @property
    def begin(self) -> int:
        """First coordinate of this rank."""
        return self.bounds[self.rank]

    @property
    def end(self) -> int:
        """After the last coordinate of this rank."""
        return self.bounds[self.rank + 1]


def layout_of(name: str, parameter: Tensor) -> Layout:
    """Where the coordinates of a parameter lie.

    Args:
        name: of the parameter, for the message.
        parameter: a tensor, or a DTensor with the rows over one dimension of the mesh and replicas over the others.

    Raises:
        ValueError: it is sharded otherwise.
    """
    if not isinstance(parameter, DTensor):
        return Layout((0, parameter.numel()), 0, None)
    mesh, sharding = parameter.device_mesh, []
    for dimension, placement in enumerate(parameter.placements):
        # a strided shard is a subclass, and holds other rows
        if type(placement) is Shard and placement.dim == 0:
            sharding.append(dimension)
        elif not isinstance(placement, Replicate):
            raise ValueError(f"{name} has placement {placement}: expected Shard(dim=0) or Replicate() for MoFO")
    sharding = [dimension for dimension in sharding if mesh.size(dimension) > 1]
    if len(sharding) > 1:
        raise ValueError(f"{name} has placements {parameter.placements}: expected one Shard(dim=0) for MoFO")
    if not sharding:
        return Layout((0, parameter.numel()), 0, None)
    ranks, rows = mesh.size(sharding[0]), parameter.shape[0]
    # as torch.chunk, which FSDP2 splits with
    chunk = -(-rows // ranks)
    bounds = tuple(min(rows, rank * chunk) * (parameter.numel() // rows) for rank in range(ranks + 1))
    return Layout(bounds, mesh.get_local_rank(sharding[0]), mesh.get_group(sharding[0]))


def gather_rows(pieces: Sequence[Tensor], counts: Sequence[Sequence[int]], group: Any) -> list[Tensor]:
    """Whole rows from the pieces on all ranks, with one all-gather.

    Args:
        pieces: of each row what lies on this rank, of shape (n,), n may be 0.
        counts: of each row how many numbers lie on each rank.
        group: process group.

    Returns:
        Rows, the ranks' pieces in their order.
    """
    totals = [sum(column) for column in zip(*counts, strict=True)]
    sent = pieces[0].new_zeros(max(totals))
    torch.cat(list(pieces), out=sent[: sum(piece.numel() for piece in pieces)])
    received = sent.new_empty(len(totals) * sent.numel())
    dist.all_gather_into_tensor(received, sent, group=group)
    of_rank = [part[:total] for part, total in zip(received.view(len(totals), -1), totals, strict=True)]
    split = [part.split(list(column)) for part, column in zip(of_rank, zip(*counts, strict=True), strict=True)]
    return [torch.cat(row) for row in zip(*split, strict=True)]


def sum_over(totals: Tensor, groups: Sequence[Any]) -> Tensor:
    """Rows of ``totals`` summed over the ranks of their process group; rows whose group is None as they are."""
    for group in {id(group): group for group in groups if group is not None}.values():
        of_group = torch.tensor([other is group for other in groups], device=totals.device)
        part = totals * of_group[:, None]
        dist.all_reduce(part, group=group)
        totals = torch.where(of_group[:, None], part, totals)
    return totals
