"""Whether two models differ by more than chance: p-values from scores of the same items.

McNemar's exact test for single items that are right or wrong; a paired permutation test, also called approximate
randomization, for every other score and for clusters. Both have a least p-value, 2 / 2^k of k items or clusters that
may be exchanged: from fewer than six nothing can be told at the level of 0.05.

Sources: McNemar 1947, Psychometrika 12(2); Noreen 1989, Computer-Intensive Methods for Testing Hypotheses.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import bdtr

from lit_consistency.stats.intervals import Ratio, cluster_sums, value_of

N_PERMUTATIONS = 9999
LEVEL = 0.05
"""A smaller p-value names a better model."""


def least_p_value(n: int) -> float:
    """What both tests give at best for ``n`` items or clusters: all of them changed one way."""
    return min(1.0, 2.0 ** (1 - n))


def mcnemar(first: Sequence[float] | np.ndarray, second: Sequence[float] | np.ndarray) -> float:
    """Two-sided exact p-value that two 0/1 scores of the same items differ by chance alone.

    With b items right only in the first and c right only in the second, twice the lower tail of a binomial
    distribution of b + c throws: p = min(1, 2 P(X <= min(b, c))).
    """
    left, right = np.asarray(first) > 0.5, np.asarray(second) > 0.5
    b, c = int((left & ~right).sum()), int((~left & right).sum())
    return min(1.0, 2 * float(bdtr(min(b, c), b + c, 0.5)))


def permutation_test(
    first: Ratio,
    second: Ratio,
    clusters: Sequence[str | int] | None = None,
    seed: int = 0,
    n_permutations: int = N_PERMUTATIONS,
) -> float:
    """Two-sided p-value that two scores of the same items differ by chance alone; for any score, also by cluster.

    If it made no difference which model wrote a score, the two could be exchanged, cluster by cluster, as coins fall.
    The p-value is the share of such exchanges, the one that was seen among them, whose difference is as large. Where
    there are no more than ``n_permutations`` ways of exchanging, each of them is tried once, and p is exact.

    Args:
        first: of one model.
        second: of the other, of the same items.
        clusters: (N,) names of what is exchanged together; None exchanges single items.
        seed: of the coins.
        n_permutations: how often they are thrown.

    Returns:
        At least ``least_p_value`` of the clusters, and 1 / (1 + n_permutations); NaN where there is a single cluster or
        no number.
    """
    one, two = cluster_sums(first, clusters), cluster_sums(second, clusters)
    difference = value_of(two.a.sum(0), two.b.sum(0)) - value_of(one.a.sum(0), one.b.sum(0))
    n_clusters = len(one.a)
    if n_clusters < 2 or np.isnan(difference):
        return math.nan
    changes = np.concatenate([two.a - one.a, two.b - one.b], axis=1)
    # an exchange moves the change of every cluster whose coin falls heads from one side to the other
    ours, theirs = (np.concatenate([x.a.sum(0), x.b.sum(0)]) for x in (one, two))
    exact = 2.0**n_clusters <= n_permutations
    rng = np.random.default_rng(seed)
    n_throws = 2**n_clusters if exact else n_permutations
    n_as_large, at_once = 0, max(1, 2**22 // n_clusters)  # coins in memory
    for start in range(0, n_throws, at_once):
        throws = np.arange(start, min(start + at_once, n_throws))
        if exact:
            coins = (throws[:, None] >> np.arange(n_clusters)) & 1
        else:
            coins = rng.integers(0, 2, (len(throws), n_clusters), dtype=np.int8)
        moved = coins.astype(np.float64) @ changes
        differences = value_of(*np.split(theirs - moved, 2, axis=1)) - value_of(*np.split(ours + moved, 2, axis=1))
        # sums in another order differ in the last digits
        least = abs(difference) - 1e-9 * max(abs(difference), 1e-3)
        n_as_large += int((np.abs(differences) >= least).sum())
    return n_as_large / n_throws if exact else (1 + n_as_large) / (1 + n_throws)
