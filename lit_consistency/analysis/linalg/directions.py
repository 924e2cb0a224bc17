r"""Random matrices of three kinds, steepest directions of three norms, and the norms themselves.

All three have the same second moment: with m rows and n columns and |D|_F = r,

.. math::
    E[\mathrm{vec} D \, \mathrm{vec} D^T] = \frac{r^2}{m n} I,

so that of a quadratic loss with Hessian H at its minimum each of them makes r^2 tr(H) / (2 m n) on average: kinds
differ there by their spread over draws alone, and beyond the quadratic part by their fourth moments.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

KINDS = ("sign", "orthogonal", "gaussian")


def random_direction(kind: str, shape: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A random matrix of Frobenius norm 1, float32, on the CPU.

    ``sign``: every entry is +c or -c with equal probability. ``orthogonal``: all singular values are equal; U V^T of a
    matrix of normal entries, which is uniform over all such matrices. ``gaussian``: normal entries.

    Args:
        kind: one of ``KINDS``.
        shape: rows and columns.
        generator: on the CPU, so that the draw is the same on every device.
    """
    rows, columns = shape
    if kind == "sign":
        return (torch.randint(2, shape, generator=generator) * 2.0 - 1) / math.sqrt(rows * columns)
    normal = torch.randn(shape, generator=generator)
    if kind == "gaussian":
        return normal / normal.double().norm().float()
    tall = normal if rows >= columns else normal.T
    # the factor Q is uniform if the diagonal of R is made positive (Mezzadri 2007, How to generate random matrices
    # from the classical compact groups, Notices of the AMS 54(5)); a tenth of the work of U V^T
    q, r = torch.linalg.qr(tall)
    q = q * r.diagonal().sign()
    return (q if rows >= columns else q.T) / math.sqrt(min(shape))


def steepest_direction(kind: str, gradient: Tensor) -> Tensor:
    r"""The direction in which a loss falls fastest to first order, of Frobenius norm 1, on the gradient's device.

    Per unit of the norm of the kind: ``sign`` is :math:`-\mathrm{sign}(G)` (largest entry, as AdamW at its first step),
    ``orthogonal`` :math:`-U V^T` of :math:`G = U S V^T` (operator norm, as Muon), ``gaussian`` -G itself (Frobenius
    norm, as SGD). All 0 where the gradient is.

    Args:
        kind: one of ``KINDS``.
        gradient: (m, n).

    Source: Bernstein and Newhouse 2024, Old Optimizer, New Norm: An Anthology, arXiv 2409.20325.
    """
    wide = gradient.double()
    if kind == "sign":
        wide = wide.sign()
    elif kind == "orthogonal" and bool(wide.any()):
        u, values, vt = torch.linalg.svd(wide, full_matrices=False)
        # directions that the gradient does not have are not made up
        u = u * (values > values[0] * max(wide.shape) * torch.finfo(gradient.dtype).eps)
        wide = u @ vt
    norm = wide.norm()
    return -(wide / norm if norm > 0 else wide).float()


def max_norm(matrix: Tensor) -> float:
    """Largest absolute entry."""
    return float(matrix.abs().max())


def operator_norm(matrix: Tensor) -> float:
    """Largest singular value, of the smaller Gram matrix in float64: for its top that is exact to 1e-15."""
    wide = matrix.double()
    gram = wide @ wide.T if wide.size(0) <= wide.size(1) else wide.T @ wide
    return math.sqrt(max(float(torch.linalg.eigvalsh(gram)[-1]), 0.0))


def frobenius_norm(matrix: Tensor) -> float:
    """Root of the sum of squares, summed in float64."""
    return float(matrix.double().norm())


NATIVE = {"sign": max_norm, "orthogonal": operator_norm, "gaussian": frobenius_norm}
"""Kind -> the norm whose ball it is the corner of: a step of sign descent, of Muon, of plain gradient descent."""
