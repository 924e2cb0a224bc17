"""MoFO's kernels in Triton: one launch moves every block of a parameter group, or finds all of their thresholds.

A launch reads a table in device memory with a row for each block: addresses, sizes, the numbers of the step. A program
of most kernels takes one segment of one block; segments are numbered block after block.

The k-th score of a block is found on the scores' bits, which have the order of the floats because scores are at least
0. In a sample, which stays in the registers of one program, by bisection: 31 counts. In a whole block by its digits,
from histograms of 256 counts: four passes over the scores, of which the first also moves the mean and the later ones
count only what agrees with the digits before. NaN comes after infinity and is never chosen, as in ``threshold.py``.

Fused multiply-adds are written out, so that all kernels round a mean in the same way and a threshold of a mean that is
yet to move holds for the moved one. Only this file imports Triton, which need not be installed.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

# columns of the table: byte addresses of the block's first coordinate in four tensors
PARAM, GRAD, MEAN, SQUARE = (tl.constexpr(i) for i in range(4))
# coordinates of the block, its first one in the parameter, how many of the scores are kept, its first segment
NUMEL, BEGIN, KEPT, SEGMENT_OF = (tl.constexpr(i) for i in range(4, 8))
# the sample: first coordinate in the block, distance, number; the two words of the random filter's key
FIRST, STRIDE, SAMPLED, KEY_LOW, KEY_HIGH = (tl.constexpr(i) for i in range(8, 13))
# bits of float32 numbers, in the order of passes.Coefficients
ONE_MINUS_BETA1, BETA2, ONE_MINUS_BETA2, STEP_SIZE, SHRINKAGE, EPS, SQUARE_SCALE = (
    tl.constexpr(i) for i in range(13, 20)
)
FIELDS = tl.constexpr(20)
SEGMENT = tl.constexpr(2**14)  # coordinates of a program
TILE = tl.constexpr(2**12)  # of them at a time
DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)
ABSOLUTE = tl.constexpr(0x7FFFFFFF)
SPARSE = tl.constexpr(64)  # a tile in which one score in so many counts is counted in memory, the others in registers
CHUNK = tl.constexpr(1024)  # segments at a time


# -------------------- a block's row


@triton.jit
def _field(table: tl.tensor, block: tl.tensor, column: tl.constexpr) -> Any:
    return tl.load(table + block * FIELDS + column)


@triton.jit
def _number(table: tl.tensor, block: tl.tensor, column: tl.constexpr) -> Any:
    return _field(table, block, column).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def _size(table: tl.tensor, block: tl.tensor, aligned: tl.constexpr) -> Any:
    """Coordinates of the block."""
    numel = _field(table, block, NUMEL).to(tl.int32)
    # changes no number: a compiler that sees it, and the same of the pointers, loads four numbers at once
    if aligned:
        numel = (numel >> 4) * 16
    return numel


@triton.jit
def _pointer(
    table: tl.tensor, block: tl.tensor, column: tl.constexpr, dtype: tl.constexpr, aligned: tl.constexpr
) -> Any:
    pointer = _field(table, block, column).to(tl.pointer_type(dtype))
    if aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def _segment(table: tl.tensor, segments: tl.tensor, aligned: tl.constexpr) -> Any:
    """Block of this program, its range of coordinates in it, and the block's size, which bounds the last tile."""
    block = tl.load(segments + 2 * tl.program_id(0))
    # the compiler looks through a product, not through a load
    start = tl.load(segments + 2 * tl.program_id(0) + 1) * SEGMENT
    numel = _size(table, block, aligned)
    return block, start, tl.minimum(start + SEGMENT, numel), numel


# -------------------- the formula, as in passes.py


@triton.jit
def _means(
    table: tl.tensor,
    block: tl.tensor,
    index: tl.tensor,
    inside: tl.tensor,
    grad_type: tl.constexpr,
    aligned: tl.constexpr,
    mean_moved: tl.constexpr,
    square_moved: tl.constexpr,
) -> Any:
    """Gradient and both means with it; what the caller does not use is not loaded."""
    grad = tl.load(_pointer(table, block, GRAD, grad_type, aligned) + index, mask=inside, other=0).to(tl.float32)
    mean = tl.load(_pointer(table, block, MEAN, tl.float32, aligned) + index, mask=inside, other=0)
    square = tl.load(_pointer(table, block, SQUARE, tl.float32, aligned) + index, mask=inside, other=0)
    if not mean_moved:
        mean = tl.fma(grad - mean, _number(table, block, ONE_MINUS_BETA1), mean)
    if not square_moved:
        decayed = square * _number(table, block, BETA2)
        square = tl.fma(grad * grad, _number(table, block, ONE_MINUS_BETA2), decayed)
    return grad, mean, square


