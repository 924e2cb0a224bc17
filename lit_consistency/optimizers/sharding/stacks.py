"""Blocks of equal shape, of one parameter or of many, in stacks that one call works on.

A parameter's blocks are rows of it, so that a stack of equal ones is a view; stacks of several parameters are copies.
A parameter may come with companions whose blocks go with its own: a buffer of one number per row, the other factor of
a LoRA pair. Given up: blocks of different shapes in one stack, padded.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from lit_consistency.optimizers.groups import Split

# From stacked inputs, (batch, rows, columns) each, to stacked outputs.
BlockFunction = Callable[[list[Tensor]], list[Tensor]]


def runs(tensors: Sequence[Tensor], splits: Sequence[Split | None]) -> list[list[Tensor]]:
    """Views of consecutive blocks of equal shape.

    Args:
        tensors: a parameter and its companions, (rows, columns) each, or all stacks of such.
        splits: rows of each block for each of them, or None for one block; all have the same number of blocks.

    Returns:
        For each run of blocks, the views (blocks, rows of a block, columns) of each tensor.
    """
    if tensors[0].ndim == 3:
        if all(split is None for split in splits):
            return [list(tensors)]
        return [run for matrices in zip(*tensors, strict=True) for run in runs(matrices, splits)]
    sizes = zip(*(split or (tensor.size(0),) for tensor, split in zip(tensors, splits, strict=True)), strict=True)
    found, starts = [], [0] * len(tensors)
    for rows, same in groupby(sizes):
        count = len(list(same))
        found.append(
            [t.narrow(0, s, count * n).unflatten(0, (count, n)) for t, s, n in zip(tensors, starts, rows, strict=True)]
        )
        starts = [start + count * n for start, n in zip(starts, rows, strict=True)]
    return found


def by_blocks(
    pieces: Sequence[Sequence[Tensor]],
    splits: Sequence[Split | None],
    fn: BlockFunction,
    like: Sequence[int],
    limit: float = float("inf"),
) -> list[list[Tensor]]:
    """Call ``fn`` on stacks of the pieces' blocks and put what it gives together again.

    Args:
        pieces: parameters, each with its companions.
        splits: of each piece's tensors; see ``runs``.
        fn: on stacks of blocks.
        like: for each output of ``fn``, the input that it has the shape of.
        limit: elements in a stack of several runs, at most.

    Returns:
        For each piece the outputs, of the shapes of its inputs ``like``.
    """
    outputs: list[list[Tensor]] = [[] for _ in pieces]
    found: defaultdict[tuple[torch.Size, ...], list[_Run]] = defaultdict(list)
    for place, piece in enumerate(pieces):
        found_runs = runs(piece, splits)
        targets: list[list[Tensor]] = [[]]
        if len(found_runs) > 1:
            outputs[place] = [torch.empty_like(piece[i]) for i in like]
            targets = runs(outputs[place], [splits[i] for i in like])
        for inputs, target in zip(found_runs, targets, strict=True):
            found[tuple(tensor.shape[1:] for tensor in inputs)].append(_Run(place, inputs, target))
    for same in found.values():
        for chunk in _chunks(same, limit):
            stacks = zip(*(run.inputs for run in chunk), strict=True)
            results = fn([torch.cat(tensors) if len(chunk) > 1 else tensors[0] for tensors in stacks])
            counts = [run.inputs[0].size(0) for run in chunk]
            for run, parts in zip(chunk, zip(*(result.split(counts) for result in results), strict=True), strict=True):
                if not run.targets:  # the whole piece: no copy
                    shapes = [pieces[run.place][i].shape for i in like]
                    outputs[run.place] = [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]
                for slot, part in zip(run.targets, parts, strict=False):
                    slot.copy_(part)
    return outputs


class _Run(NamedTuple):
    """Blocks of one piece: which piece, their inputs, and where their outputs go if they are not all of it."""

    place: int
    inputs: list[Tensor]
    targets: list[Tensor]


def _chunks(same: Sequence[_Run], limit: float) -> Iterator[list[_Run]]:
    """Consecutive runs with at most ``limit`` elements in all, or one."""
    chunk: list[_Run] = []
    elements = 0
    for run in same:
        if chunk and elements + run.inputs[0].numel() > limit:
            yield chunk
            chunk, elements = [], 0
        chunk.append(run)
        elements += run.inputs[0].numel()
    if chunk:
        yield chunk
