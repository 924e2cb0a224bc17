"""The polar factor of a matrix by Newton-Schulz iterations: from U S V^T to nearly U V^T with matrix products alone.

Two forms of the same polynomial: ``direct`` iterates on the matrix, ``gram`` on its Gram matrix, whose products are
small where one side is short, and finishes with one product. A large matrix on a CPU goes to ``newton_schulz_cpu.py``.

Given up: exactness. After five steps every singular value that was at least 1e-3 of the Frobenius norm lies in
[0.84, 1.13] (quintic: 3e-3, [0.68, 1.21]). In bfloat16 the rounding noise in the null space of a low-rank matrix is
amplified to a third to a half of the result; in float32 it is not.

Source: Amsel et al. 2025, The Polar Express, arXiv 2505.16932, Algorithm 1; Jordan 2024, Muon,
https://github.com/KellerJordan/Muon/blob/f90a42b28e00b8d9d2d05865fe90d9f39abcbcbd/muon.py; Gram form and its restart in
half precision: Dao-AILab 2026, Gram Newton-Schulz, https://github.com/Dao-AILab/gram-newton-schulz.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from lit_consistency.optimizers.core.workspace import Workspace
from lit_consistency.optimizers.orthogonal.newton_schulz_cpu import FULL_PRECISION, LARGEST, SMALLEST, add_polar_

Coefficients = Literal["polar_express", "quintic"]
Form = Literal["direct", "gram"]

# A half-precision Gram matrix drifts away from its matrix, so it is formed anew. The Gram source does so after two
# iterations in float16. In bfloat16, measured on spectra over one to five decades, every three keep the largest
# singular value at 1.13, where two make it 1.48; the error is up to 3.5 times that of the direct form, below 0.05.
RESTART_EVERY = 3


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
    form: Form = "direct",
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Nearly the polar factor :math:`U V^T` of :math:`M = U S V^T`.

    .. math::
        X_0 = M / \lVert M \rVert_F, \quad A_k = X_k X_k^T, \quad P_k = a_k I + b_k A_k + c_k A_k^2, \quad
        X_{k+1} = P_k X_k

    In the form ``gram`` the matrices of the iteration are functions of :math:`A_0` and commute:
    :math:`A_{k+1} = P_k^2 A_k` and :math:`X_K = P_{K-1} \cdots P_0 X_0`.

    Args:
        matrix: (rows, columns), or (batch, rows, columns); float, only read.
        ns_steps: number of iterations K, at least 1.
        ns_coefficients: which polynomials, a key of ``ITERATIONS``.
        form: ``direct`` or ``gram``.
        dtype: of the iterations; the matrix's own, at least float32, when not given.

    Returns:
        Of the matrix's shape, in float32 or float64: the same for every positive multiple of the matrix, however
        small; zero for a zero matrix; NaN for a matrix that is not finite, and for no other of its batch.
    """
    result_dtype = torch.promote_types(matrix.dtype, torch.float32)
    dtype = dtype or result_dtype
    if matrix.device.type == "cpu" and matrix.ndim == 2:
        result = torch.empty_like(matrix, dtype=result_dtype)
        half = dtype not in FULL_PRECISION
        given = normalize(matrix, ITERATIONS[ns_coefficients].margin) if half else matrix
        options: dict[str, Any] = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "form": form}
        if add_newton_schulz_(result, given.to(dtype), beta=0.0, alpha=1.0, workspace=Workspace(), **options):
            return result
    polynomials, margin = _polynomials(ns_coefficients, ns_steps)
    wide = matrix.size(-2) <= matrix.size(-1)
    X = normalize(matrix if wide else matrix.mT, margin).to(dtype)
    X = (_gram if form == "gram" else _direct)(X, polynomials).to(result_dtype)
    return X if wide else X.mT


