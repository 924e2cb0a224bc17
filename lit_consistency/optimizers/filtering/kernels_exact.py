"""MoFO's kernels for exact thresholds: the digits of a block's k-th score, and the index where its ties end.

The score is found by the digits of its bits, from histograms of 256 counts: four passes over the scores, of which the
first also moves the means and the later ones count only what agrees with the digits before. Where fewer of the scores
that equal it are kept than there are, two more launches find the last of them. No result depends on the order in which
programs run.

Given up: a pass less by histograms of more counts, which Triton keeps in registers.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl

from lit_consistency.optimizers.filtering.kernels import (
    KEPT,
    MEAN,
    NUMEL,
    SEGMENT,
    SEGMENT_OF,
    SQUARE,
    TILE,
    field_of,
    means_of,
    pointer_of,
    score_of,
    segment_of,
    word_of,
)

DIGITS = tl.constexpr(4)
BINS = tl.constexpr(256)
SPARSE = tl.constexpr(64)  # a tile in which one score in so many counts is counted in memory, the others in registers
CHUNK = tl.constexpr(1024)  # segments at a time


@triton.jit
def pick_digit(
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
    block, start, end, numel = segment_of(table, segments, aligned)
    smallest: tl.constexpr = filter == "complement"
    reads_square: tl.constexpr = filter == "adam_update" or filter == "second_moment"
    shift = 8 * (DIGITS - 1 - digit)
    kept = field_of(table, block, KEPT).to(tl.int32)
    prefix = kept * 0
    # every program looks for itself: a launch less, and the histograms are in the cache
    for i in range(digit):
        prefix, kept, _ = pick_digit(counts, block, prefix, kept, i, smallest)
    row = counts + (block * DIGITS + digit) * BINS
    histogram = tl.zeros([BINS], tl.int32)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = means_of(table, block, index, inside, grad_type, aligned, not first, not first)
        if first:
            tl.store(pointer_of(table, block, MEAN, tl.float32, aligned) + index, mean, mask=inside)
            if reads_square:
                tl.store(pointer_of(table, block, SQUARE, tl.float32, aligned) + index, square, mask=inside)
        word = word_of(score_of(table, block, index, grad, mean, square, filter))
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
    block, start, end, numel = segment_of(table, segments, aligned)
    smallest: tl.constexpr = filter == "complement"
    kept = field_of(table, block, KEPT).to(tl.int32)
    word, here = kept * 0, kept
    for i in range(DIGITS):
        word, kept, here = pick_digit(counts, block, word, kept, i, smallest)
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
            grad, mean, square = means_of(table, block, index, inside, grad_type, aligned, True, True)
            score = score_of(table, block, index, grad, mean, square, filter)
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
        numel, kth = field_of(table, block, NUMEL).to(tl.int32), tl.load(kths + block)
        n_segments, of_block = tl.cdiv(numel, SEGMENT), ties + field_of(table, block, SEGMENT_OF)
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
            grad, mean, square = means_of(table, block, index, inside, grad_type, False, True, True)
            tie = (inside & (score_of(table, block, index, grad, mean, square, filter) == kth)).to(tl.int32)
            place += tl.sum((inside & (before + tl.cumsum(tie, 0) < rank)).to(tl.int32))
            before += tl.sum(tie)
        tl.store(cuts + block, place if smallest else place + 1)
