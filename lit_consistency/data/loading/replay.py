"""Replay: rows of what the model has learned before, mixed into what it learns now.

The share counts learned tokens, because the loss is a mean over them: a row of a book weighs more than a row of short
answers. Every epoch replays other rows, until all have been replayed once: which ones is a function of seed and epoch.
The order of rows mixes them with the others. Given up: an exact share, since whole rows are replayed, and as many in
every epoch.

Source: Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal, Connection Science 7(2); Ibrahim et al.
2024, Simple and Scalable Strategies to Continually Pre-train Large Language Models, arXiv 2403.08763, which finds
that 1 to 5% of pretraining text keeps most of what was learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.tokens.packing import shuffled
from lit_consistency.data.tokens.token_rows import PackedSequence, TokenRows


class Replay:
    """Sources that are mixed into the training rows.

    Args:
        parts: Name -> text of pretraining or conversations of earlier tasks.
        share: Share of the learned tokens of an epoch that are replayed, 0 < share < 1: one number, divided equally
            among the parts, or a number for each part by its name.
    """

    def __init__(self, parts: dict[str, Source | Rows], share: float | dict[str, float] = 0.05) -> None:
        if not parts:
            raise ValueError("replay.parts = {}: expected at least one source or one set of rows")
        shares = share if isinstance(share, dict) else dict.fromkeys(parts, share / len(parts))
        if shares.keys() != parts.keys():
            raise ValueError(f"replay.share = {share}: expected a number for each of {', '.join(parts)}")
        if not (all(one > 0 for one in shares.values()) and sum(shares.values()) < 1):
            raise ValueError(f"replay.share = {share}: expected 0 < share < 1, of all parts together")
        self.parts = parts
        self.share = share
        self.shares = shares

    def mix(self, train: TokenRows, replayed: Sequence[TokenRows], seed: int) -> MixedRows:
        """All rows of ``train``, and as many of each of ``replayed`` as its share asks for."""
        whole = train.supervised.sum() / (1 - sum(self.shares.values()))
        shares = [self.shares[name] for name in self.parts]
        counts = [
            max(1, round(whole * share / rows.supervised.mean())) for rows, share in zip(replayed, shares, strict=True)
        ]
        return MixedRows(train, replayed, counts, seed)

    def fingerprint(self) -> dict[str, Any]:
        """The share; the parts have fingerprints of their own."""
        return {"share": self.share}


class MixedRows(TokenRows):
    """Rows of a training set, followed by rows drawn from others.

    Args:
        train: The training set, of which every row is there.
        others: What is replayed.
        counts: How many rows of each of ``others`` are there.
        seed: Seed of the draws.
        epoch: The epoch, which has a draw of its own.
    """

    def __init__(
        self, train: TokenRows, others: Sequence[TokenRows], counts: Sequence[int], seed: int, epoch: int = 0
    ) -> None:
        self.full = train.full
        self.block_size = train.block_size
        self.seed = seed
        self.counts = list(counts)
        self.sets = [train, *others]
        drawn = [draw(len(rows), n, seed, k, epoch) for k, (rows, n) in enumerate(zip(others, counts, strict=True))]
        indexes = [np.arange(len(train)), *drawn]
        # row i of the mixture is row index_in_set[i] of sets[set_of_row[i]]
        self.index_in_set = np.concatenate(indexes)
        self.set_of_row = np.repeat(np.arange(len(indexes)), [len(n) for n in indexes])
        self.supervised = np.concatenate([rows.supervised[n] for rows, n in zip(self.sets, indexes, strict=True)])

    @property
    def n_replayed(self) -> int:
        """Number of replayed rows."""
        return sum(self.counts)

    def of_epoch(self, epoch: int) -> MixedRows:
        """The mixture of another epoch: as many rows, of which the replayed ones are drawn anew."""
        return MixedRows(self.sets[0], self.sets[1:], self.counts, self.seed, epoch)

    def __getitem__(self, i: int) -> PackedSequence:
        """Indexes below ``len(train)`` are training rows, the rest replayed ones."""
        return self.sets[self.set_of_row[i]][int(self.index_in_set[i])]


def draw(n_rows: int, n: int, seed: int, stream: int, epoch: int) -> np.ndarray:
    """The rows that an epoch replays: the next ``n`` of an endless sequence of permutations of all rows.

    Args:
        n_rows: Number of rows.
        n: Number of rows that an epoch replays.
        seed: Seed of the permutations.
        stream: Number of the set, so that two sets of one seed have other permutations.
        epoch: The epoch, counted from 0.

    Returns:
        (n,) int64 indexes; over the epochs every row is replayed equally often.
    """
    first, last = epoch * n // n_rows, ((epoch + 1) * n - 1) // n_rows
    # the streams from 0 on belong to the order of rows, which numbers them by epoch
    passes = [shuffled(n_rows, seed, (stream + 1) * 2**32 + number) for number in range(first, last + 1)]
    return np.concatenate(passes)[epoch * n - first * n_rows :][:n]
