"""How ranks that hold the same matrices, or rows of them, work on them together.

A function of whole matrices is called in three steps: ``gather`` the matrices that this rank works on, call what
``share`` makes of the function, ``scatter`` the results to the ranks that hold the parameters. Where matrices are whole
and nobody shares the work nothing is sent (``Local``); where all ranks hold the same ones each takes a part of every
stack, with one all-gather for a stack (``DataParallel``: DDP); where each rank holds some rows, each gathers a part of
the matrices with one all-to-all and sends the results back with another (``RowSharded``: FSDP2). In HSDP the ranks that
hold the same rows in other replicas have gathered the same matrices: they share them as replicas of DDP do.

Messages are begun here and waited for by whoever needs what they bring, so that others compute meanwhile
(``overlap.py``). Given up: a matrix sharded by columns or over two dimensions is refused.

Source: the owner's scheme of microsoft/dion, dion/megabatch_base.py; rows of a shard, torch.distributed.tensor.Shard,
which cuts as ``torch.chunk`` does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Shard

from lit_consistency.optimizers.sharding.overlap import Arrival, StartedFunction, arrived

# A parameter with its companions, such as a buffer of one number per row: what lies on this rank of each.
Piece = Sequence[Tensor]
# From stacked inputs, (batch, rows, columns) each, to stacked outputs; a pure function, matrix by matrix.
BlockFunction = Callable[[list[Tensor]], list[Tensor]]


class Exchange(ABC):
    """One way of working on matrices together. All ranks call its methods alike.

    Attributes:
        gathers: whether ``gather`` and ``scatter`` send anything.
        sharers: number of ranks among which ``share`` shares a stack out, and sends the results.
        ranks: number of ranks among which matrices of one shape are shared out in all.
    """

    gathers: bool = False
    sharers: int = 1
    ranks: int = 1

    @abstractmethod
    def gather(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Arrival[Sequence[Piece]]:
        """Whole matrices of the pieces that this rank works on.

        Args:
            pieces: in the same order on every rank, and of one shape and dtype, but for ``rows``.
            rows: of each tensor of a piece when whole.
        """

    @abstractmethod
    def share(self, function: BlockFunction, like: Sequence[int]) -> StartedFunction:
        """The function, with the stacks that are given to it shared out over the ranks.

        Args:
            function: to call.
            like: for each output the input whose shape it has.
        """

    @abstractmethod
    def scatter(
        self, results: Sequence[Piece], pieces: Sequence[Piece], rows: Sequence[int], like: Sequence[int]
    ) -> Arrival[Sequence[Piece]]:
        """For each piece its outputs, what lies on this rank of each.

        Args:
            results: outputs of each piece of ``gather``, whole.
            pieces: see ``gather``.
            rows: see ``gather``.
            like: see ``share``.
        """


class Local(Exchange):
    """Whole matrices, all of them worked on here."""

    def gather(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Arrival[Sequence[Piece]]:
        """The pieces."""
        return arrived(pieces)

    def share(self, function: BlockFunction, like: Sequence[int]) -> StartedFunction:
        """The function."""
        return lambda stacks: arrived(function(stacks))

    def scatter(
        self, results: Sequence[Piece], pieces: Sequence[Piece], rows: Sequence[int], like: Sequence[int]
    ) -> Arrival[Sequence[Piece]]:
        """The results."""
        return arrived(results)


class DataParallel(Local):
    """The same matrices on every rank of a group; each works on a part of every stack.

    Args:
        group: the ranks; all of them when not given.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.sharers = self.ranks = self.world

    def share(self, function: BlockFunction, like: Sequence[int]) -> StartedFunction:
        """See ``Exchange.share``; one all-gather for each stack, and the same bits on every rank."""
        return lambda stacks: self._all_gather(stacks, function, like)

    def _all_gather(self, stacks: list[Tensor], function: BlockFunction, like: Sequence[int]) -> Arrival[list[Tensor]]:
        batch = stacks[0].size(0)
        each = math.ceil(batch / self.world)
        start, end = min(self.rank * each, batch), min((self.rank + 1) * each, batch)
        shapes = [stacks[i].shape[1:] for i in like]
        sizes = [shape.numel() for shape in shapes]
        mine = stacks[0].new_zeros(each, sum(sizes))
        if end > start:
            results = function([stack[start:end] for stack in stacks])
            for target, result in zip(mine[: end - start].split(sizes, 1), results, strict=True):
                target.copy_(result.reshape(end - start, -1))
        everything = mine.new_empty(self.world * each, sum(sizes))
        # named all_gather_single from torch 2.13, where the old name warns
        all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)
        message = all_gather(everything, mine, group=self.group, async_op=True)

        def wait() -> list[Tensor]:
            message.wait()
            columns = everything[:batch].split(sizes, 1)
            return [column.reshape(batch, *shape) for column, shape in zip(columns, shapes, strict=True)]

        return wait


