"""Rows of tokens for training: cut from a stream of text, or packed from conversations.

A row has up to `block_size` places; `tokens[t]` is followed by `targets[t]`. A target is -100 where no loss is taken:
on what is not supervised, and on the last token of a document, since no document predicts the next one. Positions
restart with every document and with every row: a document that is cut by the end of a row loses its context there, as
in all pretraining on blocks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from lit_consistency.data.tokens.packing import Plan, alone, pack
from lit_consistency.data.tokens.token_files import Shard
from lit_consistency.model import IGNORE


class PackedSequence(NamedTuple):
    """One row without padding, four arrays (T,) int64; `documents` numbers its documents 0, 1, 2, ..."""

    tokens: np.ndarray
    targets: np.ndarray
    positions: np.ndarray
    documents: np.ndarray


class TokenRows(ABC):
    """Rows by number.

    Attributes:
        supervised: (n_rows,) int64, how many tokens of each row are learned.
        full: Whether rows are padded to `block_size`, so that all batches have one shape.
        block_size: Places of a row.
        replayed: (n_rows,) bool, which of them are replayed; None where nothing is.
    """

    supervised: np.ndarray
    full: bool
    block_size: int
    replayed: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.supervised)

    @abstractmethod
    def __getitem__(self, i: int) -> PackedSequence:
        """Row i."""

    @abstractmethod
    def document(self, i: int, number: int) -> tuple[int, int]:
        """What document ``number`` of row i is: a document of the shard, and its first token that stands in the row."""

    @property
    @abstractmethod
    def lengths(self) -> np.ndarray:
        """(n_rows,) int64, how many tokens each row has."""

    def of_epoch(self, epoch: int) -> TokenRows:
        """The rows of an epoch, as many in each: these, unless a subclass has others for every epoch."""
        return self


class StreamRows(TokenRows):
    """Consecutive blocks of a stream of documents; each token is an input once, the last one aside.

    Args:
        shard: Documents, each with EOS as its last token.
        block_size: Places of a row; only the last row may hold fewer.
    """

    full = True

    def __init__(self, shard: Shard, block_size: int) -> None:
        self.shard = shard
        self.block_size = block_size
        n_inputs = max(len(shard.tokens) - 1, 0)
        bounds = np.minimum(np.arange(-(-n_inputs // block_size) + 1) * block_size, n_inputs)
        ends_before = np.searchsorted(shard.offsets[1:], bounds + 1)
        self.supervised = np.diff(bounds) - np.diff(ends_before)

    @property
    def lengths(self) -> np.ndarray:
        """All of ``block_size``, but the last row's."""
        n_inputs = max(len(self.shard.tokens) - 1, 0)
        return np.minimum(n_inputs - np.arange(len(self)) * self.block_size, self.block_size)

    def __getitem__(self, i: int) -> PackedSequence:
        """Row i: places i * block_size and following."""
        start = i * self.block_size
        piece = self.shard.tokens[start : start + self.block_size + 1].astype(np.int64)
        tokens, targets = piece[:-1], piece[1:].copy()
        offsets = self.shard.offsets
        first = np.searchsorted(offsets, start, side="right")  # the first boundary behind the row's start
        last = np.searchsorted(offsets, start + len(tokens), side="right")
        boundaries = offsets[first:last] - start
        targets[boundaries - 1] = IGNORE
        boundaries = boundaries[boundaries < len(tokens)]
        lengths = np.diff(np.concatenate(([0], boundaries, [len(tokens)])))
        return PackedSequence(tokens, targets, _positions(lengths), _documents(lengths))

    def document(self, i: int, number: int) -> tuple[int, int]:
        """The first document of a row may have begun in an earlier one."""
        start, offsets = i * self.block_size, self.shard.offsets
        document = int(np.searchsorted(offsets, start, side="right")) - 1 + number
        return document, max(start - int(offsets[document]), 0)


class ConversationRows(TokenRows):
    """Conversations, packed or one per row.

    Args:
        shard: Conversations of 2 to `block_size + 1` tokens, with masks.
        block_size: Places of a row. A conversation takes one place less than it has tokens: the last is only a target.
        packing: Several conversations in a row.
        seed: Decides which conversations share a row.
    """

    def __init__(self, shard: Shard, block_size: int, packing: bool, seed: int) -> None:
        assert shard.supervised is not None
        self.shard = shard
        self.mask = shard.supervised
        self.block_size = block_size
        self.full = packing
        lengths = np.diff(shard.offsets) - 1
        self.plan: Plan = pack(lengths, block_size, seed) if packing else alone(len(lengths))
        first = shard.offsets[:-1]
        # the first token of a conversation is never a target
        learned = np.add.reduceat(self.mask, first, dtype=np.int64) - self.mask[first]
        cumulative = np.concatenate(([0], np.cumsum(learned[self.plan.members])))
        self.supervised = np.diff(cumulative[self.plan.starts])

    @property
    def lengths(self) -> np.ndarray:
        """Of all conversations of a row together."""
        alone = np.diff(self.shard.offsets) - 1
        return np.diff(np.concatenate(([0], np.cumsum(alone[self.plan.members])))[self.plan.starts])

    def __getitem__(self, i: int) -> PackedSequence:
        """Row i of the plan."""
        pieces = [slice(*self.shard.offsets[document : document + 2]) for document in self.plan.row(i)]
        tokens = np.concatenate([self.shard.tokens[piece][:-1] for piece in pieces]).astype(np.int64)
        follows = np.concatenate([self.shard.tokens[piece][1:] for piece in pieces]).astype(np.int64)
        learned = np.concatenate([self.mask[piece][1:] for piece in pieces])
        lengths = np.array([piece.stop - piece.start - 1 for piece in pieces])
        return PackedSequence(tokens, np.where(learned, follows, IGNORE), _positions(lengths), _documents(lengths))

    def document(self, i: int, number: int) -> tuple[int, int]:
        """Conversations stand in one row, whole."""
        return int(self.plan.row(i)[number]), 0


def _documents(lengths: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(len(lengths)), lengths)


def _positions(lengths: np.ndarray) -> np.ndarray:
    return np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
