"""One door to a function of whole matrices, whose rows may lie on many ranks.

``map`` calls a function on stacks of blocks and gives back what lies on this rank: at once where the matrices are
whole and nobody shares the work (``Alone``); each rank a part of every stack, one all-gather for a stack, where all
ranks hold the same matrices (``Replicated``: DDP); each rank a part of the matrices, one all-to-all to gather their
rows on the owner and one to send the results back, where each rank holds some rows (``Sharded``: FSDP2 and, in each
replica, HSDP).

Given up: replicas of HSDP each do their replica's work; communication does not overlap with computation; a matrix
sharded by columns or over two dimensions is refused.

Source: the owner's scheme of microsoft/dion, dion/megabatch_base.py; rows of a shard, torch.distributed.tensor.Shard,
which cuts as ``torch.chunk`` does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lit_consistency.optimizers.groups import Split
from lit_consistency.optimizers.sharding.stacks import BlockFunction, by_blocks

# Elements in a stack: on a CPU only small blocks gain from one, elsewhere it bounds the memory of a step.
CPU_LIMIT, LIMIT = 2**20, 2**26


class Alone:
    """Whole matrices, all of them worked on here.

    Args:
        groups: ranks that hold replicas of them, or other matrices of the same stacks; all take the same choices.
    """

    def __init__(self, groups: Sequence[dist.ProcessGroup] = ()) -> None:
        self.groups = list(groups)

    def limit(self, device: torch.device) -> float:
        """Elements of parameters to be handed to one ``map``."""
        return CPU_LIMIT if device.type == "cpu" else LIMIT

    def agree(self, number: int, device: torch.device) -> int:
        """The first rank's number; one broadcast in each dimension of the mesh, if there is one."""
        return _first(number, device, self.groups) if self.groups else number

    def map(
        self,
        pieces: Sequence[Sequence[Tensor]],
        rows: Sequence[int],
        splits: Sequence[Split | None],
        fn: BlockFunction,
        like: Sequence[int],
    ) -> list[list[Tensor]]:
        """Call ``fn`` on stacks of blocks of whole matrices.

        Args:
            pieces: parameters with their companions: what lies on this rank of each, in the same order on every rank,
                and of one shape and dtype, but for ``rows``.
            rows: of each tensor of a piece when whole.
            splits: rows of each block, for each tensor of a piece; see ``stacks.runs``.
            fn: from stacks to stacks; a pure function, block by block.
            like: for each output the input whose shape it has.

        Returns:
            For each piece its outputs: what lies on this rank of each.
        """
        limit = self.limit(pieces[0][0].device) if pieces else 0
        return by_blocks(pieces, splits, fn, like, limit)


class Replicated(Alone):
    """The same matrices on every rank of a group; each works on a part of every stack.

    Args:
        group: the ranks; all of them when not given.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def limit(self, device: torch.device) -> float:
        """No limit, so that there is one all-gather for a block shape."""
        return float("inf")

    def agree(self, number: int, device: torch.device) -> int:
        """The first rank's number; one broadcast."""
        return _first(number, device, [self.group])

    def map(
        self,
        pieces: Sequence[Sequence[Tensor]],
        rows: Sequence[int],
        splits: Sequence[Split | None],
        fn: BlockFunction,
        like: Sequence[int],
    ) -> list[list[Tensor]]:
        """See ``Alone.map``; one all-gather for each block shape, and the same bits on every rank."""
        return by_blocks(pieces, splits, lambda stacks: self._share(stacks, fn, like), like)

    def _share(self, stacks: list[Tensor], fn: BlockFunction, like: Sequence[int]) -> list[Tensor]:
        batch = stacks[0].size(0)
        each = math.ceil(batch / self.world)
        start, end = min(self.rank * each, batch), min((self.rank + 1) * each, batch)
        shapes = [stacks[i].shape[1:] for i in like]
        sizes = [shape.numel() for shape in shapes]
        mine = stacks[0].new_zeros(each, sum(sizes))
        if end > start:
            results = fn([stack[start:end] for stack in stacks])
            for target, result in zip(mine[: end - start].split(sizes, 1), results, strict=True):
                target.copy_(result.reshape(end - start, -1))
        everything = mine.new_empty(self.world * each, sum(sizes))
        # named all_gather_single from torch 2.13, where the old name warns
        getattr(dist, "all_gather_single", dist.all_gather_into_tensor)(everything, mine, group=self.group)
        parts = everything[:batch].split(sizes, 1)
        return [part.reshape(batch, *shape) for part, shape in zip(parts, shapes, strict=True)]


