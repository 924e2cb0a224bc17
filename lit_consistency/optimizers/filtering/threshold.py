"""The K largest or smallest of n scores, exactly K of them, as a threshold and an index.

A score is chosen if it is beyond the threshold, or if it equals the threshold and its index is below a cut (from the
cut on, for the smallest): one comparison for each score, in whatever pieces they are read. On a CPU NumPy's partition
finds the threshold (about nine times as fast as ``torch.topk`` there), elsewhere ``torch.topk``, without waiting for
the device.

NaN counts as larger than every number and is never chosen, so that it takes up a place among the K and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EVERYWHERE = 2**62  # a cut after every index
PIECE = 2**18  # scores that are made at a time where ties are looked for: they stay in the cache


class Threshold(NamedTuple):
    """What ``chosen`` compares with; tensors of one shape, () for one block of scores."""

    low: Tensor  # scores from low to high are equal to the threshold
    high: Tensor
    cut: Tensor  # int64: of those, the ones with an index below it are chosen; for the smallest, from it on

    def rows(self) -> list[Threshold]:
        """The thresholds of single blocks, of shape ()."""
        return [Threshold(*row) for row in zip(*(column.unbind() for column in self), strict=True)]


def number_kept(fraction: float, numel: int) -> int:
    """K = ceil(fraction * numel), at least 1."""
    # rounded first: 0.07 * 100 is 7.000000000000001 in floats, and K is 7
    return max(1, math.ceil(round(fraction * numel, 6)))


def chosen(scores: Tensor, index: Tensor, threshold: Threshold, smallest: bool = False) -> Tensor:
    """Mask of the scores that are chosen.

    Args:
        scores: float, of any shape.
        index: of each score, of that shape.
        threshold: of shape ().
        smallest: whether the smallest are chosen.
    """
    low, high, cut = threshold
    if smallest:
        return (scores < low) | ((scores <= high) & (index >= cut))
    return (scores > high) | ((scores >= low) & (index < cut))


def select_largest(scores: Tensor, k: int) -> Tensor:
    """Mask of exactly k coordinates whose scores are largest; of equal scores those that come first are taken.

    Args:
        scores: of any shape, float32 or float64, at least 0; only read.
        k: 0 <= k <= number of scores.

    Returns:
        Bool mask of the shape of ``scores``.
    """
    if k == scores.numel() or k == 0:
        return torch.full_like(scores, k > 0, dtype=torch.bool)
    row = scores.reshape(1, -1)
    (threshold,) = row_thresholds(row, k).rows()
    return chosen(row[0], torch.arange(row.shape[1], device=row.device), threshold).view(scores.shape)


def row_thresholds(scores: Tensor, k: int, smallest: bool = False) -> Threshold:
    """For each row, the threshold of its k largest (or smallest) scores, exactly k of them.

    Args:
        scores: (rows, columns), float32 or float64, at least 0; only read.
        k: 1 <= k <= columns.
        smallest: choose the smallest, and of equal ones the last.

    Returns:
        Thresholds of shape (rows,); the index is the column.
    """
    cpu = scores.device.type == "cpu"
    reordered = scores.clone() if cpu else scores
    kth = kth_of_rows(reordered, k, smallest)
    # no tie to break, mostly; asked on a CPU only, because another device would have to be waited for
    if cpu and not _crosses(reordered, kth, k, smallest):
        return Threshold(kth, kth, torch.full(kth.shape, 0 if smallest else EVERYWHERE))
    beyond = scores < kth[:, None] if smallest else scores > kth[:, None]
    ties = scores == kth[:, None]
    missing, n_ties = k - beyond.count_nonzero(1), ties.count_nonzero(1)
    all_of_them = torch.full_like(n_ties, 0 if smallest else EVERYWHERE)
    cut = torch.where(n_ties > missing, cut_of_ties(ties, missing, n_ties, smallest), all_of_them)
    return Threshold(kth, kth, cut)


def threshold_in_place(scores: Tensor, k: int, smallest: bool, again: Callable[[int, int], Tensor]) -> Threshold:
    """As ``row_thresholds`` of one row, for many scores: no copy, and one look at each.

    Args:
        scores: (columns,), float32 or float64, at least 0; its order is lost on a CPU.
        k: 1 <= k <= columns.
        smallest: choose the smallest, and of equal ones the last.
        again: makes the scores of a range of columns once more; called only where a tie has to be broken.

    Returns:
        Threshold of shape ().
    """
    if scores.device.type != "cpu":
        return row_thresholds(scores[None], k, smallest).rows()[0]
    kth = kth_of_rows(scores[None], k, smallest)
    if not _crosses(scores[None], kth, k, smallest):
        return Threshold(kth[0], kth[0], torch.tensor(0 if smallest else EVERYWHERE))
    columns = scores.shape[0]
    beyond_or_equal = scores[:k] if smallest else scores[columns - k :]
    missing = int((beyond_or_equal == kth).count_nonzero())
    # as cut_of_ties, a piece at a time from the side where ties are taken: millions of floats nearly always tie
    starts = range(0, columns, PIECE)
    for start in reversed(starts) if smallest else starts:
        ties = (again(start, min(start + PIECE, columns)) == kth).nonzero()[:, 0]
        if len(ties) >= missing:
            cut = start + int(ties[-missing] if smallest else ties[missing - 1] + 1)
            break
        missing -= len(ties)
    else:
        # scores that a compiler rounded otherwise the first time are not met again: all that equal are taken then
        cut = 0 if smallest else EVERYWHERE
    return Threshold(kth[0], kth[0], torch.tensor(cut))


def kth_of_rows(scores: Tensor, k: int, smallest: bool = False) -> Tensor:
    """The k-th largest (or smallest) of each row of (rows, columns), of shape (rows,); reorders rows on a CPU."""
    if scores.device.type != "cpu":
        values = scores.topk(k, dim=1, largest=not smallest, sorted=False).values
        return values.amax(1) if smallest else values.amin(1)
    column = k - 1 if smallest else scores.shape[1] - k
    # integers have the order of floats that are at least 0, NaN after infinity, which NumPy sorts several times as fast
    integers = scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)
    integers.numpy().partition(column, axis=1)
    return scores[:, column].clone()


def _crosses(scores: Tensor, kth: Tensor, k: int, smallest: bool) -> bool:
    """Whether scores of partitioned rows equal the k-th without being among the k."""
    rest = scores[:, k:] if smallest else scores[:, : scores.shape[1] - k]
    return rest.shape[1] > 0 and bool(((rest.amin(1) if smallest else rest.amax(1)) == kth).any())


def cut_of_ties(ties: Tensor, missing: Tensor, n_ties: Tensor, smallest: bool) -> Tensor:
    """For each row, the column after the last tie that is taken, or that of the first one taken for the smallest.

    Args:
        ties: (rows, columns), bool.
        missing: (rows,), how many of them are taken, from the front or, for the smallest, from the end.
        n_ties: (rows,), how many there are.
        smallest: from which side they are taken.

    Returns:
        Columns, int64 of shape (rows,).
    """
    rank = n_ties - missing + 1 if smallest else missing
    # int32 holds the count of any row that numpy or topk takes here
    last = ((ties.cumsum(1, dtype=torch.int32) == rank[:, None]) & ties).to(torch.uint8).argmax(1)
    return last if smallest else last + 1