class RowSharded(Exchange):
    """Rows of every matrix on every rank of a group, cut as ``Shard(0)`` does; each rank owns some matrices.

    Shards are padded to the size of the largest, so that every message has one size.

    Args:
        group: the ranks that together hold a matrix.
        replicas: how the ranks that hold the same rows share what they own; each does all of it when not given.
    """

    gathers = True

    def __init__(self, group: dist.ProcessGroup, replicas: DataParallel | None = None) -> None:
        self.group = group
        self.world, self.rank = dist.get_world_size(group), dist.get_rank(group)
        self.replicas = replicas or Local()
        self.sharers = self.replicas.sharers
        self.ranks = self.world * self.sharers

    def gather(self, pieces: Sequence[Piece], rows: Sequence[int]) -> Arrival[Sequence[Piece]]:
        """The matrices that this rank owns; one all-to-all."""
        each = math.ceil(len(pieces) / self.world)
        columns = [tensor.size(1) for tensor in pieces[0]]
        # this rank's shards: (owner, the owner's matrices, payload)
        sent = pieces[0][0].new_zeros(self.world * each, sum(self._sizes(rows, columns)))
        for message, piece in zip(sent, pieces, strict=False):
            self._write(message, piece, rows, columns)
        owned = min(max(len(pieces) - self.rank * each, 0), each)
        wait_for_shards = self._all_to_all(sent.unflatten(0, (self.world, each)))

        def wait() -> Sequence[Piece]:
            received = wait_for_shards()
            return [self._full_matrices(received[:, i], rows, columns) for i in range(owned)]

        return wait

    def share(self, function: BlockFunction, like: Sequence[int]) -> StartedFunction:
        """The function: each rank calls it on what it owns, or on its part of that where there are replicas."""
        return self.replicas.share(function, like)

    def scatter(
        self, results: Sequence[Piece], pieces: Sequence[Piece], rows: Sequence[int], like: Sequence[int]
    ) -> Arrival[Sequence[Piece]]:
        """See ``Exchange.scatter``; one all-to-all."""
        each = math.ceil(len(pieces) / self.world)
        rows, columns = [rows[i] for i in like], [pieces[0][i].size(1) for i in like]
        sizes = self._sizes(rows, columns)
        sent = pieces[0][0].new_zeros(self.world, each, sum(sizes))
        for i, result in enumerate(results):
            for rank in range(self.world):
                shards = [self._rows_of(rank, tensor, n) for tensor, n in zip(result, rows, strict=True)]
                self._write(sent[rank, i], shards, rows, columns)
        heights, n_pieces = [pieces[0][i].size(0) for i in like], len(pieces)
        wait_for_rows = self._all_to_all(sent)

        def wait() -> Sequence[Piece]:
            return [
                [part.view(-1, n)[:height] for part, n, height in zip(row.split(sizes), columns, heights, strict=True)]
                for row in wait_for_rows().flatten(0, 1)[:n_pieces]
            ]

        return wait

    def _height(self, rows: int) -> int:
        return math.ceil(rows / self.world)

    def _sizes(self, rows: Sequence[int], columns: Sequence[int]) -> list[int]:
        """Elements of the largest shard of each tensor of a piece."""
        return [self._height(n) * width for n, width in zip(rows, columns, strict=True)]

    def _rows_of(self, rank: int, tensor: Tensor, rows: int) -> Tensor:
        height = self._height(rows)
        return tensor[min(rank * height, rows) : min((rank + 1) * height, rows)]

    def _write(self, message: Tensor, shards: Piece, rows: Sequence[int], columns: Sequence[int]) -> None:
        for target, shard, width in zip(message.split(self._sizes(rows, columns)), shards, columns, strict=True):
            target.view(-1, width)[: shard.size(0)].copy_(shard)

    def _full_matrices(self, shards: Tensor, rows: Sequence[int], columns: Sequence[int]) -> list[Tensor]:
        """Matrices of one piece from its shards (rank, payload)."""
        columns_of_shards = shards.split(self._sizes(rows, columns), 1)
        # full shards come first and an empty one is all padding: the first rows are the matrix
        return [shard.reshape(-1, width)[:n] for shard, n, width in zip(columns_of_shards, rows, columns, strict=True)]

    def _all_to_all(self, sent: Tensor) -> Arrival[Tensor]:
        received = torch.empty_like(sent)
        message = dist.all_to_all_single(received, sent, group=self.group, async_op=True)

        def wait() -> Tensor:
            message.wait()
            return received

        return wait


def exchange_of(name: str, param: Tensor, share_work: bool) -> Exchange:
    """How the ranks that hold a parameter work on it together.

    Args:
        name: of the parameter, for errors.
        param: a tensor or DTensor, a matrix or a stack of them.
        share_work: whether ranks with the same tensors, or the same shards of them, are replicas that share the work.

    Raises:
        ValueError: the parameter is sharded otherwise than by rows over one dimension of its mesh.
    """
    if not isinstance(param, DTensor):
        together = share_work and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        return DataParallel() if together else Local()
    mesh = param.device_mesh
    several = [i for i in range(mesh.ndim) if mesh.size(i) > 1]
    sharded = [i for i in several if not param.placements[i].is_replicate()]
    same = [i for i in several if i not in sharded]
    # replicas over two dimensions of a mesh would be a group of their own: each does all of the work then
    replicas = DataParallel(mesh.get_group(same[0])) if share_work and len(same) == 1 else None
    if not sharded:
        return replicas or Local()
    placement = param.placements[sharded[0]]
    # a strided shard is a subclass, and holds other rows
    if len(sharded) > 1 or type(placement) is not Shard or not placement.is_shard(0):
        raise ValueError(
            f"Muon: parameter {name} has the placements {list(param.placements)}: expected Shard(0) in one dimension "
            "of the mesh and Replicate in the others, as FSDP2 and HSDP give"
        )
    # of a stack of matrices each rank has some whole ones
    return (replicas or Local()) if param.ndim == 3 else RowSharded(mesh.get_group(sharded[0]), replicas)
