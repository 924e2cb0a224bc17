"""Rows of several sets as one: those of a mixture, and replayed ones among those of a training set.

Which rows of a set an epoch holds is a function of seed and epoch; the order of rows (``order.py``) then mixes all sets
as it shuffles one, so a global batch is a function of seed, epoch and its index, on any number of ranks. Given up:
equal shares within a batch; a batch has the shares of the epoch in expectation.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lit_consistency.data.sources.mixture import Mixture
from lit_consistency.data.tokens.packing import shuffled
from lit_consistency.data.tokens.token_rows import PackedSequence, TokenRows

# replayed sets have the streams from 0 on; a mixture that is trained on beside them has others
MIXTURE_STREAMS = 1 << 16


class MixedRows(TokenRows):
    """Rows of several sets, one set after the other; the first gives ``full`` and ``block_size``.

    Args:
        sets: The sets.
        counts: How many rows of each an epoch holds, drawn by the seed; None: every row, in its order.
        seed: Seed of the draws.
        first_stream: Number of the first set's draws; those of two sets of one seed differ.
        epoch: The epoch, which has draws of its own.
        replays: Whether all sets but the first are replayed.
    """

    def __init__(
        self,
        sets: Sequence[TokenRows],
        counts: Sequence[int | None],
        seed: int,
        first_stream: int,
        epoch: int = 0,
        replays: bool = False,
    ) -> None:
        self.full = sets[0].full
        self.block_size = sets[0].block_size
        self.sets = list(sets)
        self.counts = list(counts)
        self.seed = seed
        self.first_stream = first_stream
        indexes = [
            np.arange(len(rows)) if n is None else draw(len(rows), n, seed, first_stream + k, epoch)
            for k, (rows, n) in enumerate(zip(sets, counts, strict=True))
        ]
        # row i of the mixture is row index_in_set[i] of sets[set_of_row[i]]
        self.index_in_set = np.concatenate(indexes)
        self.set_of_row = np.repeat(np.arange(len(indexes)), [len(n) for n in indexes])
        self.supervised = np.concatenate([rows.supervised[n] for rows, n in zip(sets, indexes, strict=True)])
        self.replayed = self.set_of_row > 0 if replays else None

    @property
    def lengths(self) -> np.ndarray:
        """Of each row in its own set."""
        lengths = [rows.lengths for rows in self.sets]
        return np.array([lengths[k][i] for k, i in zip(self.set_of_row, self.index_in_set, strict=True)])

    @property
    def n_of_set(self) -> list[int]:
        """How many rows of each set an epoch holds."""
        return np.bincount(self.set_of_row, minlength=len(self.sets)).tolist()

    def of_epoch(self, epoch: int) -> MixedRows:
        """The mixture of another epoch: as many rows, of which those that are drawn are drawn anew."""
        sets = [rows.of_epoch(epoch) for rows in self.sets]
        return MixedRows(sets, self.counts, self.seed, self.first_stream, epoch, self.replayed is not None)

    def document(self, i: int, number: int) -> tuple[int, int]:
        """As of the row's own set."""
        return self.sets[self.set_of_row[i]].document(int(self.index_in_set[i]), number)

    def __getitem__(self, i: int) -> PackedSequence:
        """Row i; the rows of a set stand together."""
        return self.sets[self.set_of_row[i]][int(self.index_in_set[i])]


def mix(mixture: Mixture, sets: Sequence[TokenRows], seed: int) -> MixedRows:
    """The rows of a mixture's sets, as many of each as its weight asks for."""
    shares = mixture.shares()
    counts: list[int | None] = [None] * len(sets)
    if shares is not None:
        whole = sum(int(rows.supervised.sum()) for rows in sets)
        counts = [rows_for(whole * shares[name], rows) for name, rows in zip(mixture.sets, sets, strict=True)]
    return MixedRows(sets, counts, seed, MIXTURE_STREAMS)


def rows_for(n_supervised: float, rows: TokenRows) -> int:
    """How many rows hold so many learned tokens, at least one."""
    return max(1, round(n_supervised / rows.supervised.mean()))


def draw(n_rows: int, n: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """The rows of a set that an epoch holds: the next ``n`` of an endless sequence of permutations of all rows.

    Args:
        n_rows: Number of rows.
        n: Number of rows that an epoch holds.
        seed: Seed of the permutations.
        stream: Number of the set, so that two sets of one seed have other permutations.
        epoch: The epoch, counted from 0.

    Returns:
        (n,) int64 indexes; over the epochs every row is taken equally often.
    """
    first, last = epoch * n // n_rows, ((epoch + 1) * n - 1) // n_rows
    # the streams from 0 on belong to the order of rows, which numbers them by epoch
    passes = [shuffled(n_rows, seed, (stream + 1) * 2**32 + number) for number in range(first, last + 1)]
    return np.concatenate(passes)[epoch * n - first * n_rows :][:n]