def add_newton_schulz_(
    target: Tensor,
    matrix: Tensor,
    *,
    beta: float,
    alpha: float,
    ns_steps: int,
    ns_coefficients: Coefficients,
    form: Form,
    workspace: Workspace,
) -> bool:
    r"""``newton_schulz`` of a matrix on a CPU, times ``alpha``, added to ``beta`` times the target.

    Args:
        target: (rows, columns), float32 or float64, changed in place; with ``beta`` 0 its old content is not read.
        matrix: of the target's shape, in the dtype of the iterations, and in half precision already divided by its
            norm and the margin; only read, and no part of the target.
        beta: factor on the target.
        alpha: factor on the nearly orthogonal matrix.
        ns_steps: see ``newton_schulz``, as the next two.
        ns_coefficients: names of polynomials.
        form: ``direct`` or ``gram``.
        workspace: memory for what lies in between.

    Returns:
        False where a matrix in full precision is zero, not finite, or of a norm that is not in [1e-12, 1e12]: nothing
        has been changed.
    """
    polynomials, found = _polynomials(ns_coefficients, ns_steps)
    margin = found if matrix.dtype in FULL_PRECISION else None
    X, target = (matrix, target) if matrix.size(0) <= matrix.size(1) else (matrix.mT, target.mT)
    options: dict[str, Any] = {"margin": margin, "gram": form == "gram", "restart_every": RESTART_EVERY}
    return add_polar_(target, X, polynomials, beta=beta, alpha=alpha, workspace=workspace, **options)


def _polynomials(ns_coefficients: Coefficients, ns_steps: int) -> tuple[list[tuple[float, float, float]], float]:
    """The polynomials of so many steps, and the margin on the norm."""
    polynomials, margin = ITERATIONS[ns_coefficients]
    return [polynomials[min(step, len(polynomials) - 1)] for step in range(ns_steps)], margin


def _direct(X: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    for a, b, c in polynomials:
        A = X @ X.mT
        P = _add_product(A, A, A, beta=b, alpha=c)
        if X.dtype in FULL_PRECISION:
            # a product without a sum saves a pass over memory
            P.diagonal(dim1=-2, dim2=-1).add_(a)
            X = P @ X
        else:
            # in half precision a on the diagonal would swallow half the digits of the rest
            X = _add_product(X, P, X, beta=a)
    return X


def _gram(X: Tensor, polynomials: list[tuple[float, float, float]]) -> Tensor:
    R, Q = X @ X.mT, None
    for step, (a, b, c) in enumerate(polynomials):
        P = _add_product(R, R, R, beta=b, alpha=c)
        if Q is None:
            Q = P.clone()
            Q.diagonal(dim1=-2, dim2=-1).add_(a)
        else:
            Q = _add_product(Q, P, Q, beta=a)
        if step == len(polynomials) - 1:
            break
        if X.dtype not in FULL_PRECISION and (step + 1) % RESTART_EVERY == 0:
            X = Q @ X
            R, Q = X @ X.mT, None
        else:
            # a is added to the product: on the diagonal of P it costs float32 a digit for small singular values
            R = _add_product(R, P, R, beta=a)
            R = _add_product(R, P, R, beta=a)
    assert Q is not None
    return Q @ X


def _add_product(C: Tensor, A: Tensor, B: Tensor, *, beta: float, alpha: float = 1.0) -> Tensor:
    """The matrix beta C + alpha A B in one call, which saves a pass over memory."""
    return (torch.addmm if A.ndim == 2 else torch.baddbmm)(C, A, B, beta=beta, alpha=alpha)


def normalize(matrix: Tensor, margin: float) -> Tensor:
    """Scaled to Frobenius norm 1 / margin; no epsilon that a small gradient could fall under."""
    matrix = matrix.to(torch.promote_types(matrix.dtype, torch.float32))
    if matrix.device.type == "cpu" and matrix.ndim == 2:
        # of the rows' norms: one sum of millions of float32 numbers would lose two digits
        norm = torch.linalg.vector_norm(torch.linalg.vector_norm(matrix, dim=-1))
        # far from where squares of float32 numbers vanish or overflow, one pass will do
        if SMALLEST < float(norm) < LARGEST:
            return matrix.div(norm * margin)
    norm = torch.linalg.vector_norm(matrix, dim=(-2, -1), keepdim=True, dtype=torch.float64) * margin
    norm = norm.masked_fill(norm == 0, 1).masked_fill(~norm.isfinite(), float("nan"))
    # by its square root twice, which float32 can hold for every norm
    root = norm.sqrt().to(matrix.dtype)
    return matrix.div(root).div(root)
