r"""Singular values and vectors of matrices that are too large for a dense SVD.

``GramSVD`` has the whole spectrum: with the smaller of W W^T and W^T W, summed in float64,

.. math::
    W W^T = U \Lambda U^T, \qquad s_i = \sqrt{\lambda_i}, \qquad v_i = W^T u_i / |W^T u_i|.

Of a 2,048 x 2,048 matrix that takes a third of the time of a dense SVD's values, and half of that with vectors; of a
longer one less, and a weight of 128,000 rows never lies in memory in float64. Given up: eigenvalues are exact up to
:math:`r \epsilon s_1^2`, so singular values below :math:`\sqrt{r \epsilon} s_1` (7e-7 s_1 at r = 2,048) are noise. That
is an error of the nuclear norm below 1e-4 even of a matrix of rank one, where rounding the weights to float32 already
costs as much.

``KrylovSVD`` has the largest singular values and their vectors only, from a block Krylov subspace (Musco and Musco
2015, Randomized Block Krylov Methods, arXiv 1504.05477, algorithm 2). Ritz values are never too large. Where the
spectrum falls they are exact; of a Gaussian matrix, whose spectrum is flat, the largest are too small by less than 1%
(2,048 x 8,192: .2%, in a fifth of the time of the whole spectrum).

Shapes: W (m, n) of any float type, r = min(m, n).
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

CHUNK = 1 << 23
"""Numbers that are converted to float64 at once: 64 MiB."""
N_BLOCKS, OVERSAMPLING = 8, 10
"""Of the Krylov subspace: products with W, and columns beyond those asked for."""


def row_chunks(matrix: Tensor) -> Iterator[Tensor]:
    """The rows in turn, as many as fit, in float64."""
    for rows in matrix.split(max(CHUNK // max(matrix.size(1), 1), 1)):
        yield rows.double()


def product(matrix: Tensor, other: Tensor) -> Tensor:
    """(m, k) float64, W X of W (m, n) and X (n, k) float64, without W in float64."""
    return torch.cat([rows @ other for rows in row_chunks(matrix)])


def transposed_product(matrix: Tensor, other: Tensor) -> Tensor:
    """(n, k) float64, W^T X of W (m, n) and X (m, k) float64, without W in float64."""
    total = other.new_zeros(matrix.size(1), other.size(1))
    start = 0
    for rows in row_chunks(matrix):
        total.addmm_(rows.T, other[start : start + len(rows)])
        start += len(rows)
    return total


def gram(matrix: Tensor) -> Tensor:
    """(r, r) float64, the smaller of W W^T and W^T W."""
    tall = matrix if matrix.size(0) > matrix.size(1) else matrix.T
    total = torch.zeros(tall.size(1), tall.size(1), dtype=torch.float64, device=matrix.device)
    for rows in row_chunks(tall):
        total.addmm_(rows.T, rows)
    return total


def gram_values(matrix: Tensor) -> Tensor:
    """All singular values (r,) float64, descending."""
    return torch.linalg.eigvalsh(gram(matrix)).clamp(min=0).sqrt().flip(0)


class GramSVD:
    """All singular values and vectors of a matrix.

    Args:
        matrix: (m, n), kept: vectors of its longer side are made when they are asked for.

    Attributes:
        values: (r,) float64, descending.
        rank: values above what can be told from 0.
    """

    complete = True

    def __init__(self, matrix: Tensor) -> None:
        self.matrix = matrix
        eigenvalues, vectors = torch.linalg.eigh(gram(matrix))
        self.values = eigenvalues.clamp(min=0).sqrt().flip(0)
        self._vectors = vectors.flip(1)  # (r, r), of the shorter side
        # eigenvalues have errors of r eps s_1^2; directions below them are arbitrary
        noise = (len(self.values) * torch.finfo(torch.float64).eps) ** 0.5
        self.rank = int((self.values > noise * self.values[0]).sum())

    def left(self, k: int) -> Tensor:
        """(m, k) float64, orthonormal columns u_1, ..., u_k; fewer where the rank is less."""
        own = self._vectors[:, : min(k, self.rank)]
        return own if self._rows_are_fewer else _unit(product(self.matrix, own))

    def right(self, k: int) -> Tensor:
        """(n, k) float64, likewise of v."""
        own = self._vectors[:, : min(k, self.rank)]
        return _unit(transposed_product(self.matrix, own)) if self._rows_are_fewer else own

    def left_cosines(self, vectors: Tensor) -> Tensor:
        """(rank, k), the scalar products of all left singular vectors with vectors (m, k)."""
        own = self._vectors[:, : self.rank]
        if self._rows_are_fewer:
            return own.T @ vectors
        # U^T X = S^-1 V^T (W^T X): U, as large as the matrix, is not formed
        return (own.T @ transposed_product(self.matrix, vectors)) / self.values[: self.rank, None]

    @property
    def _rows_are_fewer(self) -> bool:
        return self.matrix.size(0) <= self.matrix.size(1)


class KrylovSVD:
    """The largest singular values and their vectors.

    Args:
        matrix: (m, n) in float32 or float64.
        k: how many.
        seed: of the random start.

    Attributes:
        values: (k,) float64, descending.
        rank: how many there are.
    """

    complete = False

    def __init__(self, matrix: Tensor, k: int, seed: int = 0) -> None:
        r = min(matrix.shape)
        width = min(k + OVERSAMPLING, r)
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(matrix.size(1), width, generator=generator, dtype=torch.float64).to(matrix)
        # the subspace in the matrix's own precision: an error of 1e-7 in it changes the Ritz values by its square
        blocks = [torch.linalg.qr(matrix @ start).Q]
        for _ in range(min(N_BLOCKS, -(-r // width)) - 1):
            blocks.append(torch.linalg.qr(matrix @ (matrix.T @ blocks[-1])).Q)
        # one decomposition of all: blocks of a matrix of low rank soon hold nothing new, and would count twice
        basis = torch.linalg.qr(torch.cat(blocks, 1).double()).Q
        u, values, v = torch.linalg.svd(transposed_product(matrix, basis).T, full_matrices=False)
        self.values = values[:k]
        self.rank = len(self.values)
        self._left, self._right = basis @ u[:, :k], v[:k].T

    def left(self, k: int) -> Tensor:
        """(m, k) float64, orthonormal columns."""
        return self._left[:, :k]

    def right(self, k: int) -> Tensor:
        """(n, k) float64, likewise."""
        return self._right[:, :k]


def _unit(columns: Tensor) -> Tensor:
    return columns / torch.linalg.vector_norm(columns, dim=0)
