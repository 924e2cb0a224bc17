"""Means over seeds with their uncertainty.

Seeds are few, so the interval is Student's: mean +- t * s / sqrt(n), with the 97.5% quantile t of n - 1 degrees of
freedom; a bootstrap of three numbers would be far too narrow. Given up: anything but nearly normal spread.

Source: Student 1908, The Probable Error of a Mean, Biometrika 6(1); Agarwal et al. 2021, Deep Reinforcement Learning at
the Edge of the Statistical Precipice, arXiv 2108.13264, on what few seeds can tell.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import stdtrit


class MeanInterval(NamedTuple):
    """A mean over ``n`` runs with its 95% interval; NaN where a single run gives none."""

    mean: float
    low: float
    high: float
    n: int


def mean_interval(values: Sequence[float]) -> MeanInterval:
    """Mean and Student's 95% interval.

    Args:
        values: one number a run; what is no number is left out.
    """
    known = np.asarray([value for value in values if math.isfinite(value)])
    n = len(known)
    mean = float(known.mean()) if n else math.nan
    if n < 2:
        return MeanInterval(mean, math.nan, math.nan, n)
    half = float(stdtrit(n - 1, 0.975)) * float(known.std(ddof=1)) / math.sqrt(n)
    return MeanInterval(mean, mean - half, mean + half, n)
