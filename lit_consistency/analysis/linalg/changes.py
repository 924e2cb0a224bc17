r"""Numbers of the change D of a weight from W_0 to W = W_0 + D, of any shape; of matrices also in directions.

Shapes: W_0, D (m, n) or any other, N numbers; vectors (m, k), columns orthonormal.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_consistency.analysis.linalg.decompositions import (
    GramSVD,
    KrylovSVD,
    product,
    row_chunks,
    transposed_product,
)


def ratio(number: float, of: float) -> float:
    """NaN where there is nothing to compare with."""
    return number / of if of else math.nan


def entrywise(base: Tensor, change: Tensor, threshold: float) -> dict[str, float]:
    r"""What no decomposition is needed for.

    With :math:`c = \langle W, W_0 \rangle / (|W|_F |W_0|_F)`:

    - ``frobenius`` |D|_F, ``max`` the largest |D_ij|, ``rms`` :math:`|D|_F / \sqrt{N}`;
    - ``sign_likeness`` :math:`(\sum |D_{ij}|)^2 / (N |D|_F^2)`: 1 where all entries have one size, 2 / pi = .64 of a
      Gaussian matrix, the share of the entries that moved where these have one size; ``sign_likeness_moved`` is that of
      the entries that moved;
    - ``base_frobenius``, ``relative_frobenius`` |D|_F / |W_0|_F, ``cosine_distance`` 1 - c, ``angle`` its arc cosine in
      degrees;
    - ``moved``, the share of entries with D != 0, and ``moved_relative``, that of :math:`|D_{ij}| > t |W_{0,ij}|`.

    Args:
        base: W_0.
        change: D.
        threshold: t.
    """
    n = change.numel()
    sums = torch.zeros(6, dtype=torch.float64)
    largest = 0.0
    # row by row in chunks: an embedding's temporaries in float64 would take several times its own memory
    for w, d in zip(row_chunks(base.view(len(base), -1)), row_chunks(change.view(len(change), -1)), strict=True):
        size = d.abs()
        moved = size > 0, size > threshold * w.abs()
        sums += torch.stack(
            [d.square().sum(), size.sum(), w.square().sum(), (w * d).sum(), *map(torch.sum, moved)]
        ).cpu()
        largest = max(largest, float(size.max()))
    squared, absolute, base_squared, dot, moved_at_all, moved_enough = sums.tolist()
    distance, angle = _angle(squared, base_squared, dot)
    return {
        "frobenius": math.sqrt(squared),
        "max": largest,
        "rms": math.sqrt(squared / n),
        "sign_likeness": ratio(absolute**2, n * squared),
        "sign_likeness_moved": ratio(absolute**2, moved_at_all * squared),
        "base_frobenius": math.sqrt(base_squared),
        "relative_frobenius": ratio(math.sqrt(squared), math.sqrt(base_squared)),
        "cosine_distance": distance,
        "angle": angle,
        "moved": moved_at_all / n,
        "moved_relative": moved_enough / n,
    }


def _angle(squared: float, base_squared: float, dot: float) -> tuple[float, float]:
    """Cosine distance and angle in degrees, from the parts of D along W_0 and across it.

    1 - c of the sums themselves would lose all digits of a small update: c is 1 - 1e-10 where |D| is 1e-5 |W_0|.
    """
    if base_squared == 0:
        return math.nan, math.nan
    along = math.sqrt(base_squared) + dot / math.sqrt(base_squared)
    across = math.sqrt(max(squared - dot**2 / base_squared, 0.0))
    if along == across == 0:  # W = 0
        return math.nan, math.nan
    angle = math.atan2(across, along)
    return 2 * math.sin(angle / 2) ** 2, math.degrees(angle)


def overlap(change: Tensor, left: Tensor, right: Tensor) -> Mapping[str, float]:
    r"""Share of the energy of D in the span of given directions, and how often that is what a random D has there.

    - ``overlap_left`` :math:`|U^T D|_F^2 / |D|_F^2`, of a D of independent entries k / m;
    - ``overlap_right`` :math:`|D V|_F^2 / |D|_F^2`, k / n;
    - ``overlap_both`` :math:`|U^T D V|_F^2 / |D|_F^2`, k^2 / (m n).

    Args:
        change: D (m, n).
        left: U (m, k).
        right: V (n, k).
    """
    energy = float(torch.linalg.vector_norm(change, dtype=torch.float64)) ** 2
    through = product(change, right)  # (m, k); D between both sides is U^T of it
    shares = {
        "left": (transposed_product(change, left), left.size(1) / left.size(0)),
        "right": (through, right.size(1) / right.size(0)),
        "both": (left.T @ through, left.size(1) * right.size(1) / change.numel()),
    }
    numbers = {f"overlap_{side}": ratio(float(part.square().sum()), energy) for side, (part, _) in shares.items()}
    over = {f"overlap_{side}_ratio": ratio(numbers[f"overlap_{side}"], r) for side, (_, r) in shares.items()}
    return {**numbers, **over}


def intruder_dimensions(base: GramSVD, model: GramSVD | KrylovSVD, k: int, below: float) -> int:
    r"""How many of the k first left singular vectors u_j of W are unlike all those of W_0: max_i |<u_j, u_i^0>| < eps.

    Source: Shuttleworth et al. 2024, LoRA vs Full Fine-tuning, arXiv 2410.21228, definition 1 and algorithm 1. There
    k is 10 and eps .5 mostly. Given up, as there: vectors of equal singular values are one of many choices.
    """
    cosines = base.left_cosines(model.left(k)).abs()
    if base.rank == 0:  # nothing is like a base of zeros
        return cosines.size(1)
    return int((cosines.amax(0) < below).sum())


def weighted_norm(matrix: Tensor, second_moment: Tensor) -> float:
    r""":math:`|D C^{1/2}|_F = \sqrt{tr(D C D^T)} = \sqrt{E |D x|_2^2}` with C = E[x x^T] (n, n) float64."""
    total = sum(float(((rows @ second_moment) * rows).sum()) for rows in row_chunks(matrix))
    return math.sqrt(max(total, 0.0))  # C of few inputs has eigenvalues that are -0 up to rounding


def bounds_used(change: Tensor, inputs: Tensor, operator: float, largest: float) -> dict[str, float]:
    """How much of two bounds of D x inputs use: 1 where every input is the worst one.

    - ``operator_bound_used`` E|D x|_2 / (|D|_op E|x|_2);
    - ``max_bound_used`` E|D x|_inf / (|D|_max E|x|_1).

    Args:
        change: D (m, n).
        inputs: x, (S, n).
        operator: |D|_op.
        largest: |D|_max.
    """
    x = inputs.double()
    squared = x.new_zeros(len(x))
    peak = x.new_zeros(len(x))
    for rows in row_chunks(change):  # of a head, all outputs at once are positions x vocabulary
        out = x @ rows.T
        squared += out.square().sum(1)
        peak = torch.maximum(peak, out.abs().amax(1))
    length, total = (float(torch.linalg.vector_norm(x, order, dim=1).mean()) for order in (2, 1))
    return {
        "operator_bound_used": ratio(float(squared.sqrt().mean()), operator * length),
        "max_bound_used": ratio(float(peak.mean()), largest * total),
    }


def row_lengths(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """|row|_2 and |row|_inf of every row, (m,) float64 both: D x of a matrix whose input picks a row."""
    pairs = [(torch.linalg.vector_norm(rows, dim=1), rows.abs().amax(1)) for rows in row_chunks(matrix)]
    return torch.cat([length for length, _ in pairs]), torch.cat([largest for _, largest in pairs])
