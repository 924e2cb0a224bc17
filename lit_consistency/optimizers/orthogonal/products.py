"""Products of large matrices on a CPU, as torch has them not: symmetric ones at half the cost, into memory used again.

What is above the diagonal of a symmetric product is a mirror of what is below, so that only panels up to the diagonal
are multiplied. New memory costs as much as a pass over it; see ``core/workspace.py``.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lit_consistency.optimizers.core.workspace import Workspace

FULL_PRECISION = (torch.float32, torch.float64)
# Elements between the rows of a square matrix in full precision.
PADDING = 16


class Products:
    """Products of one iteration: new tensors, or on a CPU with a workspace memory that is used again.

    Args:
        X: the matrix (rows, columns) that is iterated on, or a stack of such.
        workspace: for one matrix on a CPU; pieces ``gram_*`` and ``matrix_*`` are overwritten.
    """

    def __init__(self, X: Tensor, workspace: Workspace | None = None) -> None:
        self.workspace = workspace
        self.dtype = X.dtype
        self.multiplied = 0

    def symmetric(
        self, name: str, A: Tensor, B: Tensor, C: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0
    ) -> Tensor:
        """The symmetric matrix beta C + alpha A B.

        Args:
            name: of the memory; what was there is overwritten, and is none of the operands.
            A: (rows, columns).
            B: (columns, rows).
            C: (rows, rows), symmetric; without it, alpha A B.
            beta: factor on C.
            alpha: factor on A B.
        """
        if self.workspace is None:
            return _product(A, B, C, beta, alpha)
        return symmetric_(self._square(f"gram_{name}", A.size(0), self.workspace), A, B, C, beta=beta, alpha=alpha)

    def multiply(
        self, P: Tensor, X: Tensor, *, beta: float = 0.0, alpha: float = 1.0, out: Tensor | None = None
    ) -> Tensor:
        """The matrix alpha P X + beta X, in ``out`` or in memory that holds neither of the last two of these."""
        C = X if beta else None
        if self.workspace is None:
            product = _product(P, X, C, beta, 1.0)
            return product if alpha == 1 else product.mul_(alpha)
        if out is None or out.dtype != self.dtype:
            # other memory than in the last two calls
            self.multiplied = (self.multiplied + 1) % 3
            out = memory_like(f"matrix_{self.multiplied}", X, self.dtype, self.workspace)
        if C is None and alpha == 1:
            return torch.mm(P, X, out=out)
        # with a factor of 0 the old content is not read
        return torch.addmm(out if C is None else C, P, X, beta=beta, alpha=alpha, out=out)

    def _square(self, name: str, rows: int, workspace: Workspace) -> Tensor:
        if self.dtype not in FULL_PRECISION:
            # oneDNN's bfloat16 products of matrices with gaps read the gaps, and a NaN there becomes one in the result
            return workspace.take(name, (rows, rows), self.dtype)
        # rows that are powers of two apart meet in the cache: copies of columns take half the time with a gap
        return workspace.take(name, (rows, rows + PADDING), self.dtype)[:, :rows]


def memory_like(name: str, X: Tensor, dtype: torch.dtype, workspace: Workspace) -> Tensor:
    """Memory of the shape and layout of a matrix, rows or columns one after the other."""
    if X.stride(1) == 1:
        return workspace.take(name, X.shape, dtype)
    return workspace.take(name, X.mT.shape, dtype).mT


def _product(A: Tensor, B: Tensor, C: Tensor | None, beta: float, alpha: float) -> Tensor:
    """The matrix beta C + alpha A B in one call, which saves a pass over memory; without C, A is square for alpha."""
    if C is None and alpha == 1:
        return A @ B
    add_product = torch.addmm if A.ndim == 2 else torch.baddbmm
    return add_product(A, A, B, beta=0, alpha=alpha) if C is None else add_product(C, A, B, beta=beta, alpha=alpha)


def symmetric_(
    out: Tensor, A: Tensor, B: Tensor, C: Tensor | None = None, *, beta: float = 1.0, alpha: float = 1.0
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
