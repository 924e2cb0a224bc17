r"""Extreme eigenvalues of a symmetric matrix A that is known by its products with vectors, and its trace.

Lanczos: after m products the basis Q (m, n) spans v, Av, ..., A^(m-1) v, and T = Q A Q^T is tridiagonal; its
eigenvalues (Ritz values) come near those of A, outermost first. Every new vector is made orthogonal to all earlier
ones, twice (Parlett 1998, The Symmetric Eigenvalue Problem, section 6.9: twice is enough): without that, rounding
brings converged eigenvalues back as copies. For a Ritz pair (theta, y = Q^T s) the residual is

.. math::
    |A y - \theta y| = \beta_m |s_m|, \qquad \min_i |\lambda_i(A) - \theta| \le \beta_m |s_m|.

Given up: the multiplicity of an eigenvalue, of which one is found as long as rounding does not help; and memory, m
vectors of n numbers.

Hutchinson: E z^T A z = tr A for independent signs z_i = +-1, with variance 2 (|A|_F^2 - sum A_ii^2) (Hutchinson 1990,
Communications in Statistics 19(2)).

Shapes: n of A, m steps, k vectors.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


class Spectrum(NamedTuple):
    """Ritz values, descending, float64 on the CPU.

    Attributes:
        values: (m,).
        residuals: (m,), the distance of the next eigenvalue of A at most.
        converged: whether those that were asked for are within the tolerance.
    """

    values: Tensor
    residuals: Tensor
    converged: bool


def lanczos(
    product: Callable[[Tensor], Tensor],
    n: int,
    *,
    n_largest: int,
    smallest: bool,
    tolerance: float,
    max_steps: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
) -> Spectrum:
    """The largest eigenvalues, and the smallest one if it is asked for.

    Args:
        product: maps (n,) to A times it.
        n: of A.
        n_largest: how many of the largest must converge.
        smallest: whether the smallest one must, too.
        tolerance: of residuals, relative to the eigenvalue of largest magnitude.
        max_steps: products at most.
        generator: of the first vector, on the CPU, so that it is the same on every device.
        dtype: of the basis.
        device: likewise.
    """
    n_steps = min(max_steps, n)
    basis = torch.zeros(n_steps, n, dtype=dtype, device=device)
    tridiagonal = torch.zeros(n_steps, n_steps, dtype=torch.float64)
    q, spectrum = torch.randn(n, generator=generator, dtype=torch.float64).to(basis), None
    q = q / q.norm()
    for j in range(n_steps):
        basis[j] = q
        w = product(q).to(basis)
        tridiagonal[j, j] = float(q.double() @ w.double())
        w = _orthogonal(w, basis[: j + 1])
        beta = float(w.double().norm())
        spectrum = _ritz(tridiagonal[: j + 1, : j + 1], beta, n_largest, smallest, tolerance)
        if spectrum.converged or j + 1 == n_steps:
            break
        # the basis is invariant under A: go on beside it, where equal eigenvalues have their other vectors
        if beta <= 10 * torch.finfo(dtype).eps * float(spectrum.values.abs().max()):
            fresh = torch.randn(n, generator=generator, dtype=torch.float64).to(basis)
            w, beta = _orthogonal(fresh, basis[: j + 1]), 0.0
        tridiagonal[j, j + 1] = tridiagonal[j + 1, j] = beta
        q = w / w.norm()
    assert spectrum is not None
    return spectrum


def _orthogonal(vector: Tensor, basis: Tensor) -> Tensor:
    """The vector without its share in the rows of an orthonormal basis."""
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
    return vector


def _ritz(tridiagonal: Tensor, beta: float, n_largest: int, smallest: bool, tolerance: float) -> Spectrum:
    values, vectors = torch.linalg.eigh(tridiagonal)
    values, residuals = values.flip(0), (beta * vectors[-1]).abs().flip(0)
    wanted = [*residuals[:n_largest].tolist(), *(residuals[-1:].tolist() if smallest else [])]
    enough = len(values) >= n_largest + smallest
    return Spectrum(values, residuals, enough and max(wanted) <= tolerance * float(values.abs().max()))


class Trace(NamedTuple):
    """An estimate with its standard error, NaN of a single probe."""

    value: float
    stderr: float


AT_ONCE = 1 << 27
"""Numbers in the probes that are multiplied at once: 1 GiB of float64."""


def hutchinson(
    products: Callable[[Tensor, float], Tensor],
    n: int,
    *,
    n_probes: int,
    generator: torch.Generator,
    dtype: torch.dtype,
    device: torch.device,
) -> Trace:
    """The trace of A.

    Args:
        products: maps (k, n) vectors, and the share of all probes that they are, to A times each.
        n: of A.
        n_probes: how many vectors of random signs.
        generator: of the signs, on the CPU, so that they are the same on every device.
        dtype: of the vectors.
        device: likewise.
    """
    at_once = max(AT_ONCE // n, 1)
    samples = []
    for first in range(0, n_probes, at_once):
        size = min(at_once, n_probes - first)
        signs = torch.randint(0, 2, (size, n), generator=generator, dtype=torch.int8)
        probes = signs.to(device, dtype) * 2 - 1
        samples.append((probes.double() * products(probes, size / n_probes).double()).sum(1))
    each = torch.cat(samples)
    stderr = each.std() / n_probes**0.5 if n_probes > 1 else torch.nan
    return Trace(float(each.mean()), float(stderr))
