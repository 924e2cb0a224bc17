r"""How the size of a vector is spread over its coordinates.

Shapes: x (n, d), n vectors of d coordinates; RMS = |x|_2 / sqrt(d).
"""

from __future__ import annotations

import torch
from torch import Tensor


def rms(x: Tensor) -> Tensor:
    """(n,), :math:`|x|_2 / sqrt(d)`."""
    return x.norm(dim=-1) / x.size(-1) ** 0.5


def coordinate_statistics(x: Tensor, near_zero: float) -> dict[str, Tensor]:
    r"""Name -> (n,) of every vector; NaN of a zero vector, and of ``massive`` where half of the coordinates are zero.

    - ``rms``
    - ``l1_ratio``: :math:`|x|_1 / (\sqrt d |x|_2)`: 1 of equal magnitudes, :math:`\sqrt{2 / \pi} = 0.798` of many
      Gaussian coordinates, :math:`1 / \sqrt d` of one coordinate.
    - ``linf_rms``: :math:`|x|_\infty / RMS`: 1 of equal magnitudes, :math:`\sqrt d` of one coordinate.
    - ``kurtosis``: :math:`\frac1d \sum x_i^4 / RMS^4`, not centred: 1 of equal magnitudes, 3 of Gaussian coordinates,
      d of one coordinate.
    - ``near_zero``: share of coordinates with :math:`|x_i| < c \cdot RMS`.
    - ``massive``: :math:`|x|_\infty` over the median of :math:`|x_i|` (the lower one of two).

    Args:
        x: vectors.
        near_zero: c.
    """
    size = rms(x)
    # in units of the RMS a fourth power cannot overflow; a zero vector becomes NaN
    z = x.abs() / size[:, None]
    largest = z.amax(-1)
    median = z.median(-1).values
    return {
        "rms": size,
        "l1_ratio": z.mean(-1),
        "linf_rms": largest,
        "kurtosis": z.pow(4).mean(-1),
        "near_zero": torch.where(size > 0, (z < near_zero).to(z.dtype).mean(-1), torch.nan),
        "massive": torch.where(median > 0, largest / median, torch.nan),
    }
