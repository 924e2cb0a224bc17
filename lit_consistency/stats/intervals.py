r"""How sure a number is: standard errors and 95% intervals of one model's score, and of the difference of two.

Every number here is a ratio of sums, R = sum(a) / sum(b): an accuracy has b = 1, bits per byte have b = bytes. A
balanced accuracy is the mean of one such ratio per class, the columns C. Items that belong together (one phenomenon,
one subject, one document) form a cluster; without clusters every item is one.

Standard error: linearised, with the residual of every cluster divided by sqrt(1 - h), h its share of sum(b), which
undoes that a large cluster pulls R towards itself (CR2):

.. math::
    V = \sum_k \frac{(a_k - R b_k)^2}{(1 - h_k) (\sum b)^2}

Intervals: Student's, R +- t sqrt(V), for means and ratios without bounds. Scores between 0 and 1 are shares, whose
normal interval is empty at 0 of 40 and covers .76 at 29 of 30: they get Clopper and Pearson's interval at the effective
number of items n* = R (1 - R) / V (Korn and Graubard); differences of shares get Bonett and Price's, likewise at n*.
Wilson's interval was tried: it falls to .914 at n = 10, and to .81 with clusters that differ.

Two rules keep the promise where clusters are few, both found by simulation (tests/stats/test_coverage.py):

- Degrees of freedom are the smaller of Satterthwaite's and 2 (sum s)^2 / sum (s - mean s)^2 of the squared residuals
  s, for a variance that rests on two of fifty clusters is known no better than from two.
- Whether items of a cluster go together cannot be seen where no cluster holds a hit, and hardly where one does. With j
  clusters that hold one (or one miss, whichever are fewer), 1 / n* is mixed with 1 / (number of clusters) by 2^-j.

Given up: exactness for clusters: simulated coverage is .93 to .99, and intervals of five clusters are wide.

Sources: Cochran 1977, Sampling Techniques, section 6.3 (the linearised ratio); Bell and McCaffrey 2002, Survey
Methodology 28(2) (CR2 and its degrees of freedom); Clopper and Pearson 1934, Biometrika 26; Korn and Graubard 1998,
Survey Methodology 24(2); Bonett and Price 2012, J. Educational and Behavioral Statistics 37(4).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.special import betaincinv, ndtri, stdtrit

Z = float(ndtri(0.975))
"""Half the width, in standard errors, of a 95% interval of a normal variable."""


class Ratio(NamedTuple):
    """Numerators and denominators of N items in C classes, both (N, C) float64."""

    numerator: np.ndarray
    denominator: np.ndarray


class Estimate(NamedTuple):
    """A value with its standard error and 95% interval; NaN where a single cluster, or no number, gives none."""

    value: float
    stderr: float
    low: float
    high: float


def turned(change: Estimate) -> Estimate:
    """The same seen from the other side: how much worse, of how much better."""
    return Estimate(-change.value + 0.0, change.stderr, -change.high + 0.0, -change.low + 0.0)  # no negative zero


class ClusterSums(NamedTuple):
    """Sums by cluster, with any number of leading axes, so that many data sets are computed at once.

    Attributes:
        a: (..., K, C) numerators of K clusters in C classes.
        b: (..., K, C) denominators.
        n: (..., C) items of every class, in all clusters together.
        single: whether every cluster is one item.
        binary: whether every item is a hit or a miss; then clusters cannot tell more than as many single items.
    """

    a: np.ndarray
    b: np.ndarray
    n: np.ndarray
    single: bool
    binary: bool


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
    ratios = np.divide(sums_a, sums_b, out=np.zeros_like(sums_a), where=there)
    n_classes = there.sum(-1)
    return np.where(n_classes > 0, ratios.sum(-1) / np.maximum(n_classes, 1), np.nan)


def estimate(items: Ratio, clusters: Sequence[str | int] | None = None, share: bool = False) -> Estimate:
    """Value, standard error and 95% interval; a few dozen microseconds for a thousand items.

    Args:
        items: what is summed.
        clusters: (N,) names of what is drawn together; None draws single items.
        share: whether scores lie between 0 and 1 by their nature, as those of right answers do; their interval does
            too, and is not empty where all items score the same.

    Raises:
        ValueError: ``share``, and an item lies outside of 0 <= numerator <= denominator.
    """
    if share:
        _check_share(items)
    sums = cluster_sums(items, clusters)
    value = float(value_of(sums.a.sum(0), sums.b.sum(0)))
    if len(sums.a) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    return Estimate(value, *(float(x) for x in (share_interval if share else student_interval)(sums)))


def standard_error(items: Ratio, clusters: Sequence[str | int] | None = None) -> float:
    """Standard error of a ratio of sums by cluster; NaN where there is a single cluster."""
    return estimate(items, clusters).stderr


def paired_difference(
    first: Ratio, second: Ratio, clusters: Sequence[str | int] | None = None, share: bool = False
) -> Estimate:
    """Second minus first on the same items, which are drawn together.

    Args:
        first: of one model.
        second: of the other, the same items with the same denominators where ``share``.
        clusters: as for ``estimate``.
        share: as for ``estimate``.
    """
    if share:
        _check_share(first)
        _check_share(second)
    one, two = cluster_sums(first, clusters), cluster_sums(second, clusters)
    value = float(value_of(two.a.sum(0), two.b.sum(0)) - value_of(one.a.sum(0), one.b.sum(0)))
    if len(one.a) < 2 or math.isnan(value):
        return Estimate(value, math.nan, math.nan, math.nan)
    if not share:
        stderr, dof = _spread(_scores(two) - _scores(one), _weights(one))
        half = stdtrit(dof, 0.975) * stderr
        return Estimate(value, float(stderr), float(value - half), float(value + half))
    change = second.numerator - first.numerator
    gained = cluster_sums(Ratio(np.maximum(change, 0), first.denominator), clusters)
    lost = cluster_sums(Ratio(np.maximum(-change, 0), first.denominator), clusters)
    return Estimate(value, *(float(x) for x in paired_share_interval(gained, lost)))


def share_low(value: float, stderr: float, n: int) -> float:
    """Lower end of the interval of a share, from its summary: Clopper and Pearson's at the effective number of items.

    Args:
        value: the share.
        stderr: its standard error; 0 where all items score the same, which counts as n single items.
        n: items.
    """
    effective = min(value * (1 - value) / stderr**2, n) if stderr > 0 else n
    return float(_clopper_pearson(np.asarray(value), np.asarray(effective))[0])


def smallest_change(stderr: float | None, n: int | None = None) -> float | None:
    r"""Smaller changes than this lie within their own 95% interval around no change.

    Args:
        stderr: of the paired difference, once items have changed.
        n: items of a share, none of which has changed yet: then z / (2 sqrt(n)), half the width of the widest interval
            of a share, 4.9 points of 400 items.

    Returns:
        None where neither says anything.
    """
    if stderr is not None and stderr > 0:
        return Z * stderr
    return Z / (2 * math.sqrt(n)) if n else None


def cluster_sums(items: Ratio, clusters: Sequence[str | int] | None = None) -> ClusterSums:
    """Sums of every cluster, in the order of their names; of single items as they come."""
    a, b = items
    binary = bool(np.isin(a, (0, 1)).all() and np.isin(b, (0, 1)).all())
    # of items that weigh unequally as many count as equal ones of the same variance (Kish)
    squares = (b**2).sum(0)
    n = np.divide(b.sum(0) ** 2, squares, out=np.zeros_like(squares), where=squares > 0)
    if clusters is None:
        return ClusterSums(a, b, n, single=True, binary=binary)
    # sorted names: the sums do not depend on the order of the items
    names, number = np.unique(np.asarray(clusters), return_inverse=True)
    sums = np.zeros((2, len(names), a.shape[1]))
    np.add.at(sums[0], number, a)
    np.add.at(sums[1], number, b)
    return ClusterSums(sums[0], sums[1], n, single=len(names) == len(a), binary=binary)


# -------------------- intervals of sums, each (...,) stderr, low and high


def student_interval(sums: ClusterSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """R +- t sqrt(V)."""
    value = value_of(sums.a.sum(-2), sums.b.sum(-2))
    stderr, dof = _spread(_scores(sums), _weights(sums))
    half = stdtrit(dof, 0.975) * stderr
    return stderr, value - half, value + half


def share_interval(sums: ClusterSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Clopper and Pearson's interval at the effective number of items; of single hits and misses it is their own."""
    value = value_of(sums.a.sum(-2), sums.b.sum(-2))
    stderr, dof = _spread(_scores(sums), _weights(sums))
    n = _equal_n(sums.n)
    # of independent throws of one coin the variance is known by their mean: there is none to be estimated
    if sums.single and sums.binary:
        return stderr, *_clopper_pearson(value, n)
    few = np.minimum((sums.a > 0).any(-1).sum(-1), (sums.a < sums.b).any(-1).sum(-1))
    effect = _design_effect(stderr**2, value * (1 - value) / n, sums, few)
    quantile = np.where(few > 0, stdtrit(dof, 0.975), Z)  # without a hit no variance is estimated
    return stderr, *_clopper_pearson(value, n / effect * (Z / quantile) ** 2)


