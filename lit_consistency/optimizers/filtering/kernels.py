"""MoFO's kernels in Triton: one launch moves every block of a parameter group, or finds all of their thresholds.

A launch reads a table in device memory with a row for each block: addresses, sizes, the numbers of the step. A program
of most kernels takes one segment of one block; segments are numbered block after block.

The k-th score of a sample, which stays in the registers of one program, is found by 31 counts that bisect the scores'
bits; these have the order of the floats because scores are at least 0. NaN comes after infinity and is never chosen, as
in ``threshold.py``. For exact thresholds see ``kernels_exact.py``.

Fused multiply-adds are written out, so that all kernels round a mean in the same way and a threshold of a mean that is
yet to move holds for the moved one. Only these two files import Triton, which need not be installed.
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
ABSOLUTE = tl.constexpr(0x7FFFFFFF)


# -------------------- a block's row


@triton.jit
def field_of(table: tl.tensor, block: tl.tensor, column: tl.constexpr) -> Any:
    """An int64 of the block's row."""
    return tl.load(table + block * FIELDS + column)


@triton.jit
def number_of(table: tl.tensor, block: tl.tensor, column: tl.constexpr) -> Any:
    """A float32 of the block's row."""
    return field_of(table, block, column).to(tl.int32).to(tl.float32, bitcast=True)


@triton.jit
def size_of(table: tl.tensor, block: tl.tensor, aligned: tl.constexpr) -> Any:
    """Coordinates of the block."""
    numel = field_of(table, block, NUMEL).to(tl.int32)
    # changes no number: a compiler that sees it, and the same of the pointers, loads four numbers at once
    if aligned:
        numel = (numel >> 4) * 16
    return numel


@triton.jit
def pointer_of(
    table: tl.tensor, block: tl.tensor, column: tl.constexpr, dtype: tl.constexpr, aligned: tl.constexpr
) -> Any:
    """Of the block's first coordinate in one of its tensors."""
    pointer = field_of(table, block, column).to(tl.pointer_type(dtype))
    if aligned:
        pointer = tl.multiple_of(pointer, 16)
    return pointer


@triton.jit
def segment_of(table: tl.tensor, segments: tl.tensor, aligned: tl.constexpr) -> Any:
    """Block of this program, its range of coordinates in it, and the block's size, which bounds the last tile."""
    block = tl.load(segments + 2 * tl.program_id(0))
    # the compiler looks through a product, not through a load
    start = tl.load(segments + 2 * tl.program_id(0) + 1) * SEGMENT
    numel = size_of(table, block, aligned)
    return block, start, tl.minimum(start + SEGMENT, numel), numel


# -------------------- the formula, as in passes.py


@triton.jit
def means_of(
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
    grad = tl.load(pointer_of(table, block, GRAD, grad_type, aligned) + index, mask=inside, other=0).to(tl.float32)
    mean = tl.load(pointer_of(table, block, MEAN, tl.float32, aligned) + index, mask=inside, other=0)
    square = tl.load(pointer_of(table, block, SQUARE, tl.float32, aligned) + index, mask=inside, other=0)
    if not mean_moved:
        mean = tl.fma(grad - mean, number_of(table, block, ONE_MINUS_BETA1), mean)
    if not square_moved:
        decayed = square * number_of(table, block, BETA2)
        square = tl.fma(grad * grad, number_of(table, block, ONE_MINUS_BETA2), decayed)
    return grad, mean, square


@triton.jit
def mix(word: tl.tensor) -> Any:
    """The hash of ``passes.py``, of uint32."""
    for _ in tl.static_range(2):
        word = (word ^ (word >> 16)) * 0x119DE1F3
    return word ^ (word >> 16)


@triton.jit
def score_of(
    table: tl.tensor,
    block: tl.tensor,
    index: tl.tensor,
    grad: tl.tensor,
    mean: tl.tensor,
    square: tl.tensor,
    filter: tl.constexpr,
) -> Any:
    """What the filter ranks coordinates by; ``index`` is theirs in the block."""
    score = tl.abs(mean)
    if filter == "gradient":
        score = tl.abs(grad)
    elif filter == "second_moment":
        score = tl.abs(square)
    elif filter == "adam_update":
        # rounded as torch does, so that a threshold found by the one holds for the other
        root = tl.sqrt_rn(square * number_of(table, block, SQUARE_SCALE))
        score = tl.div_rn(score, root + number_of(table, block, EPS))
    elif filter == "random":
        place = index.to(tl.int64) + field_of(table, block, BEGIN)
        low = mix((place ^ field_of(table, block, KEY_LOW)).to(tl.uint32))
        high = low.to(tl.int64) + (place >> 32) + field_of(table, block, KEY_HIGH)
        score = (mix(high.to(tl.uint32)) >> 8).to(tl.float32) * (1.0 / 2**24)
    return score


@triton.jit
def word_of(score: tl.tensor) -> Any:
    """Bits of a score that is at least 0 or NaN, int32 in the same order."""
    return score.to(tl.int32, bitcast=True) & ABSOLUTE


@triton.jit
def is_chosen(score: tl.tensor, index: tl.tensor, kth: tl.tensor, cut: tl.tensor, smallest: tl.constexpr) -> Any:
    """As ``threshold.chosen``; a NaN never is."""
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
    block, start, end, numel = segment_of(table, segments, aligned)
    kth, cut = tl.load(kths + block), tl.load(cuts + block)
    step_size, shrinkage = number_of(table, block, STEP_SIZE), number_of(table, block, SHRINKAGE)
    eps, square_scale = number_of(table, block, EPS), number_of(table, block, SQUARE_SCALE)
    params = pointer_of(table, block, PARAM, tl.float32, aligned)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = means_of(table, block, index, inside, grad_type, aligned, mean_moved, square_moved)
        if not mean_moved:
            tl.store(pointer_of(table, block, MEAN, tl.float32, aligned) + index, mean, mask=inside)
        if not square_moved:
            tl.store(pointer_of(table, block, SQUARE, tl.float32, aligned) + index, square, mask=inside)
        score = score_of(table, block, index, grad, mean, square, filter)
        chosen = is_chosen(score, index, kth, cut, filter == "complement")
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
    block, start, end, numel = segment_of(table, segments, aligned)
    kth, cut = tl.load(kths + block), tl.load(cuts + block)
    n_chosen = tl.zeros([TILE], tl.int32)
    n_moved = tl.zeros([TILE], tl.int32)
    for offset in range(start, end, TILE):
        index = offset + tl.arange(0, TILE)
        inside = index < numel
        grad, mean, square = means_of(table, block, index, inside, grad_type, aligned, True, True)
        score = score_of(table, block, index, grad, mean, square, filter)
        chosen = inside & is_chosen(score, index, kth, cut, filter == "complement")
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
    numel, kept = field_of(table, block, NUMEL).to(tl.int32), field_of(table, block, KEPT).to(tl.int32)
    sampled, first = field_of(table, block, SAMPLED).to(tl.int32), field_of(table, block, FIRST).to(tl.int32)
    stride = field_of(table, block, STRIDE).to(tl.int32)
    column = tl.arange(0, sample)
    inside = column < sampled
    index = first + column * stride
    grad, mean, square = means_of(table, block, index, inside, grad_type, False, False, False)
    # below every score, and so in none of the counts
    word = tl.where(inside, word_of(score_of(table, block, index, grad, mean, square, filter)), -1)
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
