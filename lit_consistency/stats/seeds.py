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
    half = student_quantile(0.975, n - 1) * float(known.std(ddof=1)) / math.sqrt(n)
    return MeanInterval(mean, mean - half, mean + half, n)


def student_quantile(p: float, dof: int) -> float:
    """The quantile of Student's distribution, by bisection of its closed form.

    Args:
        p: probability, 0.5 <= p < 1.
        dof: degrees of freedom, at least 1.
    """
    low, high = 0.0, 1.0
    while _student_cdf(high, dof) < p:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_cdf(middle, dof) < p else (low, middle)
    return (low + high) / 2


def _student_cdf(t: float, dof: int) -> float:
    """P(T <= t) for t >= 0 (Abramowitz & Stegun 1964, 26.7.3 and 26.7.4), with theta = atan(t / sqrt(dof))."""
    theta = math.atan(t / math.sqrt(dof))
    cosine, term, total = math.cos(theta), 1.0, 0.0
    for k in range(1 + dof % 2, dof, 2):
        total += term
        term *= k / (k + 1) * cosine**2
    inside = math.sin(theta) * total
    if dof % 2:
        inside = 2 / math.pi * (theta + math.cos(theta) * inside)
    return 0.5 + inside / 2
