"""One parameter in one step of MoFO: its blocks, the scores of their coordinates, and the threshold of each block.

A sample is every d-th coordinate of a block from a random one on, with d odd and without a common factor with the
length of a row: a stride that divides it sees a few columns only, and then keeps 9 to 58% instead of 15% of a momentum
that has large columns. Positions are a function of seed, name, step and the block, whatever the shards.

Where rows are sharded, sampled scores are gathered, so that every rank sees the sample of the whole block; an exact
threshold is found digit by digit from histograms of the scores' bits. The number of collective calls does not depend
on the number of parameters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from lit_consistency.optimizers.core.rounding import seed_of
from lit_consistency.optimizers.filtering.compiled import Kind
from lit_consistency.optimizers.filtering.passes import Coefficients, Rule, indices, new_mean, new_square, score
from lit_consistency.optimizers.filtering.threshold import (
    EVERYWHERE,
    Threshold,
    chosen,
    cut_of_ties,
    number_kept,
    row_thresholds,
)
from lit_consistency.optimizers.groups import Split
from lit_consistency.optimizers.sharding.layout import Layout, gather_rows

# every 64th coordinate costs a quarter of a step; but not fewer coordinates than these
DENSEST, LEAST = 64, 4096
ROW = 2**17  # longer rows are not stacked: their thresholds are found one by one
DIGIT = 11  # bits for each round: histograms of 2048 counts, 3 rounds for float32 and 6 for float64


class Block(NamedTuple):
    """Coordinates of a parameter that share a threshold, a range of the flattened parameter, and a sample of them."""

    begin: int
    end: int
    first: int  # first sampled coordinate
    stride: int
    n_sampled: int

    @property
    def numel(self) -> int:
        """Number of coordinates."""
        return self.end - self.begin

    def sampled_before(self, index: int) -> int:
        """Number of sampled coordinates before an index of the flattened parameter."""
        return min(self.n_sampled, max(0, -(-(index - self.first) // self.stride)))


def blocks_of(
    shape: Sequence[int], split: Split | None, sample_size: int | None, seed: int, name: str, step: int
) -> list[Block]:
    """The blocks of a parameter as flat ranges, in their order.

    Args:
        shape: of the whole parameter; with three dimensions it is a stack of matrices, each with blocks of its own.
        split: rows of each block of a matrix, or None for one block.
        sample_size: how many coordinates of each block are sampled, at most twice that; None for all.
        seed: of the first coordinate that is sampled, with ``name`` and ``step``.
        name: of the parameter.
        step: number of steps, this one included.
    """
    columns, matrices = shape[-1], shape[0] if len(shape) == 3 else 1
    rows = list(split) if split and len(shape) > 1 else [math.prod(shape) // matrices // columns]
    blocks, begin = [], 0
    for block_rows in rows * matrices:
        end = begin + block_rows * columns
        blocks.append(_block(begin, end, columns, sample_size, f"{name}/{begin}", seed, step))
        begin = end
    return blocks


def _block(begin: int, end: int, columns: int, sample_size: int | None, name: str, seed: int, step: int) -> Block:
    numel, stride = end - begin, 1
    if sample_size is not None and numel > sample_size:
        stride = max(numel // sample_size, min(DENSEST, numel // LEAST))
    if stride <= 1:
        return Block(begin, end, begin, 1, numel)
    while stride % 2 == 0 or math.gcd(stride, columns) > 1:
        stride += 1
    n_sampled = numel // stride
    first = begin + seed_of(seed, name, step) % (numel - (n_sampled - 1) * stride)
    return Block(begin, end, first, stride, n_sampled)


@dataclass
class ParameterStep:
    """One parameter in one step; its tensors are flat and hold what lies on this rank.

    Thresholds are put in, then the parameter moves; after that, and until the means change, ``selected`` makes the
    same choice again, so that a step need not keep a mask.
    """

    param: Tensor | None  # this and the gradient are None once the step is over, see `release`
    grad: Tensor | None
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor  # counter, float32 of shape ()
    coefficients: Tensor  # (7,), see `Coefficients`
    by: Coefficients  # the same one by one
    key: Tensor  # of the random filter; of another filter it is any
    rule: Rule
    fraction: float
    layout: Layout
    blocks: list[Block]
    mask: Tensor | None = None  # where a choice is kept for later steps
    chooses: bool = True  # whether a choice is made in this step
    thresholds: list[Threshold] = field(default_factory=list)  # of the blocks
    means_updated: bool = False  # whether the means hold this step's gradient

    def tensors(self, where: slice | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Parameter, gradient and both means, all or at local coordinates, until they are released."""
        assert self.param is not None
        assert self.grad is not None
        if where is None:
            return self.param, self.grad, self.exp_avg, self.exp_avg_sq
        return self.param[where], self.grad[where], self.exp_avg[where], self.exp_avg_sq[where]

    @cached_property
    def kind(self) -> Kind:
        """The kind of compiled program that moves the parameter."""
        param, grad, mean, _ = self.tensors()
        # on a CPU a second call is cheaper than comparing indices, see apply._run_on_block
        rule = self.rule._replace(indexed=param.device.type != "cpu")
        return Kind(param.device, param.dtype, grad.dtype, mean.dtype, rule)

    def release(self) -> None:
        """Let go of gradient and values, which nobody would free as long as the choice can be asked for."""
        self.param = self.grad = None

    def local_range(self, block: Block) -> tuple[int, int]:
        """Where the block lies in the local tensors; empty where it lies on other ranks."""
        begin = max(block.begin, self.layout.begin)
        return begin - self.layout.begin, max(begin, min(block.end, self.layout.end)) - self.layout.begin

    def offset(self, begin: int) -> Tensor:
        """Index in the parameter of a local coordinate, int64 of shape ()."""
        return torch.tensor(self.layout.begin + begin).to(self.exp_avg.device, non_blocking=True)

    def sample_scores(self, block: Block) -> Tensor:
        """Scores of the block's sampled coordinates on this rank, with this step's gradient."""
        begin, end = self.local_range(block)
        start = self.layout.begin
        first = block.first + block.sampled_before(begin + start) * block.stride - start
        stop = min(end, block.first + (block.n_sampled - 1) * block.stride + 1 - start)
        return self.scores(slice(first, max(first, stop), block.stride))

    def block_scores(self, block: Block) -> Tensor:
        """Scores of all of the block's coordinates on this rank, with this step's gradient."""
        return self.scores(slice(*self.local_range(block), 1))

    def scores(self, where: slice) -> Tensor:
        """Scores at local coordinates, with this step's gradient."""
        rule, by = self.rule, self.by
        mean = _copied(self.exp_avg, where)
        grad = _copied(self.grad, where) if self.grad is not None else None
        square = _copied(self.exp_avg_sq, where) if rule.reads_square else mean
        if not self.means_updated:
            assert grad is not None
            square = new_square(grad, square, by) if rule.reads_square else square
            mean = new_mean(grad, mean, by)
        index = self.key
        if rule.filter == "random":
            index = torch.arange(mean.shape[0], device=mean.device) * where.step + self.offset(where.start)
        return score(rule.filter, grad, mean, square, by, index, self.key)

    def selected(self, block: Block, threshold: Threshold) -> Tensor:
        """Mask of the block's local coordinates that move, once the means are updated."""
        scores, smallest = self.block_scores(block), self.rule.smallest
        # without a tie to break no index is compared; asked on a CPU only, another device would have to be waited for
        if scores.device.type == "cpu" and int(threshold.cut) in (0, EVERYWHERE) and not smallest:
            return scores >= threshold.low if int(threshold.cut) else scores > threshold.high
        index = indices(scores, self.offset(self.local_range(block)[0]))
        return chosen(scores, index, threshold, smallest)


