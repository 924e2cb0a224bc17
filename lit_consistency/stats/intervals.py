"""How sure a number is: standard errors, bootstrap intervals, and the paired comparison of two models.

Every number here is a ratio of sums, R = sum(a) / sum(b): an accuracy has b = 1, bits per byte have b = bytes. A
balanced accuracy is the mean of one such ratio per class, the columns C. Items that belong together (one phenomenon,
one subject) are drawn together. Sources: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapters 6 and 13;
the linearised standard error of a ratio, Cochran, Sampling Techniques, 1977, section 6.3; McNemar's exact test; the
paired permutation test, also called approximate randomization, Noreen, Computer-Intensive Methods, 1989.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

N_RESAMPLES = 1000
N_PERMUTATIONS = 9999
MANY = 1000
"""From so many unequal items on, the binomial sum has numbers of hundreds of digits, and the normal limit is near."""


class Ratio(NamedTuple):
    """Numerators and denominators of N items in C classes, both (N, C) float64."""

    numerator: np.ndarray
    denominator: np.ndarray


class Estimate(NamedTuple):
    """A value with its standard error and 95% bootstrap interval; NaN where a single item, or no number, gives none."""

    value: float
    stderr: float
    low: float
    high: float


def ratio(numerator: Sequence[float] | np.ndarray, denominator: Sequence[float] | np.ndarray | None = None) -> Ratio:
    """One class: a mean of the numerators, or a ratio of sums."""
    top = np.asarray(numerator, dtype=np.float64).reshape(-1, 1)
    return Ratio(top, np.ones_like(top) if denominator is None else np.asarray(denominator, float).reshape(-1, 1))


def by_class(numerator: Sequence[float] | np.ndarray, classes: Sequence[int]) -> Ratio:
    """One column per class: the mean over classes of the mean within each."""
    member = np.equal.outer(np.asarray(classes), np.unique(classes)).astype(np.float64)
    return Ratio(member * np.asarray(numerator, dtype=np.float64).reshape(-1, 1), member)


def value_of(sums_a: np.ndarray, sums_b: np.ndarray) -> np.ndarray:
    """Mean over the last axis of a / b, of the classes that are there (b > 0); NaN where none is."""
    there = sums_b > 0
    parts = np.divide(sums_a, sums_b, out=np.zeros_like(sums_a), where=there)
    n_classes = there.sum(-1)
    return np.where(n_classes > 0, parts.sum(-1) / np.maximum(n_classes, 1), np.nan)


def estimate(
    items: Ratio, clusters: Sequence[str | int] | None = None, seed: int = 0, n_resamples: int = N_RESAMPLES
) -> Estimate:
    """Value, standard error and percentile interval.

    Args:
        items: what is summed.
        clusters: (N,) names of what is drawn together; None draws single items.
        seed: of the resampling.
        n_resamples: how often.
    """
    a, b = _by_cluster(items, clusters)
    value = float(value_of(a.sum(0), b.sum(0)))
    if len(a) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    draws = _resample(np.concatenate([a, b], axis=1), seed, n_resamples)
    low, high = np.nanquantile(value_of(*np.split(draws, 2, axis=1)), [0.025, 0.975])
    return Estimate(value, standard_error(a, b), float(low), float(high))


def standard_error(a: np.ndarray, b: np.ndarray) -> float:
    """Of a ratio by linearisation: sqrt(n / (n - 1) * sum_i (a_i - R b_i)^2) / sum(b); sd / sqrt(n) of a mean."""
    n, total = len(a), b.sum(0)
    there = total > 0
    residual = a[:, there] - a[:, there].sum(0) / total[there] * b[:, there]
    # classes are summed before squaring: a cluster may hold several of them
    return float(np.sqrt(n / (n - 1) * ((residual / total[there]).sum(1) ** 2).sum()) / there.sum())


def paired_difference(
    first: Ratio, second: Ratio, clusters: Sequence[str | int] | None = None, seed: int = 0, n: int = N_RESAMPLES
) -> Estimate:
    """Second minus first on the same items, drawn together."""
    parts = [*_by_cluster(first, clusters), *_by_cluster(second, clusters)]
    sums = [part.sum(0) for part in parts]
    value = float(value_of(*sums[2:]) - value_of(*sums[:2]))
    if len(parts[0]) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    a, b, c, d = np.split(_resample(np.concatenate(parts, axis=1), seed, n), 4, axis=1)
    draws = value_of(c, d) - value_of(a, b)
    low, high = np.nanquantile(draws, [0.025, 0.975])
    return Estimate(value, float(np.nanstd(draws, ddof=1)), float(low), float(high))


def mcnemar(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Two-sided exact p-value that two 0/1 scores of the same items differ by chance alone.

    With b items right only in the first and c right only in the second, twice the lower tail of a binomial
    distribution of b + c throws: p = min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c)).
    """
    left, right = np.asarray(first) > 0.5, np.asarray(second) > 0.5
    b, c = int((left & ~right).sum()), int((~left & right).sum())
    tail = sum(math.comb(b + c, i) for i in range(min(b, c) + 1))
    return min(1.0, 2 * tail / 2 ** (b + c)) if b + c < MANY else _corrected(b, c)


