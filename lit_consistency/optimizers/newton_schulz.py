"""The polar factor of a matrix by Newton-Schulz iterations: from U S V^T to nearly U V^T with matrix products alone.

Given up: exactness. After five steps every singular value that was at least 1e-3 of the Frobenius norm lies in
[0.84, 1.13] (quintic: 3e-3, [0.68, 1.21]). In bfloat16 the rounding noise in the null space of a low-rank matrix is
amplified to a third to a half of the result; in float32 it is not.

Source: Amsel et al. 2025, The Polar Express, arXiv 2505.16932, Algorithm 1; Jordan 2024, Muon,
https://github.com/KellerJordan/Muon/blob/f90a42b28e00b8d9d2d05865fe90d9f39abcbcbd/muon.py.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor

Coefficients = Literal["polar_express", "quintic"]


class Iteration(NamedTuple):
    """Polynomials a x + b x^3 + c x^5, one for each step, of which the last is repeated, and the margin on the norm."""

    polynomials: tuple[tuple[float, float, float], ...]
    margin: float


# Algorithm 1 of arXiv 2505.16932: best polynomials for singular values in [1e-3, 1] and what becomes of them.
_POLAR_EXPRESS = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
)
_POLAR_EXPRESS_LIMIT = (1.875, -1.25, 0.375)
# Same place: room for rounding in half precision, in every polynomial but the limit, and on the norm.
_SAFETY = 1.01

ITERATIONS: dict[str, Iteration] = {
    "polar_express": Iteration(
        (*((a / _SAFETY, b / _SAFETY**3, c / _SAFETY**5) for a, b, c in _POLAR_EXPRESS), _POLAR_EXPRESS_LIMIT), _SAFETY
    ),
    # muon.py of the permalink above, function zeropower_via_newtonschulz5
    "quintic": Iteration(((3.4445, -4.7750, 2.0315),), 1.0),
}


def newton_schulz(
    matrix: Tensor,
    *,
    ns_steps: int = 5,
    ns_coefficients: Coefficients = "polar_express",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Nearly the polar factor :math:`U V^T` of :math:`M = U S V^T`.

    .. math::
        X \leftarrow M / \lVert M \rVert_F, \quad X \leftarrow a X + (b A + c A^2) X \text{ with } A = X X^T

    Args:
        matrix: (rows, columns), or (batch, rows, columns); float, only read.
        ns_steps: number of iterations, at least 1.
        ns_coefficients: which polynomials, a key of ``ITERATIONS``.
        dtype: of the iterations; the matrix's own, at least float32, when not given.

    Returns:
        Of the matrix's shape, in float32 or float64: the same for every positive multiple of the matrix, however
        small; zero for a zero matrix; NaN for a matrix that is not finite, and for no other of its batch.
    """
    iteration = ITERATIONS[ns_coefficients]
    wide = matrix.size(-2) <= matrix.size(-1)
    X = _normalize(matrix if wide else matrix.mT, iteration.margin)
    result_dtype = X.dtype
    X = X.to(dtype or result_dtype)
    # one call for a product and a sum, which saves a pass over memory each
    add_product = torch.addmm if X.ndim == 2 else torch.baddbmm
    for step in range(ns_steps):
        a, b, c = iteration.polynomials[min(step, len(iteration.polynomials) - 1)]
        A = X @ X.mT
        polynomial = add_product(A, A, A, beta=b, alpha=c)
        X = add_product(X, polynomial, X, beta=a)
    X = X.to(result_dtype)
    return X if wide else X.mT


def _normalize(matrix: Tensor, margin: float) -> Tensor:
    """Scaled to Frobenius norm 1 / margin in at least float32; no epsilon that a small gradient could fall under."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    # by the largest entry first, so that the squares in the norm neither vanish nor overflow
    largest = matrix.abs().amax(dim=(-2, -1), keepdim=True)
    matrix = matrix / largest.masked_fill(largest == 0, 1)
    # the norm is at least 1 now, but for the zero matrix
    return matrix / (matrix.norm(dim=(-2, -1), keepdim=True) * margin).clamp(min=1)