def _copied(tensor: Tensor, where: slice) -> Tensor:
    """Numbers at a distance side by side: each costs a cache line, once if it is copied first."""
    if where.step == 1 or tensor.device.type != "cpu" or tensor.dtype not in (torch.float32, torch.float64):
        return tensor[where].contiguous()
    # NumPy, which knows no bfloat16, waits for memory a third less
    return torch.from_numpy(tensor.numpy()[where].copy())


# -------------------- thresholds


def sampled_thresholds(steps: Sequence[ParameterStep]) -> None:
    """Put the threshold of every block into the steps, from samples, with at most one all-gather.

    Where all of a block is sampled, its threshold is exact. The steps have one layout's group and one dtype.
    """
    smallest, group = steps[0].rule.smallest, steps[0].layout.group
    flat = [(step, block) for step in steps for block in step.blocks]
    gathered: list[Tensor] = []
    if group is not None:
        counts = [
            [
                block.sampled_before(end) - block.sampled_before(begin)
                for begin, end in zip(bounds, bounds[1:], strict=False)
            ]
            for step, block in flat
            for bounds in [step.layout.bounds]
        ]
        gathered = gather_rows([step.sample_scores(block) for step, block in flat], counts, group)
    # rows of one length that keep the same number are stacked
    alike: defaultdict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for i, (step, block) in enumerate(flat):
        alike[block.n_sampled, number_kept(step.fraction, block.n_sampled), step.means_updated].append(i)
    thresholds: dict[int, Threshold] = {}
    for (count, kept, means_updated), numbers in alike.items():
        at_once = len(numbers) if count <= ROW else 1
        for start in range(0, len(numbers), at_once):
            some = numbers[start : start + at_once]
            rows = torch.stack([gathered[i] if gathered else flat[i][0].sample_scores(flat[i][1]) for i in some])
            low, high, cut = row_thresholds(rows, kept, smallest)
            # a compiler may round the means of the sample and of the pass differently in the last bits
            margin = 0 if means_updated else low.abs() * (4 * torch.finfo(low.dtype).eps)
            index = _column_to_index(cut, [flat[i][1] for i in some])
            thresholds |= zip(some, Threshold(low - margin, high + margin, index).rows(), strict=True)
    for i, (step, _) in enumerate(flat):
        step.thresholds.append(thresholds[i])