def permutation_test(
    first: Ratio,
    second: Ratio,
    clusters: Sequence[str | int] | None = None,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> float:
    """Two-sided p-value that two scores of the same items differ by chance alone; for any score, also by cluster.

    If it made no difference which model wrote a score, the two could be exchanged, cluster by cluster, as coins fall.
    The p-value is the share of such exchanges, the one that was found among them, whose difference is as large: of few
    clusters it is never small, 2 / 2^clusters at least.

    Args:
        first: of one model.
        second: of the other, of the same items.
        clusters: (N,) names of what is exchanged together; None exchanges single items.
        seed: of the coins.
        n_permutations: how often they are thrown.

    Returns:
        From 1 / (1 + n_permutations) to 1; NaN where there is a single cluster or no number.
    """
    (a, b), (c, d) = _by_cluster(first, clusters), _by_cluster(second, clusters)
    found = value_of(c.sum(0), d.sum(0)) - value_of(a.sum(0), b.sum(0))
    if len(a) < 2 or np.isnan(found):
        return math.nan
    changes = np.concatenate([c - a, d - b], axis=1)
    ours, theirs = (np.concatenate([x.sum(0), y.sum(0)]) for x, y in ((a, b), (c, d)))
    rng = np.random.default_rng(seed)
    n_as_large, at_once = 1, max(1, 2**22 // len(a))  # coins in memory
    for start in range(0, n_permutations, at_once):
        coins = rng.integers(0, 2, (min(at_once, n_permutations - start), len(a)), dtype=np.int8)
        moved = coins.astype(np.float64) @ changes
        differences = value_of(*np.split(theirs - moved, 2, axis=1)) - value_of(*np.split(ours + moved, 2, axis=1))
        # sums in another order differ in the last digits
        n_as_large += int((np.abs(differences) >= abs(found) - 1e-9 * max(abs(found), 1e-3)).sum())
    return n_as_large / (1 + n_permutations)


def _corrected(b: int, c: int) -> float:
    """McNemar's test with continuity correction: chi = (|b - c| - 1) / sqrt(b + c), two-sided."""
    return math.erfc(max(abs(b - c) - 1, 0) / math.sqrt(2 * (b + c)))


def _by_cluster(items: Ratio, clusters: Sequence[str | int] | None) -> tuple[np.ndarray, np.ndarray]:
    if clusters is None:
        return items.numerator, items.denominator
    names, place = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((2, len(names), items.numerator.shape[1]))
    np.add.at(sums[0], place, items.numerator)
    np.add.at(sums[1], place, items.denominator)
    return sums[0], sums[1]


def _resample(columns: np.ndarray, seed: int, n_resamples: int) -> np.ndarray:
    """(R, K): column sums of R draws with replacement of the N rows."""
    rng = np.random.default_rng(seed)
    n = len(columns)
    weights = (np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(n_resamples))
    return np.stack([row @ columns for row in weights])
