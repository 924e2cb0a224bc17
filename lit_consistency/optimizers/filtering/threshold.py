"""The K largest or smallest of n numbers, exactly K of them, as a threshold and a place.

A number is chosen if it is beyond its threshold, or if it equals it and comes before a place (after it, for the
smallest): one comparison for each number, in whatever pieces they are read. On a CPU NumPy's partition finds the
threshold (about nine times as fast as ``torch.topk`` there), elsewhere ``torch.topk``, without waiting for the device.

NaN counts as larger than every number and is never chosen, so that it takes up a place and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

EVERYWHERE = 2**62  # a place after every index
PIECE = 2**18  # scores that are made at a time where ties are looked for: they stay in the cache


class Threshold(NamedTuple):
    """What ``chosen`` compares with; tensors of one shape, () for one block of numbers."""

    low: Tensor  # numbers from low to high are equal to the threshold
    high: Tensor
    cut: Tensor  # int64: of those, the ones with an index before it are chosen; for the smallest, from it on

    def rows(self) -> list[Threshold]:
        """The thresholds of single blocks, of shape ()."""
        return [Threshold(*row) for row in zip(*(part.unbind() for part in self), strict=True)]


def chosen(scores: Tensor, index: Tensor, threshold: Threshold, smallest: bool = False) -> Tensor:
    """Mask of the scores that are chosen.

    Args:
        scores: float, of any shape.
        index: place of each score, of that shape.
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
    parted = scores.clone() if cpu else scores
    kth = kth_of_rows(parted, k, smallest)
    # no tie to break, mostly; asked on a CPU only, because another device would have to be waited for
    if cpu and not _crosses(parted, kth, k, smallest):
        return Threshold(kth, kth, torch.full(kth.shape, 0 if smallest else EVERYWHERE))
    beyond = scores < kth[:, None] if smallest else scores > kth[:, None]
    ties = scores == kth[:, None]
    missing, found = k - beyond.count_nonzero(1), ties.count_nonzero(1)
    cut = torch.full_like(found, 0 if smallest else EVERYWHERE)
    return Threshold(kth, kth, torch.where(found > missing, place_of(ties, missing, found, smallest), cut))


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
    taken = scores[:k] if smallest else scores[columns - k :]
    place = _place_among_ties(again, columns, kth, int((taken == kth).count_nonzero()), smallest)
    return Threshold(kth[0], kth[0], torch.tensor(place))


def _place_among_ties(
    again: Callable[[int, int], Tensor], columns: int, kth: Tensor, missing: int, smallest: bool
) -> int:
    """As ``place_of``, a piece at a time from the side where ties are taken: millions of floats nearly always tie.

    Scores that a compiler rounded otherwise the first time may not be found again; then all that equal are taken.
    """
    starts = range(0, columns, PIECE)
    for start in reversed(starts) if smallest else starts:
        ties = (again(start, min(start + PIECE, columns)) == kth).nonzero()[:, 0]
        if len(ties) >= missing:
            return start + int(ties[-missing] if smallest else ties[missing - 1] + 1)
        missing -= len(ties)
    return 0 if smallest else EVERYWHERE


def kth_of_rows(scores: Tensor, k: int, smallest: bool = False) -> Tensor:
    """The k-th largest (or smallest) of each row of (rows, columns), of shape (rows,); reorders rows on a CPU."""
    if scores.device.type != "cpu":
        values = scores.topk(k, dim=1, largest=not smallest, sorted=False).values
        return values.amax(1) if smallest else values.amin(1)
    place = k - 1 if smallest else scores.shape[1] - k
    _bits(scores).numpy().partition(place, axis=1)
    return scores[:, place].clone()


def _crosses(scores: Tensor, kth: Tensor, k: int, smallest: bool) -> bool:
    """Whether scores of partitioned rows equal the k-th without being among the k."""
    rest = scores[:, k:] if smallest else scores[:, : scores.shape[1] - k]
    return rest.shape[1] > 0 and bool(((rest.amin(1) if smallest else rest.amax(1)) == kth).any())


def _bits(scores: Tensor) -> Tensor:
    """Integers in the order of floats that are at least 0, NaN after infinity; NumPy is several times as fast there."""
    return scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32)


def place_of(ties: Tensor, missing: Tensor, found: Tensor, smallest: bool) -> Tensor:
    """Column after the last tie that is taken from the front, or of the first that is taken for the smallest."""
    rank = found - missing + 1 if smallest else missing
    # int32 holds the count of any row that numpy or topk takes here
    last = ((ties.cumsum(1, dtype=torch.int32) == rank[:, None]) & ties).to(torch.uint8).argmax(1)
    return last if smallest else last + 1
