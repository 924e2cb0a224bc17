"""The K largest or smallest of n scores, exactly K of them, as a threshold and an index.

A score is chosen if it is beyond the threshold, or if it equals the threshold and its index is below a cut (from the
cut on, for the smallest): one comparison for each score, in whatever pieces they are read.

On a CPU a long row's threshold lies, but for bad luck, between two scores of a sample; what is outside of these is
counted, and only what is inside, a score in fifty or fewer, is put in order (Floyd and Rivest 1975, Communications of
the ACM 18(3), algorithm 489). Where the sample misleads, and in short rows, NumPy's partition finds it, of which the
speed depends on the processor (0.6 to 10 ns a score). Elsewhere ``torch.topk`` does, without waiting for the device.

NaN counts as larger than every number and is never chosen, so that it takes up a place among the K and nothing else.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

EVERYWHERE = 2**62  # a cut after every index
LONG = 2**16  # scores of a row that is worth a sample
PIECE = 2**15  # scores that are compared at a time: they stay in the cache
DEVIATIONS = 3.0  # of the threshold's rank in a sample, to either side: one sample in 370 misses it


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
    if cpu and scores.shape[1] >= LONG:
        found = [threshold_of_row(row, k, smallest) for row in scores]
        return Threshold(*(torch.stack(column) for column in zip(*found, strict=True)))
    reordered = scores.clone() if cpu else scores
    kth = kth_of_rows(reordered, k, smallest)
    # no tie to break, mostly; asked on a CPU only, because another device would have to be waited for
    if cpu and not _crosses(reordered, kth, k, smallest):
        return Threshold(kth, kth, torch.full(kth.shape, 0 if smallest else EVERYWHERE))
    # a NaN is not less, and is beyond the largest
    beyond = scores < kth[:, None] if smallest else ~(scores <= kth[:, None])
    ties = scores == kth[:, None]
    missing, n_ties = k - beyond.count_nonzero(1), ties.count_nonzero(1)
    all_of_them = torch.full_like(n_ties, 0 if smallest else EVERYWHERE)
    cut = torch.where(n_ties > missing, cut_of_ties(ties, missing, n_ties, smallest), all_of_them)
    return Threshold(kth, kth, cut)


# -------------------- long rows on a CPU


def threshold_of_row(scores: Tensor, k: int, smallest: bool = False) -> Threshold:
    """As ``row_thresholds`` of one row on a CPU, of any length.

    Args:
        scores: (columns,), float32 or float64, at least 0; only read.
        k: 1 <= k <= columns.
        smallest: choose the smallest, and of equal ones the last.

    Returns:
        Threshold of shape ().
    """
    columns = len(scores)
    low, high = bracket(scores[sampled_columns(columns)].clone(), k, columns, smallest)
    inside, n_below = torch.empty(columns, dtype=torch.bool), 0
    for start in range(0, columns, PIECE):
        piece = scores[start : start + PIECE]
        less = piece < low
        n_below += count_ones(less.view(torch.uint8))
        # what is less is within the upper bound, and a NaN is neither
        torch.ne(less, piece <= high, out=inside[start : start + PIECE])
    return threshold_inside(scores, inside, n_below, k, smallest, equal=bool(low == high))


def sampled_columns(columns: int) -> slice:
    """A sample of n^(2/3) columns: as long to read as it is to order what a bracket from it holds."""
    stride = max(1, round(columns ** (1 / 3)))
    # a stride that divides the length of a matrix's rows would see a few of its columns only
    while math.gcd(stride, 2 * 3 * 5 * 7) > 1:
        stride += 1
    return slice(stride // 2, columns, stride)


def bracket(sample: Tensor, k: int, columns: int, smallest: bool) -> tuple[Tensor, Tensor]:
    """Two scores between which the k-th of all columns nearly always lies, of shape ().

    Args:
        sample: (sampled,), at least 0, contiguous; its order is lost.
        k: 1 <= k <= columns.
        columns: number of scores that were sampled from.
        smallest: whether the k smallest are asked for.
    """
    n_sampled, share = len(sample), (k if smallest else columns - k) / columns
    spread = DEVIATIONS * math.sqrt(n_sampled * share * (1 - share)) + DEVIATIONS
    first, last = math.floor(share * n_sampled - spread), math.ceil(share * n_sampled + spread)
    _integers(sample).partition(sorted({min(max(rank, 0), n_sampled - 1) for rank in (first, last)}))
    low = sample[first] if first >= 0 else torch.zeros((), dtype=sample.dtype)
    # a NaN is no bound
    bounded = last < n_sampled and not bool(sample[last].isnan())
    return low, sample[last] if bounded else torch.full((), math.inf, dtype=sample.dtype)


def threshold_inside(
    row: Tensor, inside: Tensor, n_below: int, k: int, smallest: bool, equal: bool = False
) -> Threshold:
    """The threshold of a row from the scores in a bracket, or from all of them where it is not among these.

    Args:
        row: (columns,), of which the absolute values are the scores; only read.
        inside: (columns,), bool: which of them are in the bracket.
        n_below: number of scores below it.
        k: 1 <= k <= columns.
        smallest: choose the smallest, and of equal ones the last.
        equal: whether all that are inside are equal.

    Returns:
        Threshold of shape ().
    """
    columns, rank = len(row), (k - 1 if smallest else len(row) - k) - n_below
    # of equal scores, often zeros and many, no list is made
    places = torch.empty(0, dtype=torch.int64) if equal else _places(inside)
    n_inside = count_ones(inside.view(torch.uint8)) if equal else len(places)
    if not 0 <= rank < n_inside:
        places, n_below, rank, equal = torch.arange(columns), 0, rank + n_below, False
    if equal:
        threshold, n_less, n_ties = row[int(inside.numpy().argmax())].abs(), n_below, n_inside
    else:
        candidates = row[places].abs()
        ordered = candidates.clone()
        _integers(ordered).partition(rank)
        threshold = ordered[rank].clone()
        n_less = n_below + int((candidates < threshold).count_nonzero())
        places = places[candidates == threshold]
        n_ties = len(places)
    cut = 0 if smallest else EVERYWHERE
    # NaN is neither less nor equal, and takes its place among the k
    missing = k - (n_less if smallest else columns - n_less - n_ties)
    if 0 < missing < n_ties:
        number = n_ties - missing if smallest else missing - 1
        place = _place_of(inside, number) if equal else int(places[number])
        cut = place if smallest else place + 1
    return Threshold(threshold, threshold, torch.tensor(cut))


def count_ones(flags: Tensor) -> int:
    """How many of (n,) contiguous uint8, zeros and ones, are ones; eight at a time, from a multiple of 8 bytes on."""
    whole = len(flags) // 512 * 512
    count = int(flags[whole:].sum())
    if whole:
        # no byte of the sum of 64 words is above 64
        count += int(flags[:whole].view(torch.int64).view(64, -1).sum(0).view(torch.uint8).sum())
    return count


def _places(flags: Tensor) -> Tensor:
    """Indices of flags that are set; torch takes four times as long for few of many."""
    return torch.from_numpy(flags.numpy().nonzero()[0])


def _place_of(flags: Tensor, number: int) -> int:
    """Where flag 0, 1, ... of those that are set stands."""
    for start in range(0, len(flags), PIECE):
        piece = flags[start : start + PIECE]
        count = int(piece.count_nonzero())
        if number < count:
            return start + int(_places(piece)[number])
        number -= count
    raise AssertionError


def _integers(scores: Tensor) -> Any:
    """Their bits, in the order of floats that are at least 0, NaN after infinity; NumPy sorts these faster."""
    return scores.view(torch.int64 if scores.dtype == torch.float64 else torch.int32).numpy()


# -------------------- rows side by side


def kth_of_rows(scores: Tensor, k: int, smallest: bool = False) -> Tensor:
    """The k-th largest (or smallest) of each row of (rows, columns), of shape (rows,); reorders rows on a CPU."""
    if scores.device.type != "cpu":
        values = scores.topk(k, dim=1, largest=not smallest, sorted=False).values
        return values.amax(1) if smallest else values.amin(1)
    column = k - 1 if smallest else scores.shape[1] - k
    _integers(scores).partition(column, axis=1)
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
