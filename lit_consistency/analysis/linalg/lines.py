"""Numbers along a line: how far they lie above its chord, how they bend."""

from __future__ import annotations

import math

import numpy as np


def height_over_chord(t: np.ndarray, values: np.ndarray) -> float:
    r"""The barrier of a line: :math:`\max_t L(t) - [(1 - s) L(t_0) + s L(t_1)]`, s the share of the way.

    0 of a convex line, whose ends lie on their chord. Source: Entezari et al. 2022, The Role of Permutation
    Invariance in Linear Mode Connectivity, arXiv 2110.06296, definition 2.1.

    Args:
        t: (n,) ascending, n >= 2.
        values: (n,); those that are not finite are passed over, NaN where an end is one.
    """
    if not np.isfinite(values[[0, -1]]).all():
        return math.nan
    # a value that is not finite between two good ends hides no more than its own point
    share = (t - t[0]) / (t[-1] - t[0])
    return float(
        np.nanmax(np.where(np.isfinite(values), values - (1 - share) * values[0] - share * values[-1], np.nan))
    )


def second_difference(t: np.ndarray, values: np.ndarray, at: float) -> float:
    """L'' at a point, by the parabola through it and its two neighbours; NaN at an end.

    Args:
        t: (n,) ascending, ``at`` among them.
        values: (n,).
        at: where.
    """
    i = int(np.flatnonzero(t == at)[0])
    if i in (0, len(t) - 1):
        return math.nan
    left, right = t[i] - t[i - 1], t[i + 1] - t[i]
    slopes = (values[i] - values[i - 1]) / left, (values[i + 1] - values[i]) / right
    return float(2 * (slopes[1] - slopes[0]) / (left + right))