class Sharded(Alone):
    """Rows of every matrix on every rank of a group, cut as ``Shard(0)`` does; each rank owns some matrices.

    Args:
        group: the ranks that together hold a matrix.
        replicas: groups over which the shards are replicated.
    """

    def __init__(self, group: dist.ProcessGroup, replicas: Sequence[dist.ProcessGroup] = ()) -> None:
        self.group, self.replicas = group, list(replicas)
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)

    def limit(self, device: torch.device) -> float:
        """No limit, so that there are two all-to-alls for a parameter shape."""
        return float("inf")

    def agree(self, number: int, device: torch.device) -> int:
        """The first rank's number; one broadcast in each dimension of the mesh."""
        return _first(number, device, [self.group, *self.replicas])

    def map(
        self,
        pieces: Sequence[Sequence[Tensor]],
        rows: Sequence[int],
        splits: Sequence[Split | None],
        fn: BlockFunction,
        like: Sequence[int],
    ) -> list[list[Tensor]]:
        """See ``Alone.map``; two all-to-alls, in which shards are padded to the size of the largest."""
        each = math.ceil(len(pieces) / self.world)
        columns = [tensor.size(1) for tensor in pieces[0]]
        received = self._swap(self._pack(pieces, rows, columns, each))
        owned = min(max(len(pieces) - self.rank * each, 0), each)
        wholes = [self._whole(received[:, i], rows, columns) for i in range(owned)]
        device = pieces[0][0].device
        results = by_blocks(wholes, splits, fn, like, super().limit(device)) if wholes else []
        del received, wholes
        back_rows, back_columns = [rows[i] for i in like], [columns[i] for i in like]
        sent = pieces[0][0].new_zeros(self.world, each, self._payload(back_rows, back_columns))
        for i, result in enumerate(results):
            for rank in range(self.world):
                parts = [self._rows_of(rank, tensor, n) for tensor, n in zip(result, back_rows, strict=True)]
                self._write(sent[rank, i], parts, back_rows, back_columns)
        returned = self._swap(sent).flatten(0, 1)
        heights = [pieces[0][i].size(0) for i in like]
        return [self._read(returned[i], back_rows, back_columns, heights) for i in range(len(pieces))]

    def _height(self, rows: int) -> int:
        return math.ceil(rows / self.world)

    def _payload(self, rows: Sequence[int], columns: Sequence[int]) -> int:
        return sum(self._height(n) * width for n, width in zip(rows, columns, strict=True))

    def _rows_of(self, rank: int, tensor: Tensor, rows: int) -> Tensor:
        height = self._height(rows)
        return tensor[min(rank * height, rows) : min((rank + 1) * height, rows)]

    def _pack(
        self, pieces: Sequence[Sequence[Tensor]], rows: Sequence[int], columns: Sequence[int], each: int
    ) -> Tensor:
        """This rank's shards, (owner, the owner's matrices, payload)."""
        packed = pieces[0][0].new_zeros(self.world * each, self._payload(rows, columns))
        for row, piece in zip(packed, pieces, strict=False):
            self._write(row, piece, rows, columns)
        return packed.unflatten(0, (self.world, each))

    def _write(self, row: Tensor, shards: Sequence[Tensor], rows: Sequence[int], columns: Sequence[int]) -> None:
        sizes = [self._height(n) * width for n, width in zip(rows, columns, strict=True)]
        for target, shard, width in zip(row.split(sizes), shards, columns, strict=True):
            target.view(-1, width)[: shard.size(0)].copy_(shard)

    def _read(self, row: Tensor, rows: Sequence[int], columns: Sequence[int], heights: Sequence[int]) -> list[Tensor]:
        sizes = [self._height(n) * width for n, width in zip(rows, columns, strict=True)]
        parts = zip(row.split(sizes), columns, heights, strict=True)
        return [part.view(-1, width)[:height] for part, width, height in parts]

    def _whole(self, shards: Tensor, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Matrices of one piece from its shards (rank, payload)."""
        sizes = [self._height(n) * width for n, width in zip(rows, columns, strict=True)]
        parts = zip(shards.split(sizes, 1), rows, columns, strict=True)
        # full shards come first and an empty one is all padding: the first rows are the matrix
        return [part.reshape(-1, width)[:n] for part, n, width in parts]

    def _swap(self, sent: Tensor) -> Tensor:
        received = torch.empty_like(sent)
        dist.all_to_all_single(received, sent, group=self.group)
        return received


def _first(number: int, device: torch.device, groups: Sequence[dist.ProcessGroup | None]) -> int:
    value = torch.tensor([number], device=device)
    for group in groups:
        dist.broadcast(value, dist.get_global_rank(group, 0) if group is not None else 0, group=group)
    return int(value)


def exchange_of(name: str, param: Tensor, share_work: bool) -> Alone:
    """How the ranks that hold a parameter work on it together.

    Args:
        name: of the parameter, for errors.
        param: a tensor or DTensor, a matrix or a stack of them.
        share_work: whether ranks with the same plain tensors are replicas that share the work.

    Raises:
        ValueError: the parameter is sharded otherwise than by rows over one dimension of its mesh.
    """
    if not isinstance(param, DTensor):
        together = share_work and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return Replicated() if together else Alone()
    mesh = param.device_mesh
    shards = [i for i, place in enumerate(param.placements) if not place.is_replicate() and mesh.size(i) > 1]
    everyone = [mesh.get_group(i) for i in range(mesh.ndim) if mesh.size(i) > 1]
    if not shards:
        return Alone(everyone)
    if len(shards) > 1 or type(param.placements[shards[0]]) is not Shard or not param.placements[shards[0]].is_shard(0):
        raise ValueError(
            f"Muon: parameter {name} has the placements {list(param.placements)}: expected Shard(0) in one dimension "
            "of the mesh and Replicate in the others, as FSDP2 and HSDP give"
        )
    if param.ndim == 3:
        return Alone(everyone)  # whole matrices of the stack lie on each rank
    others = [mesh.get_group(i) for i in range(mesh.ndim) if i not in shards and mesh.size(i) > 1]
    return Sharded(mesh.get_group(shards[0]), others)
