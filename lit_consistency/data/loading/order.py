"""The order of samples: a function of seed, epoch and global batch index alone.

An epoch is a permutation of the rows, cut into global batches; rank r takes the r-th equal slice of a global batch,
micro-batch by micro-batch. The number of ranks, the micro-batch size, and sorting a global batch by length (so that
rows of one length are padded together) change how it is divided, not which rows it holds. The last global batch of an
epoch may be partial: every row is seen once per epoch, and empty rows fill it up, so that all ranks take part in every
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from lightning.pytorch.utilities import rank_zero_warn

from lit_consistency.data.tokens.packing import shuffled

MICRO_BATCH_TOKENS = 4096
"""Most tokens of a micro-batch whose rows are not given, so few that a large model's activations fit into memory."""


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
        by_length: Whether the rows of a global batch are sorted, the longest first; the ranks then take turns, so that
            their micro-batches of one time are of one length.
    """

    def __init__(
        self,
        n_rows: int,
        global_batch_size: int,
        micro_batch_size: int,
        world_size: int,
        rank: int,
        seed: int | None,
        by_length: bool = False,
    ) -> None:
        assert global_batch_size % (micro_batch_size * world_size) == 0
        assert 0 <= rank < world_size
        self.n_rows = n_rows
        self.global_batch_size = global_batch_size
        self.micro_batch_size = micro_batch_size
        self.world_size = world_size
        self.rank = rank
        self.seed = seed
        self.by_length = by_length

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

    def epoch(self, epoch: int, start: int = 0, lengths: np.ndarray | None = None) -> Iterator[MicroBatch]:
        """Yields the micro-batches of an epoch from number ``start`` on.

        Args:
            epoch: The epoch, counted from 0.
            start: Number of the first micro-batch.
            lengths: (n_rows,), tokens of every row of the epoch; needed where rows are sorted.
        """
        rows = np.arange(self.n_rows) if self.seed is None else shuffled(self.n_rows, self.seed, epoch)
        own = self.global_batch_size // self.world_size
        for number in range(start, len(self)):
            step, within = divmod(number, self.per_step)
            chosen = rows[step * self.global_batch_size : (step + 1) * self.global_batch_size]
            first = self.rank * own + within * self.micro_batch_size
            if self.by_length:
                assert lengths is not None
                chosen = chosen[np.argsort(-lengths[chosen], kind="stable")]
                first = (within * self.world_size + self.rank) * self.micro_batch_size
            global_batch = chosen.tolist()
            micro_batch = global_batch[first : first + self.micro_batch_size]
            yield MicroBatch(micro_batch + [-1] * (self.micro_batch_size - len(micro_batch)), global_batch)


def rows_at_once(share: int, block_size: int) -> int:
    """The most rows that divide a device's share of the global batch and hold at most ``MICRO_BATCH_TOKENS``."""
    most = max(MICRO_BATCH_TOKENS // block_size, 1)
    return max((rows for rows in range(1, min(share, most) + 1) if share % rows == 0), default=1)


def micro_batches(global_batch_size: int, given: int | None, rows: int, devices: int) -> int:
    """How many micro-batches of a device are its share of the global batch.

    Args:
        global_batch_size: Rows of an optimizer step over all devices.
        given: Rows of a micro-batch as the configuration gives them, or None.
        rows: Those that it has.
        devices: Number of devices.

    Raises:
        ValueError: It is no whole number.
    """
    if global_batch_size % (rows * devices):
        of_both = f"data.micro_batch_size * devices = {rows} * {devices} = {rows * devices}"
        raise ValueError(
            f"data.global_batch_size = {global_batch_size}: expected a multiple of "
            f"{f'devices = {devices}' if given is None else of_both}"
        )
    return global_batch_size // (rows * devices)


def warn_of_empty_rows(n_rows: int, global_batch_size: int) -> None:
    """A batch that is larger than an epoch is filled with empty rows, which cost as much time as others."""
    if 4 * n_rows <= global_batch_size:
        rank_zero_warn(
            f"data.global_batch_size = {global_batch_size}: an epoch has {n_rows:,} rows, the others of every step are "
            f"empty and cost time; {n_rows} would train on the same"
        )
