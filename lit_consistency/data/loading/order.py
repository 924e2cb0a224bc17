"""The order of samples: a function of seed, epoch and global batch index alone.

An epoch is a permutation of the rows, cut into global batches; rank r takes the r-th equal slice of a global batch,
micro-batch by micro-batch. The number of ranks and the micro-batch size change how a global batch is divided, not
which rows it holds. The last global batch of an epoch may be partial: every row is seen once per epoch, and empty rows
fill it up, so that all ranks take part in every step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_consistency.data.tokens.packing import shuffled


class MicroBatch(NamedTuple):
    """Indexes of the rows of one micro-batch, -1 for an empty row, and those of its whole global batch."""

    rows: list[int]
    global_batch: list[int]


class Order:
    """Which rows the micro-batches of one rank hold.

    Args:
        n_rows: Rows of an epoch.
        global_batch_size: Rows of an optimizer step over all ranks.
        micro_batch_size: Rows of a micro-batch.
        world_size: Number of ranks; global_batch_size must be a multiple of micro_batch_size * world_size.
        rank: This rank, counted from 0.
        seed: Seed of the permutations; None keeps the rows in their order.
    """

    def __init__(
        self, n_rows: int, global_batch_size: int, micro_batch_size: int, world_size: int, rank: int, seed: int | None
    ) -> None:
        assert global_batch_size % (micro_batch_size * world_size) == 0
        assert 0 <= rank < world_size
        self.n_rows = n_rows
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.world_size = world_size
        self.rank = rank
        self.seed = seed

    @property
    def steps(self) -> int:
        """Global batches of an epoch, the partial one included."""
        return -(-self.n_rows // self.global_batch_size)

    @property
    def per_step(self) -> int:
        """Micro-batches of this rank in a global batch."""
        return self.global_batch_size // (self.micro_batch_size * self.world_size)

    def __len__(self) -> int:
        """Micro-batches of this rank in an epoch."""
        return self.steps * self.per_step

    def epoch(self, epoch: int, start: int = 0) -> Iterator[MicroBatch]:
        """Yields the micro-batches of an epoch from number ``start`` on."""
        rows = np.arange(self.n_rows) if self.seed is None else shuffled(self.n_rows, self.seed, epoch)
        own = self.global_batch_size // self.world_size
        for number in range(start, len(self)):
            step, within = divmod(number, self.per_step)
            global_batch = rows[step * self.global_batch_size : (step + 1) * self.global_batch_size].tolist()
            first = self.rank * own + within * self.micro_batch_size
            micro_batch = global_batch[first : first + self.micro_batch_size]
            yield MicroBatch(micro_batch + [-1] * (self.micro_batch_size - len(micro_batch)), global_batch)


def warn_of_empty_rows(n_rows: int, global_batch_size: int) -> None:
    """A batch that is larger than an epoch is filled with empty rows, which cost as much time as others."""
    if 2 * n_rows <= global_batch_size:
        rank_zero_warn(
            f"data.global_batch_size = {global_batch_size}: an epoch has {n_rows:,} rows, the others of every step are "
            f"empty and cost time; {n_rows} would train on the same"
        )