@triton.jit
def _mix(word: tl.tensor) -> Any:
    for _ in tl.static_range(2):
        word = (word ^ (word >> 16)) * 0x119DE1F3
    return word ^ (word >> 16)


@triton.jit
def _score(
    table: tl.tensor,
    block: tl.tensor,
    index: tl.tensor,
    grad: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    filter: tl.constexpr,
) -> Any:
    score = tl.abs(mean)
    if filter == "gradient":
        score = tl.abs(grad)
    elif filter == "second_moment":
        score = tl.abs(square)
    elif filter == "adam_update":
        # rounded as torch does, so that a threshold found by the one holds for the other
        root = tl.sqrt_rn(square * _number(table, block, SQUARE_SCALE))
        score = tl.div_rn(score, root + _number(table, block, EPS))
    elif filter == "random":
        place = index.to(tl.int64) + _field(table, block, BEGIN)
        low = _mix((place ^ _field(table, block, KEY_LOW)).to(tl.uint32))
        high = low.to(tl.int64) + (place >> 32) + _field(table, block, KEY_HIGH)
        score = (_mix(high.to(tl.uint32)) >> 8).to(tl.float32) * (1.0 / 2**24)
    return score


@triton.jit
def _word(score: tl.tensor) -> Any:
    """Bits of a score that is at least 0 or NaN, int32 in the same order."""
    return score.to(tl.int32, bitcast=True) & ABSOLUTE


@triton.jit
def _chosen(score: tl.tensor, index: tl.tensor, kth: tl.tensor, cut: tl.tensor, smallest: tl.constexpr) -> Any:
    if smallest:
        chosen = (score < kth) | ((score == kth) & (index >= cut))
    else:
        chosen = (score > kth) | ((score == kth) & (index < cut))
    return chosen


@triton.jit
def step_kernel(
    table: tl.tensor,
    segments: tl.tensor,
    kths: tl.tensor,
    cuts: tl.tensor,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
    aligned: tl.constexpr,
    decay_unselected: tl.constexpr,
    mean_moved: tl.constexpr,
    square_moved: tl.constexpr,
) -> None:
    """The step with known thresholds: (blocks,) float32 and, in the block, int32; or what is left of it."""
    block, start, end, numel = _segment(table, segments, aligned)
    kth, cut = tl.load(kths + block), tl.load(cuts + block)
    step_size, shrinkage = _number(table, block, STEP_SIZE), _number(table, block, SHRINKAGE)
    eps, square_scale = _number(table, block, EPS), _number(table, block, SQUARE_SCALE)
    params = _pointer(table, block, PARAM, tl.float32, aligned)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = _means(table, block, index, inside, grad_type, aligned, mean_moved, square_moved)
        if not mean_moved:
            tl.store(_pointer(table, block, MEAN, tl.float32, aligned) + index, mean, mask=inside)
        if not square_moved:
            tl.store(_pointer(table, block, SQUARE, tl.float32, aligned) + index, square, mask=inside)
        score = _score(table, block, index, grad, mean, square, filter)
        chosen = _chosen(score, index, kth, cut, filter == "complement")
        old = tl.load(params + index, mask=inside, other=0)
        shrunk = old * shrinkage
        new = shrunk - step_size * mean / (tl.sqrt(square * square_scale) + eps)
        left = shrunk if decay_unselected else old
        tl.store(params + index, tl.where(chosen, new, left), mask=inside)


@triton.jit
def count_kernel(
    table: tl.tensor,
    segments: tl.tensor,
    kths: tl.tensor,
    cuts: tl.tensor,
    totals: tl.tensor,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
    aligned: tl.constexpr,
) -> None:
    """Add to ``totals``, int64 (2,), how many coordinates were chosen, and how many of these have a non-zero mean."""
    block, start, end, numel = _segment(table, segments, aligned)
    kth, cut = tl.load(kths + block), tl.load(cuts + block)
    n_chosen = tl.zeros([TILE], tl.int32)
    n_moved = tl.zeros([TILE], tl.int32)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = _means(table, block, index, inside, grad_type, aligned, True, True)
        score = _score(table, block, index, grad, mean, square, filter)
        chosen = inside & _chosen(score, index, kth, cut, filter == "complement")
        n_chosen += chosen.to(tl.int32)
        n_moved += (chosen & (mean != 0)).to(tl.int32)
    tl.atomic_add(totals, tl.sum(n_chosen).to(tl.int64))
    tl.atomic_add(totals + 1, tl.sum(n_moved).to(tl.int64))