def paired_share_interval(gained: ClusterSums, lost: ClusterSums) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bonett and Price's interval of a difference of shares of the same items, at the effective number of items.

    Args:
        gained: numerators are what an item scores more in the second than in the first.
        lost: what it scores less, with the same denominators.
    """
    change = gained._replace(a=gained.a - lost.a)
    stderr, dof = _spread(_scores(change), _weights(change))
    totals = gained.b.sum(-2)
    up, down = (
        np.divide(side.a.sum(-2), totals, out=np.zeros_like(totals), where=totals > 0) for side in (gained, lost)
    )
    classes = totals > 0
    n_classes = classes.sum(-1)
    n = np.where(classes, gained.n, np.inf)
    changed = (gained.a > 0) | (lost.a > 0)
    few = np.minimum(changed.any(-1).sum(-1), ((gained.a < gained.b) & (lost.a < lost.b)).any(-1).sum(-1))
    if gained.single and gained.binary:
        effect = np.ones_like(stderr)
    else:
        simple = ((up + down - (up - down) ** 2) / n).sum(-1) / n_classes**2
        effect = _design_effect(stderr**2, simple, gained, few)
    quantile = np.where(few > 0, stdtrit(dof, 0.975), Z)[..., None]
    n = n / effect[..., None]
    # a quarter of t^2 changes each way, never seen, but no surprise either
    more = quantile**2 / 4
    with np.errstate(invalid="ignore"):  # classes that are not there
        up, down = (up * n + more) / (n + 2 * more), (down * n + more) / (n + 2 * more)
        variances = np.where(classes, (up + down - (up - down) ** 2) / (n + 2 * more), 0)
    middle = np.where(classes, up - down, 0).sum(-1) / n_classes
    half = quantile[..., 0] * np.sqrt(variances.sum(-1)) / n_classes
    return stderr, middle - half, middle + half


def _clopper_pearson(value: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Quantiles of Beta(x, n - x + 1) and Beta(x + 1, n - x), of x = value n hits in n, which need not be whole."""
    hits = value * n
    misses = n - hits
    low = betaincinv(np.maximum(hits, 1e-300), misses + 1, 0.025)
    high = betaincinv(hits + 1, np.maximum(misses, 1e-300), 0.975)
    return np.where(hits > 1e-9 * n, low, 0.0), np.where(misses > 1e-9 * n, high, 1.0)


