"""What MoFO does with one parameter: its blocks, the sample of each, and the thresholds of many.

A sample is every d-th coordinate of a block from a random one on, with d odd and without a common factor with the
length of a row: a stride that divides it sees a few columns only, and then keeps 9 to 58% instead of 15% of a momentum
that has large columns. Positions are a function of seed, name, step and the block, whatever the shards.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lit_consistency.optimizers.core.rounding import seed_of
from lit_consistency.optimizers.filtering.passes import Rule, new_mean, new_square, number_kept, places, score
from lit_consistency.optimizers.filtering.threshold import EVERYWHERE, Threshold, chosen, row_thresholds
from lit_consistency.optimizers.groups import Split
from lit_consistency.optimizers.sharding.layout import Layout, exact_thresholds, gather_rows

DENSEST, LEAST = 64, 4096  # every 64th coordinate costs a quarter of a step; but not fewer coordinates than these
ROW = 2**17  # longer rows are not stacked: their thresholds are found one by one


class Block(NamedTuple):
    """Coordinates of a parameter that share a threshold, a flat range, and those of them that are looked at."""

    begin: int
    end: int
    first: int  # the first that is looked at
    stride: int
    number: int

    def before(self, place: int) -> int:
        """How many of those that are looked at come before a coordinate of the parameter."""
        return min(self.number, max(0, -(-(place - self.first) // self.stride)))


@dataclass
class Work:
    """One parameter in one step; tensors are flat and hold what lies on this rank."""

    name: str
    param: Tensor
    grad: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor
    step: Tensor  # counter, float32 of shape ()
    numbers: Tensor  # of `coefficients`
    key: Tensor  # of the random filter
    rule: Rule
    fraction: float
    layout: Layout
    blocks: list[Block]
    mask: Tensor | None = None  # where a choice is kept for later steps
    choose: bool = True  # whether one is made in this step
    thresholds: list[Threshold] = field(default_factory=list)  # of the blocks
    moved: bool = False  # whether the means hold this step's gradient

    def span(self, block: Block) -> tuple[int, int]:
        """Where the block lies in the local tensors; empty where it lies on other ranks."""
        begin = max(block.begin, self.layout.begin)
        return begin - self.layout.begin, max(begin, min(block.end, self.layout.end)) - self.layout.begin

    def offset(self, begin: int) -> Tensor:
        """Index in the parameter of a local coordinate, int64 of shape ()."""
        return torch.tensor(self.layout.begin + begin).to(self.param.device, non_blocking=True)

    def scores(self, block: Block, whole: bool = False) -> Tensor:
        """Scores of the block's local coordinates that are looked at, or of all, with this step's gradient."""
        begin, end = self.span(block)
        stride = 1
        if not whole:
            begin = block.first + block.before(begin + self.layout.begin) * block.stride - self.layout.begin
            end = min(end, block.first + (block.number - 1) * block.stride + 1 - self.layout.begin)
            stride = block.stride
        part = slice(begin, max(begin, end), stride)
        # each number of a sample costs a cache line, once if it is copied first
        grad, mean = self.grad[part].contiguous(), self.exp_avg[part].contiguous()
        square = self.exp_avg_sq[part].contiguous() if self.rule.reads_square else mean
        if not self.moved:
            square = new_square(grad, square, self.numbers) if self.rule.reads_square else mean
            mean = new_mean(grad, mean, self.numbers)
        index = self.offset(0)
        if self.rule.filter == "random":
            index = places(grad, index) * stride - (self.layout.begin * (stride - 1)) + part.start
        return score(self.rule.filter, grad, mean, square, self.numbers, index, self.key)

    def selected(self, block: Block, threshold: Threshold) -> Tensor:
        """Mask of the block's local coordinates, whose means have moved."""
        scores, smallest = self.scores(block, whole=True), self.rule.smallest
        # without a tie to break no index is compared; asked on a CPU only, another device would have to be waited for
        if scores.device.type == "cpu" and int(threshold.cut) in (0, EVERYWHERE) and not smallest:
            return scores >= threshold.low if int(threshold.cut) else scores > threshold.high
        return chosen(scores, places(scores, self.offset(self.span(block)[0])), threshold, smallest)