# -------------------- thresholds from samples


@triton.jit
def sample_kernel(
    table: tl.tensor,
    kths: tl.tensor,
    cuts: tl.tensor,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
    sample: tl.constexpr,
) -> None:
    """The threshold of a block from its sample of at most ``sample`` coordinates, a power of 2; a program a block."""
    block = tl.program_id(0)
    smallest: tl.constexpr = filter == "complement"
    numel, kept = _field(table, block, NUMEL).to(tl.int32), _field(table, block, KEPT).to(tl.int32)
    sampled, first = _field(table, block, SAMPLED).to(tl.int32), _field(table, block, FIRST).to(tl.int32)
    stride = _field(table, block, STRIDE).to(tl.int32)
    column = tl.arange(0, sample)
    inside = column < sampled
    index = first + column * stride
    grad, mean, square = _means(table, block, index, inside, grad_type, False, False, False)
    # below every score, and so in none of the counts
    word = tl.where(inside, _word(_score(table, block, index, grad, mean, square, filter)), -1)
    at_least = sampled - kept + 1 if smallest else kept
    kth = at_least * 0
    for i in range(31):
        trial = kth | (1 << (30 - i))
        kth = tl.where(tl.sum((word >= trial).to(tl.int32)) >= at_least, trial, kth)
    larger, ties = tl.sum((word > kth).to(tl.int32)), tl.sum((word == kth).to(tl.int32))
    missing = kept - (sampled - larger - ties if smallest else larger)
    rank = ties - missing + 1 if smallest else missing
    # column of the tie of this rank: the most columns that hold fewer ties
    place = kth * 0
    for i in range(31):
        trial = place | (1 << (30 - i))
        n_before = tl.sum(((word == kth) & (column < trial)).to(tl.int32))
        place = tl.where((trial < sample) & (n_before < rank), trial, place)
    # coordinates between two of the sample go with the one before
    last = place - 1 if smallest else place
    everything = 0 if smallest else numel
    tl.store(kths + block, kth.to(tl.float32, bitcast=True))
    tl.store(cuts + block, tl.where(missing < ties, first + last * stride + 1, everything))


# -------------------- exact thresholds


@triton.jit
def _pick(
    counts: tl.tensor,
    block: tl.tensor,
    prefix: tl.tensor,
    kept: tl.tensor,
    digit: tl.tensor,
    smallest: tl.constexpr,
) -> Any:
    """The digit of the kept-th score: digits so far, how many are kept of those that have them, how many have them."""
    bins = tl.arange(0, BINS)
    order = bins if smallest else BINS - 1 - bins
    row = tl.load(counts + (block * DIGITS + digit) * BINS + order)
    place = tl.sum((tl.cumsum(row, 0) < kept).to(tl.int32))
    before = tl.sum(tl.where(bins < place, row, 0))
    here = tl.sum(tl.where(bins == place, row, 0))
    return prefix * BINS + (place if smallest else BINS - 1 - place), kept - before, here


