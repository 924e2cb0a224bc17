"""Replay: rows of what the model has learned before, mixed into what it learns now.

The share counts learned tokens, because the loss is a mean over them: a row of a book weighs more than a row of short
answers. Which rows are replayed is drawn once, by the seed, and is the same in every epoch; the order mixes them with
the others. Given up: a fresh draw in every epoch.

Source: Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal, Connection Science 7(2); Ibrahim et al.
2024, Simple and Scalable Strategies to Continually Pre-train Large Language Models, arXiv 2403.08763, which finds
that 1 to 5% of pretraining text keeps most of what was learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from lit_consistency.data.packing import shuffled
from lit_consistency.data.rows import Rows
from lit_consistency.data.sources import Source
from lit_consistency.data.token_rows import TokenRow, TokenRows


class Replay:
    """What is mixed into the training rows.

    Args:
        parts: Text of pretraining or conversations of earlier tasks, by a name each; they have equal shares.
        share: Share of the learned tokens of an epoch that are replayed, 0 < share < 1.
    """

    def __init__(self, parts: dict[str, Source | Rows], share: float = 0.05) -> None:
        if not parts:
            raise ValueError("replay.parts = {}: expected at least one source or one set of rows")
        if not 0 < share < 1:
            raise ValueError(f"replay.share = {share}: expected 0 < share < 1")
        self.parts = parts
        self.share = share

    def mix(self, train: TokenRows, replayed: Sequence[TokenRows], seed: int) -> MixedRows:
        """All rows of ``train``, and as many of each of ``replayed`` as its share asks for."""
        wanted = train.supervised.sum() * self.share / (1 - self.share) / len(replayed)
        drawn = [draw(rows.supervised, wanted, seed, number) for number, rows in enumerate(replayed)]
        return MixedRows(train, replayed, drawn)

    def fingerprint(self) -> dict[str, Any]:
        """The share; the parts have fingerprints of their own."""
        return {"share": self.share}


class MixedRows(TokenRows):
    """Rows of a training set, followed by rows drawn from others.

    Args:
        train: The training set, of which every row is there.
        others: What is replayed.
        drawn: For each of ``others`` the numbers of its rows that are there.
    """

    def __init__(self, train: TokenRows, others: Sequence[TokenRows], drawn: Sequence[np.ndarray]) -> None:
        self.full = train.full
        self.block_size = train.block_size
        self.parts = [train, *others]
        numbers = [np.arange(len(train)), *drawn]
        self.number = np.concatenate(numbers)
        self.part = np.repeat(np.arange(len(numbers)), [len(n) for n in numbers])
        self.supervised = np.concatenate([rows.supervised[n] for rows, n in zip(self.parts, numbers, strict=True)])

    @property
    def n_replayed(self) -> int:
        """How many of the rows are replayed."""
        return int((self.part > 0).sum())

    def __getitem__(self, i: int) -> TokenRow:
        """Row i: the training set's first."""
        return self.parts[self.part[i]][int(self.number[i])]


def draw(supervised: np.ndarray, wanted: float, seed: int, stream: int) -> np.ndarray:
    """Numbers of rows whose learned tokens sum up to about ``wanted``: whole rows, at least one.

    Args:
        supervised: (n_rows,) learned tokens of each row, at least one in all.
        wanted: How many learned tokens are asked for; more than there are repeat the rows.
        seed: Decides which rows.
        stream: Apart from other draws with this seed.

    Returns:
        (n,) int64, every row equally often but for the last, incomplete pass.
    """
    # epochs number the streams of the order of rows from 0 on
    order = shuffled(len(supervised), seed, 2**32 + stream)
    passes, rest = divmod(wanted, int(supervised.sum()))
    last = int(np.searchsorted(np.cumsum(supervised[order]), rest, side="left"))
    drawn = np.concatenate([np.tile(order, int(passes)), order[:last]])
    return drawn if len(drawn) else order[:1]