def _design_effect(variance: np.ndarray, simple: np.ndarray, sums: ClusterSums, few: np.ndarray) -> np.ndarray:
    """Variance over that of single items, mixed with its greatest value, items per cluster, as the docstring says."""
    effect = np.divide(variance, simple, out=np.ones_like(variance), where=simple > 0)
    # clusters may look more even than single items by chance, seldom by nature (NCHS, Vital Health Statistics 2(175))
    if sums.binary:
        effect = np.maximum(effect, 1)
    n_clusters = 1 / (_weights(sums) ** 2).sum(-1)
    unknown = np.exp2(-few.astype(np.float64))
    return (1 - unknown) * effect + unknown * _equal_n(sums.n) / n_clusters


# -------------------- variance and its degrees of freedom


def _scores(sums: ClusterSums) -> np.ndarray:
    """(..., K): what every cluster adds to the error of the value; their squares sum to its variance."""
    total = sums.b.sum(-2, keepdims=True)
    there = total > 0
    safe = np.where(there, total, 1)
    leverage = sums.b / safe
    residual = (sums.a - sums.a.sum(-2, keepdims=True) / safe * sums.b) / safe
    # a class of one cluster has no residual, and no spread that could be seen
    kept = np.sqrt(np.where(leverage < 1, 1 - leverage, 1))
    return np.where(there, residual / kept, 0).sum(-1) / np.maximum(there.sum(-1), 1)


