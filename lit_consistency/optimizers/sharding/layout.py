"""Where the rows of a sharded parameter lie, and what ranks must tell each other to agree on a threshold.

A parameter that is sharded by rows (FSDP2's ``Shard(0)``, with HSDP's ``Replicate()`` beside it) is a flat range of
coordinates on every rank. Sampled scores are gathered, so that every rank sees the sample of the whole block; an exact
threshold is found digit by digit from histograms of the scores' bits. The number of collectives does not depend on the
number of parameters. Given up: shards by columns, and rows over more than one dimension of the mesh.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate, Shard

from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, Threshold, place_of

DIGIT = 11  # bits for each round: histograms of 2048 counts, 3 rounds for float32 and 6 for float64


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


def exact_thresholds(
    scores: Sequence[Callable[[], Tensor]], offsets: Sequence[int], kept: Sequence[int], smallest: bool, group: Any
) -> list[Threshold]:
    """Thresholds of exactly K coordinates of each block, whose scores lie on several ranks.

    Args:
        scores: of each block, makes the scores on this rank, (n,), all of one dtype and at least 0; n may be 0.
        offsets: of each block, index of its first score on this rank.
        kept: of each block, K.
        smallest: choose the smallest, and of equal ones those with the last index.
        group: process group.

    Returns:
        Of each block, a threshold of shape () for the indices on this rank.
    """
    kth, missing = _radix(scores, torch.tensor(kept), smallest, group)
    ties = [make() == number for make, number in zip(scores, kth, strict=True)]
    found = torch.stack([tie.count_nonzero() for tie in ties])
    counts = found.new_empty(dist.get_world_size(group) * len(ties))
    dist.all_gather_into_tensor(counts, found, group=group)
    counts, rank = counts.view(-1, len(ties)), dist.get_rank(group)
    served = counts[rank + 1 :].sum(0) if smallest else counts[:rank].sum(0)
    takes = torch.minimum((missing - served).clamp(min=0), found)
    cuts = []
    for tie, take, number, offset in zip(ties, takes, found, offsets, strict=True):
        nothing = torch.full_like(take, EVERYWHERE if smallest else 0)
        place = place_of(tie[None], take[None], number[None], smallest)[0] + offset if tie.numel() else nothing
        cuts.append(torch.where(take > 0, place, nothing))
    return [Threshold(number, number, cut) for number, cut in zip(kth, cuts, strict=True)]


def _radix(
    scores: Sequence[Callable[[], Tensor]], kept: Tensor, smallest: bool, group: Any
) -> tuple[list[Tensor], Tensor]:
    """The K-th score of each block over all ranks, and how many scores equal to it are among the K."""
    first = scores[0]()
    kept = kept.to(first.device)
    integer, bits = (torch.int64, 63) if first.dtype == torch.float64 else (torch.int32, 31)
    prefixes = torch.zeros_like(kept)
    rounds = -(-bits // DIGIT)
    for shift in (DIGIT * i for i in reversed(range(rounds))):
        counts = torch.zeros(len(scores), 2**DIGIT, dtype=torch.int64, device=first.device)
        for make, prefix, row in zip(scores, prefixes, counts, strict=True):
            # bits of floats that are at least 0 are in the floats' order, NaN after infinity
            word = make().abs().view(integer).to(torch.int64)
            # the first digit follows nothing, and a shift by 64 or more is not defined
            follows = (word >> (shift + DIGIT)) == prefix if shift + DIGIT < bits else torch.ones_like(word) == 1
            row.scatter_add_(0, (word >> shift) & (2**DIGIT - 1), follows.to(torch.int64))
        dist.all_reduce(counts, group=group)
        ordered = counts if smallest else counts.flip(1)
        reached = ordered.cumsum(1)
        digit = (reached < kept[:, None]).sum(1)
        kept = kept - (reached - ordered).gather(1, digit[:, None])[:, 0]
        prefixes = (prefixes << DIGIT) | (digit if smallest else 2**DIGIT - 1 - digit)
    return list(prefixes.to(integer).view(first.dtype).unbind()), kept


def sum_over(totals: Tensor, groups: Sequence[Any]) -> Tensor:
    """Rows of ``totals`` summed over the ranks of their process group; rows whose group is None as they are."""
    for group in {id(group): group for group in groups if group is not None}.values():
        of_group = torch.tensor([other is group for other in groups], device=totals.device)
        part = totals * of_group[:, None]
        dist.all_reduce(part, group=group)
        totals = torch.where(of_group[:, None], part, totals)
    return totals
