r"""Numbers of a matrix's singular values.

Shapes: values (r,), singular values s_1 >= ... >= s_r >= 0.
"""

from __future__ import annotations

import torch
from torch import Tensor


def singular_values(matrix: Tensor) -> Tensor:
    """(min(m, n),) float64, descending, of a matrix (m, n); on its device."""
    return torch.linalg.svdvals(matrix.double())


def stable_rank(values: Tensor) -> float:
    r""":math:`\sum s_i^2 / s_1^2`, from 1 to the rank; NaN of a zero matrix."""
    return float((values**2).sum() / values.max() ** 2)


def svd_entropy(values: Tensor) -> float:
    r""":math:`-\sum p_i \log p_i / \log r` with :math:`p_i = s_i^2 / \sum s^2`: 0 of rank one, 1 of equal values.

    The definition of Moonlight (Liu et al. 2025, arXiv 2502.16982, section 3.4); NaN of a zero matrix or a vector.
    """
    shares = values**2 / (values**2).sum()
    return float(torch.special.entr(shares).sum() / torch.tensor(float(len(values))).log())


def effective_rank(shares: Tensor) -> float:
    r""":math:`\exp(-\sum p_i \log p_i)` of shares that are normalised to sum to 1.

    Source: Roy and Vetterli 2007, The effective rank, EUSIPCO; there p are singular values over their sum, of a
    covariance its eigenvalues.
    """
    return float(torch.special.entr(shares / shares.sum()).sum().exp())


def pseudo_rank(values: Tensor, share: float) -> int:
    """The least k with s_1 + ... + s_k >= share * (s_1 + ... + s_r); 0 of a zero matrix.

    Args:
        values: descending.
        share: 0 < share <= 1.
    """
    total = values.sum()
    if total == 0:
        return 0
    # as many sums lie below the share, plus one; rounding must not ask for more than there are
    return min(int((values.cumsum(0) < share * total * (1 - 1e-12)).sum()) + 1, len(values))


def participation_ratio(values: Tensor) -> float:
    r""":math:`(\sum \lambda_i)^2 / \sum \lambda_i^2` of a covariance's eigenvalues: as many as there are equal ones.

    Source: Gao et al. 2017, A theory of multineuronal dimensionality, dynamics and measurement, bioRxiv 214262; NaN of
    a zero matrix.
    """
    return float(values.sum() ** 2 / (values**2).sum())