def _weights(sums: ClusterSums) -> np.ndarray:
    """(..., K): every cluster's share of all items, the mean over the classes that are there."""
    total = sums.b.sum(-2, keepdims=True)
    there = total > 0
    shares = np.where(there, sums.b / np.where(there, total, 1), 0)
    return shares.sum(-1) / np.maximum(there.sum(-1), 1)


def _equal_n(n: np.ndarray) -> np.ndarray:
    """(...,): items of one class whose mean is as sure as the mean of C classes with n of them each; n of one class."""
    there = n > 0
    return there.sum(-1) ** 2 / np.where(there, 1 / np.where(there, n, 1), 0).sum(-1)


def _spread(scores: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Standard error and its degrees of freedom, both (...,), the latter from 1 to Satterthwaite's."""
    squares = scores**2
    variance = squares.sum(-1)
    scatter = ((squares - squares.mean(-1, keepdims=True)) ** 2).sum(-1)
    most = np.broadcast_to(_satterthwaite(weights), variance.shape)
    seen = np.divide(2 * variance**2, scatter, out=np.full_like(variance, np.inf), where=scatter > 0)
    return np.sqrt(variance), np.maximum(np.minimum(most, seen), 1)


def _satterthwaite(weights: np.ndarray) -> np.ndarray:
    r"""Degrees of freedom of V where a cluster's error is normal and as large as its weight w; K - 1 of equal ones.

    V is the quadratic form e' M e with M = (I - w 1')' A (I - w 1') and A = diag(1 / (1 - w)); with the covariance
    S = diag(w^2) of e, which is that of clusters whose items are all alike, (tr MS)^2 / tr (MS)^2. MS is a diagonal
    and a matrix of rank 2, so both traces take K steps.
    """
    # a cluster that is nearly all there is leaves nothing to compare it with
    scale = 1 / np.maximum(1 - weights, 1e-9)
    covariance, pull = weights**2, scale * weights
    diagonal = scale * covariance
    total = (pull * weights).sum(-1, keepdims=True)
    left = np.stack([pull, np.ones_like(pull)], -1)
    right = np.stack([-covariance, covariance * (total - pull)], -1)
    small = np.einsum("...ki,...kj->...ij", right, left)
    mixed = np.einsum("...ki,...k,...ki->...", right, diagonal, left)
    trace = diagonal.sum(-1) + np.einsum("...ii->...", small)
    of_square = (diagonal**2).sum(-1) + 2 * mixed + np.einsum("...ij,...ji->...", small, small)
    return np.maximum(np.divide(trace**2, of_square, out=np.ones_like(trace), where=of_square > 0), 1)


def _check_share(items: Ratio) -> None:
    a, b = items
    if ((a < 0) | (a > b)).any():  # NaN is told by the result
        raise ValueError(f"a share with numerators from {a.min()} to {a.max()}: expected 0 to the denominator")
