r"""Linear CKA of two representations of the same positions, from sums that a stream is added to.

With X (n, d) and Y (n, e), the columns centred (Kornblith et al. 2019, Similarity of Neural Network Representations
Revisited, arXiv 1905.00414, section 3):

.. math::
    CKA = \frac{|Y^T X|_F^2}{|X^T X|_F |Y^T Y|_F},

1 where one is the other up to rotation and scale, 0 where they do not vary together. Only the d x e, d x d and e x e
products are kept, not the n x n kernels. Given up: no correction for few positions; with n below d even independent
representations look alike, near 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class CrossProducts:
    """Sums over positions, float64.

    Args:
        d: numbers of X at a position.
        e: numbers of Y.
        device: of the sums.
    """

    def __init__(self, d: int, e: int, device: torch.device) -> None:
        self.n = 0
        self.x, self.y = (torch.zeros(k, dtype=torch.float64, device=device) for k in (d, e))
        self.xx, self.xy, self.yy = (
            torch.zeros(*shape, dtype=torch.float64, device=device) for shape in ((d, d), (d, e), (e, e))
        )

    def add(self, x: Tensor, y: Tensor) -> None:
        """More positions, (n, d) and (n, e)."""
        x, y = x.double(), y.double()
        self.n += len(x)
        self.x += x.sum(0)
        self.y += y.sum(0)
        self.xx.addmm_(x.T, x)
        self.xy.addmm_(x.T, y)
        self.yy.addmm_(y.T, y)

    def cka(self) -> float:
        """Linear CKA; NaN where a representation does not vary."""
        covariances = []
        for products, one, other in ((self.xx, self.x, self.x), (self.yy, self.y, self.y), (self.xy, self.x, self.y)):
            covariances.append(products - torch.outer(one, other) / max(self.n, 1))
        own = [float(covariance.norm()) for covariance in covariances[:2]]
        # what is left of equal rows is rounding of their squares
        if any(left <= 1e-12 * float(whole.norm()) for left, whole in zip(own, (self.xx, self.yy), strict=True)):
            return math.nan
        return float(covariances[2].norm() ** 2) / (own[0] * own[1])