@triton.jit(do_not_specialize=["digit"])
def digit_kernel(
    table: tl.tensor,
    segments: tl.tensor,
    counts: tl.tensor,
    digit: tl.tensor,
    first: tl.constexpr,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
    aligned: tl.constexpr,
) -> None:
    """Add a digit of the scores to ``counts``, int32 (blocks, DIGITS, BINS); the highest is 0, where the means move."""
    block, start, end, numel = _segment(table, segments, aligned)
    smallest: tl.constexpr = filter == "complement"
    reads_square: tl.constexpr = filter == "adam_update" or filter == "second_moment"
    shift = 8 * (DIGITS - 1 - digit)
    kept = _field(table, block, KEPT).to(tl.int32)
    prefix = kept * 0
    # every program looks for itself: a launch less, and the histograms are in the cache
    for i in range(digit):
        prefix, kept, _ = _pick(counts, block, prefix, kept, i, smallest)
    row = counts + (block * DIGITS + digit) * BINS
    histogram = tl.zeros([BINS], tl.int32)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = _means(table, block, index, inside, grad_type, aligned, not first, not first)
        if first:
            tl.store(_pointer(table, block, MEAN, tl.float32, aligned) + index, mean, mask=inside)
            if reads_square:
                tl.store(_pointer(table, block, SQUARE, tl.float32, aligned) + index, square, mask=inside)
        word = _word(_score(table, block, index, grad, mean, square, filter))
        of_word = (word >> shift) & (BINS - 1)
        if first:
            histogram += tl.histogram(of_word, BINS, inside)
        else:
            follows = inside & ((word >> (shift + 8)) == prefix)
            n_follow = tl.sum(follows.to(tl.int32))
            if n_follow * SPARSE >= TILE:
                histogram += tl.histogram(of_word, BINS, follows)
            elif n_follow > 0:
                tl.atomic_add(row + of_word, 1, mask=follows)
    tl.atomic_add(row + tl.arange(0, BINS), histogram, mask=histogram > 0)


@triton.jit
def ties_kernel(
    table: tl.tensor,
    segments: tl.tensor,
    counts: tl.tensor,
    kths: tl.tensor,
    cuts: tl.tensor,
    ranks: tl.tensor,
    ties: tl.tensor,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
    aligned: tl.constexpr,
) -> None:
    """Thresholds from all digits; where not all that equal it are kept, which tie is the last, and ties by segment."""
    block, start, end, numel = _segment(table, segments, aligned)
    smallest: tl.constexpr = filter == "complement"
    kept = _field(table, block, KEPT).to(tl.int32)
    word, here = kept * 0, kept
    for i in range(DIGITS):
        word, kept, here = _pick(counts, block, word, kept, i, smallest)
    kth = word.to(tl.float32, bitcast=True)
    divided = kept < here
    if start == 0:
        everything = 0 if smallest else numel
        tl.store(kths + block, kth)
        tl.store(cuts + block, everything)
        tl.store(ranks + block, tl.where(divided, here - kept + 1 if smallest else kept, 0))
    if divided:
        n_ties = tl.zeros([TILE], tl.int32)
        for offset in range(start, end, TILE):
            index = offset + tl.arange(0, TILE)
            inside = index < numel
            grad, mean, square = _means(table, block, index, inside, grad_type, aligned, True, True)
            score = _score(table, block, index, grad, mean, square, filter)
            n_ties += (inside & (score == kth)).to(tl.int32)
        tl.store(ties + tl.program_id(0), tl.sum(n_ties))


@triton.jit
def cut_kernel(
    table: tl.tensor,
    kths: tl.tensor,
    cuts: tl.tensor,
    ranks: tl.tensor,
    ties: tl.tensor,
    filter: tl.constexpr,
    grad_type: tl.constexpr,
) -> None:
    """The coordinate of the tie of a block's rank, or the one after it; a program a block."""
    block = tl.program_id(0)
    smallest: tl.constexpr = filter == "complement"
    rank = tl.load(ranks + block)
    if rank > 0:
        numel, kth = _field(table, block, NUMEL).to(tl.int32), tl.load(kths + block)
        n_segments, of_block = tl.cdiv(numel, SEGMENT), ties + _field(table, block, SEGMENT_OF)
        # segments that end before the tie, and ties in them
        segment, before, seen = rank * 0, rank * 0, rank * 0
        for chunk in range(0, n_segments, CHUNK):
            number = chunk + tl.arange(0, CHUNK)
            inside = number < n_segments
            n_ties = tl.load(of_block + number, mask=inside, other=0)
            ended = inside & (seen + tl.cumsum(n_ties, 0) < rank)
            segment += tl.sum(ended.to(tl.int32))
            before += tl.sum(tl.where(ended, n_ties, 0))
            seen += tl.sum(n_ties)
        start = segment * SEGMENT
        end, place = tl.minimum(start + SEGMENT, numel), start
        for offset in range(start, end, TILE):
            index = offset + tl.arange(0, TILE)
            inside = index < numel
            grad, mean, square = _means(table, block, index, inside, grad_type, False, True, True)
            tie = (inside & (_score(table, block, index, grad, mean, square, filter) == kth)).to(tl.int32)
            place += tl.sum((inside & (before + tl.cumsum(tie, 0) < rank)).to(tl.int32))
            before += tl.sum(tie)
        tl.store(cuts + block, place if smallest else place + 1)