def _column_to_index(cut: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Columns of rows of sampled coordinates as indices in the parameter; a cut that is no column stays."""
    columns = torch.tensor([(block.first, block.stride) for block in blocks]).to(cut.device, non_blocking=True)
    inside = (cut > 0) & (cut <= blocks[0].n_sampled)
    # a column after the last one chosen becomes the index after it
    return torch.where(inside, columns[:, 0] + (cut - 1) * columns[:, 1] + 1, cut)


def sharded_exact_thresholds(steps: Sequence[ParameterStep]) -> None:
    """Put thresholds of exactly K coordinates of every block into the steps, over all ranks of one process group.

    Each scores its local coordinates several times, so that not all scores are in memory at once.
    """
    flat = [(step, block) for step in steps for block in step.blocks]
    smallest, group = steps[0].rule.smallest, steps[0].layout.group
    kth, missing = _kth_over_ranks(flat, smallest, group)
    ties = [step.block_scores(block) == number for (step, block), number in zip(flat, kth, strict=True)]
    n_ties = torch.stack([tie.count_nonzero() for tie in ties])
    counts = n_ties.new_empty(dist.get_world_size(group) * len(ties))
    dist.all_gather_into_tensor(counts, n_ties, group=group)
    counts, rank = counts.view(-1, len(ties)), dist.get_rank(group)
    # ranks that come before this one, in the order in which ties are taken, take theirs first
    taken_before = counts[rank + 1 :].sum(0) if smallest else counts[:rank].sum(0)
    takes = torch.minimum((missing - taken_before).clamp(min=0), n_ties)
    for i, (step, block) in enumerate(flat):
        nothing = torch.full_like(takes[i], EVERYWHERE if smallest else 0)
        cut = nothing
        if ties[i].numel():
            column = cut_of_ties(ties[i][None], takes[i][None], n_ties[i][None], smallest)[0]
            cut = column + step.layout.begin + step.local_range(block)[0]
        step.thresholds.append(Threshold(kth[i], kth[i], torch.where(takes[i] > 0, cut, nothing)))


def _kth_over_ranks(flat: Sequence[tuple[ParameterStep, Block]], smallest: bool, group: Any) -> tuple[Tensor, Tensor]:
    """The K-th score of each block over all ranks, and how many scores equal to it are among the K; (blocks,) each."""
    dtype, device = flat[0][0].exp_avg.dtype, flat[0][0].exp_avg.device
    integer, bits = (torch.int64, 63) if dtype == torch.float64 else (torch.int32, 31)
    kept = torch.tensor([number_kept(step.fraction, block.numel) for step, block in flat]).to(device)
    prefixes = torch.zeros_like(kept)
    for shift in (DIGIT * i for i in reversed(range(-(-bits // DIGIT)))):
        counts = torch.zeros(len(flat), 2**DIGIT, dtype=torch.int64, device=device)
        for (step, block), prefix, row in zip(flat, prefixes, counts, strict=True):
            # bits of floats that are at least 0 are in the floats' order, NaN after infinity
            word = step.block_scores(block).abs().view(integer).to(torch.int64)
            # the first digit follows nothing, and a shift by 64 or more is not defined
            follows = (word >> (shift + DIGIT)) == prefix if shift + DIGIT < bits else torch.ones_like(word) == 1
            row.scatter_add_(0, (word >> shift) & (2**DIGIT - 1), follows.to(torch.int64))
        dist.all_reduce(counts, group=group)
        ordered = counts if smallest else counts.flip(1)
        reached = ordered.cumsum(1)
        digit = (reached < kept[:, None]).sum(1)
        kept = kept - (reached - ordered).gather(1, digit[:, None])[:, 0]
        prefixes = (prefixes << DIGIT) | (digit if smallest else 2**DIGIT - 1 - digit)
    return prefixes.to(integer).view(dtype), kept
