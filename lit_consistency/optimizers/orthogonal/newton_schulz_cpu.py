"""Newton-Schulz of one large matrix on a CPU, where all that is not a product of matrices is left out.

The norm is the root of the Gram matrix's trace, by which the small matrices are divided; scale and sum with the
result's old content go into the last product; symmetric products are computed below the diagonal only, panel
by panel, and mirrored; everything in between lies in memory that is used again. The polynomials are those of
``newton_schulz.py``. In half precision the caller normalizes: oneDNN compiles a product for each new factor on it.
Given up: norms whose square is at the limits of float32; the caller has a slower way for them.

Source: arXiv 2505.16932, Algorithm 1; the folded norm is ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lit_consistency.optimizers.core.workspace import Workspace

Polynomials = Sequence[tuple[float, float, float]]
# Norms whose square lies well inside float32.
SMALLEST, LARGEST = 1e-12, 1e12
# Elements of a pass over parts of several tensors: together they stay in a second-level cache of 1 MB.
CHUNK = 2**16
# Elements between the rows of a square matrix in full precision.
PADDING = 16
FULL_PRECISION = (torch.float32, torch.float64)


def add_polar_(
    target: Tensor,
    X: Tensor,
    polynomials: Polynomials,
    *,
    margin: float | None,
    gram: bool,
    restart_every: int,
    beta: float,
    alpha: float,
    workspace: Workspace,
) -> bool:
    r"""Add the nearly orthogonal matrix of a matrix: :math:`T \leftarrow \beta T + \alpha \, p_K(X / \lVert X \rVert)`.

    Args:
        target: T, (rows, columns), float32 or float64; with ``beta`` 0 its old content is not read.
        X: of the target's shape, at most as many rows as columns, in the dtype of the iterations; only read.
        polynomials: (a, b, c) of each iteration.
        margin: factor on the Frobenius norm; None where X has been divided by both.
        gram: iterate on the Gram matrix and not on X.
        restart_every: iterations in half precision after which the Gram matrix is formed anew.
        beta: factor on the old content.
        alpha: factor on the result.
        workspace: where everything in between lies; pieces ``gram_*`` and ``matrix_*`` and ``part`` are overwritten.

    Returns:
        Whether the norm allowed it. If not, as for zero or what is not finite, nothing has been changed.
    """
    A = symmetric_(_square("a", X, workspace), X, X.mT)
    norm = 1.0
    if margin is not None:
        norm = math.sqrt(max(0.0, float(A.diagonal().sum(dtype=torch.float64)))) * margin
        if not SMALLEST < norm < LARGEST:
            return False
        A.div_(norm**2)
    if gram:
        Q, new = _gram(X, A, polynomials, restart_every, workspace)
        _add_product_(target, Q, new, beta, alpha / norm, workspace)
    else:
        a, b, c = polynomials[0]
        _direct(target, X, A, [(a / norm, b / norm, c / norm), *polynomials[1:]], beta, alpha, workspace)
    return True


def _direct(
    target: Tensor, X: Tensor, A: Tensor, polynomials: Polynomials, beta: float, alpha: float, workspace: Workspace
) -> None:
    P = _square("b", X, workspace)
    last = len(polynomials) - 1
    for step, (a, b, c) in enumerate(polynomials):
        if step:
            symmetric_(A, X, X.mT)
        new = _like(f"matrix_{step % 2}", X, workspace)
        if X.dtype not in FULL_PRECISION:
            # in half precision a on the diagonal would swallow half the digits of the rest
            symmetric_(P, A, A, A, beta=b, alpha=c)
            X = torch.addmm(X, P, X, beta=a, out=new)
            continue
        # b A + c A^2 is a square but for a constant, and a product without a sum reads one matrix less
        half = b / (2 * c)
        A.diagonal().add_(half)
        symmetric_(P, A, A, alpha=c)
        P.diagonal().add_(a - c * half**2)
        if step == last:
            _add_product_(target, P, X, beta, alpha, workspace)
        else:
            X = torch.mm(P, X, out=new)
    if X.dtype not in FULL_PRECISION:
        add_(target, X, beta, alpha, workspace)


def _gram(
    X: Tensor, R: Tensor, polynomials: Polynomials, restart_every: int, workspace: Workspace
) -> tuple[Tensor, Tensor]:
    """Q and a matrix whose product is the result: X, unless it had to be formed anew in half precision."""
    P, T, free = (_square(name, X, workspace) for name in "bcd")
    Q = None
    for step, (a, b, c) in enumerate(polynomials):
        last = step == len(polynomials) - 1
        restart = X.dtype not in FULL_PRECISION and (step + 1) % restart_every == 0
        symmetric_(P, R, R, R, beta=b, alpha=c)
        if Q is not None:
            symmetric_(T, P, Q, Q, beta=a)
            Q, T = T, Q
        if not (last or restart):
            # a is added to the product: on the diagonal of P it costs float32 a digit for small singular values
            symmetric_(T, P, R, R, beta=a)
            symmetric_(R, P, T, T, beta=a)
        if Q is None:
            P.diagonal().add_(a)
            Q, P = P, free
        if restart and not last:
            X = torch.mm(Q, X, out=_like(f"matrix_{step // restart_every % 2}", X, workspace))
            symmetric_(R, X, X.mT)
            free, Q = Q, None
    assert Q is not None
    return Q, X


def symmetric_(
    out: Tensor, A: Tensor, B: Tensor, C: Tensor | None = None, *, beta: float = 0.0, alpha: float = 1.0
) -> Tensor:
    """Write the symmetric matrix beta C + alpha A B; where it pays, what is above the diagonal is a copy.

    Args:
        out: (rows, rows), another memory than the others'.
        A: (rows, columns).
        B: (columns, rows).
        C: (rows, rows) and symmetric; not given, alpha A B is written.
        beta: factor on C.
        alpha: factor on A B.
    """
    rows = A.size(0)
    block = panel_rows(rows, A.size(1), A.dtype) if C is None or A.dtype in FULL_PRECISION else rows
    for start in range(0, rows, block):
        end = min(start + block, rows)
        panel = out[start:end, :end]
        if C is not None:
            torch.addmm(C[start:end, :end], A[start:end], B[:, :end], beta=beta, alpha=alpha, out=panel)
        elif alpha != 1:
            torch.addmm(panel, A[start:end], B[:, :end], beta=0, alpha=alpha, out=panel)
        else:
            torch.mm(A[start:end], B[:, :end], out=panel)
        if start:
            out[:start, start:end].copy_(panel[:, :start].mT)
    return out


def panel_rows(rows: int, columns: int, dtype: torch.dtype) -> int:
    """Rows of a panel of a symmetric product of (rows, columns) by (columns, rows); all where panels do not pay.

    Measured with one thread, AVX-512 in float32 and AMX in bfloat16, beside the whole product: float32 0.70 at 768 and
    0.60 at 2048; bfloat16 0.87 at 768 x 3072 and 0.85 at 2048, but 1.5 at 768 x 768 and no gain where C is added.
    """
    if dtype in FULL_PRECISION:
        return rows if rows <= 256 else 128 if rows < 1536 else 256
    if rows >= 1536 or (rows > 384 and columns > 2 * rows):
        return 256
    return rows


def _add_product_(target: Tensor, Q: Tensor, X: Tensor, beta: float, alpha: float, workspace: Workspace) -> None:
    if target.dtype == X.dtype:
        torch.addmm(target, Q, X, beta=beta, alpha=alpha, out=target)
    else:
        add_(target, torch.mm(Q, X, out=_like("matrix_2", X, workspace)), beta, alpha, workspace)


def add_(target: Tensor, X: Tensor, beta: float, alpha: float, workspace: Workspace) -> None:
    """Write beta target + alpha X to the target, a matrix of another dtype than X; beta 0: its content is not read."""
    if not X.is_contiguous():
        target, X = target.mT, X.mT
    for part, values in chunks_of_rows(target, X):
        wide = workspace.take("part", part.shape, target.dtype).copy_(values)
        if beta == 0:
            torch.mul(wide, alpha, out=part)
            continue
        if beta != 1:
            part.mul_(beta)
        part.add_(wide, alpha=alpha)


def chunks_of_rows(*matrices: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """The same rows of matrices of equal shape, at most ``CHUNK`` elements at a time or one row."""
    each = max(1, CHUNK // max(1, matrices[0].size(1)))
    return zip(*(matrix.split(each) for matrix in matrices), strict=True)


def _square(name: str, X: Tensor, workspace: Workspace) -> Tensor:
    rows = X.size(0)
    if X.dtype not in FULL_PRECISION:
        # oneDNN's bfloat16 products of matrices with gaps read the gaps, and a NaN there becomes a NaN in the result
        return workspace.take(f"gram_{name}", (rows, rows), X.dtype)
    # rows that are powers of two apart meet in the cache: copies of columns take half the time with a gap
    return workspace.take(f"gram_{name}", (rows, rows + PADDING), X.dtype)[:, :rows]


def _like(name: str, X: Tensor, workspace: Workspace) -> Tensor:
    """Memory of X's shape and layout."""
    if X.stride(1) == 1:
        return workspace.take(name, X.shape, X.dtype)
    return workspace.take(name, X.mT.shape, X.dtype).mT
