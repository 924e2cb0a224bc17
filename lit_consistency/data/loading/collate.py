"""Rows to a batch: the mapping that every loader yields.

``tokens``, ``targets``, ``positions`` (B, T) int64 and ``documents`` (B, T) int32; padding on the right is token 0,
target -100, position 0, document -1. Batches for training also hold the number of supervised tokens of the whole
optimizer step, so that any split into micro-batches and ranks gives the same gradient; where rows are replayed, the
loader adds which ones (``replayed``, (B,) bool), and how many of those tokens are theirs (``supervised_replayed``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lit_consistency.data.tokens.token_rows import PackedSequence
from lit_consistency.model import IGNORE, find_spans

Batch = dict[str, Tensor]

# lengths are rounded up to multiples of 8: fewer shapes, and the least that tensor cores want of a 16-bit matrix
MULTIPLE = 8

EMPTY = PackedSequence(*(np.empty(0, dtype=np.int64) for _ in range(4)))


def collate(rows: Sequence[PackedSequence], length: int | None = None, supervised: int | None = None) -> Batch:
    """Pads rows to one length.

    Args:
        rows: The micro-batch; ``EMPTY`` rows become padding.
        length: T; None takes the longest row, rounded up to a multiple of 8.
        supervised: Supervised tokens of the whole optimizer step, for training batches.

    Returns:
        The batch.
    """
    if length is None:
        longest = max(1, *(len(row.tokens) for row in rows), 1)
        length = -(-longest // MULTIPLE) * MULTIPLE
    shape = (len(rows), length)
    batch: dict[str, np.ndarray] = {
        "tokens": np.zeros(shape, dtype=np.int64),
        "targets": np.full(shape, IGNORE, dtype=np.int64),
        "positions": np.zeros(shape, dtype=np.int64),
        "documents": np.full(shape, -1, dtype=np.int32),
    }
    for i, row in enumerate(rows):
        for name, values in row._asdict().items():
            batch[name][i, : len(values)] = values
    tensors = {name: torch.from_numpy(values) for name, values in batch.items()}
    if supervised is not None:
        tensors["supervised"] = torch.tensor(supervised, dtype=torch.int64)
    return tensors


def pinned(tensor: Tensor) -> Tensor:
    """Where there is a GPU, a copy in memory that it reads by itself, so that nothing waits for the tensor's move."""
    return tensor.pin_memory() if torch.cuda.is_available() else tensor


def seen_on_cpu(batch: Mapping[str, Any]) -> dict[str, Any]:
    """The batch with what is looked up before it leaves the CPU, where looking costs nothing.

    Returns:
        With ``packed``, whether any row holds several documents; where it is true, ``spans``, where they lie; and
        ``indices`` (P,) int64 of the supervised tokens in the flattened batch B x T.
    """
    documents = batch["documents"]
    packed = bool((documents > 0).any())
    seen = {**batch, "packed": packed, "indices": pinned(supervised_tokens(batch)[0])}
    if packed:
        spans = find_spans(documents)
        seen["spans"] = spans._replace(starts=pinned(spans.starts))
    return seen


def model_inputs(batch: Mapping[str, Any]) -> dict[str, Any]:
    """What ``DocumentMask.document_states`` is given: one document a row, padded on the right, needs no mask."""
    names = ("tokens", "positions", "documents", "spans") if batch["packed"] else ("tokens",)
    return {name: batch[name] for name in names if name in batch}


def supervised_tokens(batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
    """Where a batch is supervised, and by which token.

    Returns:
        (P,) int64, indices into the flattened batch B x T, in ``indices`` where they were looked up on the CPU; and the
        targets there, (P,) int64.
    """
    targets = batch["targets"].flatten()
    indices = batch["indices"] if "indices" in batch else (targets != IGNORE).nonzero()[:, 0]
    return indices, targets[indices]