def blocks_of(
    shape: Sequence[int], split: Split | None, sample_size: int | None, seed: int, name: str, step: int
) -> list[Block]:
    """The blocks of a parameter as flat ranges, in their order.

    Args:
        shape: of the whole parameter; with three dimensions it is a stack of matrices, each with blocks of its own.
        split: rows of each block of a matrix, or None for one block.
        sample_size: how many coordinates of each block are looked at, at most twice that; None for all.
        seed: of the first coordinate that is looked at, with ``name`` and ``step``.
        name: of the parameter.
        step: number of steps, this one included.
    """
    columns = shape[-1]
    rows = list(split) if split and len(shape) > 1 else [math.prod(shape[1 if len(shape) == 3 else 0 :]) // columns]
    blocks, begin = [], 0
    for matrix_rows in rows * (shape[0] if len(shape) == 3 else 1):
        end = begin + matrix_rows * columns
        blocks.append(_block(begin, end, columns, sample_size, f"{name}/{begin}", seed, step))
        begin = end
    return blocks


def _block(begin: int, end: int, columns: int, sample_size: int | None, name: str, seed: int, step: int) -> Block:
    numel = end - begin
    stride = (
        1 if sample_size is None or numel <= sample_size else max(numel // sample_size, min(DENSEST, numel // LEAST))
    )
    if stride <= 1:
        return Block(begin, end, begin, 1, numel)
    while stride % 2 == 0 or math.gcd(stride, columns) > 1:
        stride += 1
    count = numel // stride
    return Block(begin, end, begin + seed_of(seed, name, step) % (numel - (count - 1) * stride), stride, count)


def sampled_thresholds(works: Sequence[Work]) -> None:
    """Put thresholds of every block into the works, from what is looked at, with at most one all-gather.

    Where all of a block is looked at, its threshold is exact. The works have one layout's group and one dtype.
    """
    smallest, group = works[0].rule.smallest, works[0].layout.group
    flat = [(work, block) for work in works for block in work.blocks]
    rows: list[Tensor] = []
    if group is not None:
        counts = [
            [block.before(end) - block.before(begin) for begin, end in zip(bounds, bounds[1:], strict=False)]
            for work, block in flat
            for bounds in [work.layout.bounds]
        ]
        rows = gather_rows([work.scores(block) for work, block in flat], counts, group)
    alike: defaultdict[tuple[int, int, bool], list[int]] = defaultdict(list)
    for i, (work, block) in enumerate(flat):
        alike[block.number, number_kept(work.fraction, block.number), work.moved].append(i)
    found: dict[int, Threshold] = {}
    for (count, kept, moved), numbers in alike.items():
        step = len(numbers) if count <= ROW else 1
        for start in range(0, len(numbers), step):
            some = numbers[start : start + step]
            matrix = torch.stack([rows[i] if rows else flat[i][0].scores(flat[i][1]) for i in some])
            low, high, cut = row_thresholds(matrix, kept, smallest)
            # a compiler may round the moments of the sample and of the pass differently in the last bits
            margin = 0 if moved else low.abs() * (4 * torch.finfo(low.dtype).eps)
            cut = _to_index(cut, [flat[i][1] for i in some])
            found |= zip(some, Threshold(low - margin, high + margin, cut).rows(), strict=True)
    for i, (work, _) in enumerate(flat):
        work.thresholds.append(found[i])


def _to_index(cut: Tensor, blocks: Sequence[Block]) -> Tensor:
    """Columns of rows of looked-at coordinates as indices in the parameter; what is no column stays."""
    where = torch.tensor([(block.first, block.stride) for block in blocks]).to(cut.device, non_blocking=True)
    inside = (cut > 0) & (cut <= blocks[0].number)
    # a column after the last one chosen becomes the index after it
    return torch.where(inside, where[:, 0] + (cut - 1) * where[:, 1] + 1, cut)


def sharded_exact_thresholds(works: Sequence[Work]) -> None:
    """Put thresholds of exactly K coordinates of every block into the works, over all ranks of one group."""
    flat = [(work, block) for work in works for block in work.blocks]
    found = exact_thresholds(
        [lambda work=work, block=block: work.scores(block, whole=True) for work, block in flat],  # type: ignore[misc]
        [work.layout.begin + work.span(block)[0] for work, block in flat],
        [number_kept(work.fraction, block.end - block.begin) for work, block in flat],
        works[0].rule.smallest,
        works[0].layout.group,
    )
    for (work, _), threshold in zip(flat, found, strict=True):
        work.thresholds.append(threshold)
