"""How often a 95% interval holds the truth: at least .93 in every cell of a grid, by enumeration or simulation."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from scipy.special import bdtr

from lit_consistency.stats.intervals import (
    ClusterSums,
    Ratio,
    estimate,
    paired_share_interval,
    ratio,
    share_interval,
    student_interval,
)

PROMISED = 0.93
SHARES = np.round(np.arange(0.02, 0.985, 0.02), 2)
# p(gained), p(lost): from models that hardly differ to models that differ in most items
CHANGES = [(0.01, 0.01), (0.02, 0.0), (0.05, 0.02), (0.1, 0.1), (0.3, 0.1), (0.45, 0.45)]
LOWEST = PROMISED - 0.012
"""Of a simulation of 2,000 draws of a coverage of .93: less is 2.1 standard errors away."""


@pytest.mark.parametrize("n", [10, 15, 20, 30, 50, 100, 300, 1000])
def test_a_share_of_single_items_is_covered(n: int) -> None:
    """Exactly: every number of hits with its binomial probability."""
    bounds = np.array([estimate(ratio([1.0] * x + [0.0] * (n - x)), share=True)[2:] for x in range(n + 1)])
    for p in SHARES:
        probabilities = np.diff([0.0, *bdtr(np.arange(n + 1), n, p)])
        covered = probabilities[(bounds[:, 0] <= p) & (p <= bounds[:, 1])].sum()
        assert covered >= PROMISED, p


def cluster_sizes(n_clusters: int, size: int | str) -> np.ndarray:
    """Items of every cluster; unequal ones from 5 to 65."""
    if size == "unequal":
        return np.round(5 + 60 * np.linspace(0, 1, n_clusters) ** 3)
    return np.full(n_clusters, float(size))


def sums_of(hits: np.ndarray, sizes: np.ndarray) -> ClusterSums:
    return ClusterSums(
        hits[..., None].astype(float),
        np.broadcast_to(sizes, hits.shape)[..., None].astype(float),
        np.array([sizes.sum()]),
        single=bool((sizes == 1).all()),
        binary=True,
    )


def check_shares(n_clusters: int, size: int | str, correlation: float, n_draws: int) -> None:
    """Beta-binomial clusters: their shares scatter by a beta distribution with the given intra-cluster correlation."""
    rng = np.random.default_rng(0)
    sizes = cluster_sizes(n_clusters, size)
    for p in (0.02, 0.05, 0.1, 0.2, 0.5, 0.8, 0.9, 0.98):
        strength = (1 - correlation) / correlation if correlation else np.inf
        rates = rng.beta(p * strength, (1 - p) * strength, (n_draws, n_clusters)) if correlation else p
        hits = rng.binomial(sizes.astype(int), rates, (n_draws, n_clusters))
        _, low, high = share_interval(sums_of(hits, sizes))
        assert ((low <= p) & (p <= high)).mean() >= LOWEST, (n_clusters, size, correlation, p)


def check_changes(n_clusters: int, size: int | str, correlation: float, n_draws: int) -> None:
    """Dirichlet-multinomial clusters of items that are gained, lost, or stay."""
    rng = np.random.default_rng(0)
    sizes = cluster_sizes(n_clusters, size)
    for gained, lost in CHANGES:
        probabilities = np.array([gained, lost, 1 - gained - lost])
        if correlation:
            gammas = rng.gamma(probabilities * (1 - correlation) / correlation, size=(n_draws, n_clusters, 3)) + 1e-300
            rates = gammas / gammas.sum(-1, keepdims=True)
        else:
            rates = np.broadcast_to(probabilities, (n_draws, n_clusters, 3))
        n_gained = rng.binomial(sizes.astype(int), rates[..., 0])
        rest = np.clip(rates[..., 1] / np.maximum(1 - rates[..., 0], 1e-12), 0, 1)
        n_lost = rng.binomial(sizes.astype(int) - n_gained, rest)
        _, low, high = paired_share_interval(sums_of(n_gained, sizes), sums_of(n_lost, sizes))
        truth = gained - lost
        covered = ((low <= truth + 1e-12) & (truth - 1e-12 <= high)).mean()
        assert covered >= LOWEST, (n_clusters, size, correlation, gained, lost)


@pytest.mark.parametrize(("n_clusters", "size", "correlation"), [(5, 10, 0.1), (10, "unequal", 0.3), (50, 10, 0.3)])
def test_clusters_of_hits_are_covered(n_clusters: int, size: int | str, correlation: float) -> None:
    check_shares(n_clusters, size, correlation, n_draws=2000)
    check_changes(n_clusters, size, correlation, n_draws=2000)


@pytest.mark.parametrize("n", [10, 40, 200])
def test_differences_of_single_items_are_covered(n: int) -> None:
    check_changes(n, 1, 0.0, n_draws=2000)


@pytest.mark.slow
def test_the_whole_grid_is_covered() -> None:
    for n_clusters, size, correlation in product((5, 8, 10, 20, 50), (2, 10, 40, "unequal"), (0, 0.05, 0.2, 0.5)):
        check_shares(n_clusters, size, correlation, n_draws=4000)
        check_changes(n_clusters, size, correlation, n_draws=4000)
    for n in (10, 15, 20, 40, 100, 400):
        check_changes(n, 1, 0.0, n_draws=4000)


@pytest.mark.parametrize(("n_clusters", "size"), [(5, 4), (5, "unequal"), (20, "unequal"), (200, 1)])
def test_means_and_ratios_are_covered(n_clusters: int, size: int | str) -> None:
    """Normal errors, half of whose variance belongs to the cluster; sizes are the denominators."""
    rng = np.random.default_rng(0)
    sizes = cluster_sizes(n_clusters, size)
    shape = (2000, n_clusters)
    sums = sizes * (3 + rng.normal(size=shape) * 0.7) + np.sqrt(sizes) * rng.normal(size=shape) * 0.7
    clusters = ClusterSums(
        sums[..., None], np.broadcast_to(sizes, shape)[..., None], np.array([sizes.sum()]), single=False, binary=False
    )
    _, low, high = student_interval(clusters)
    assert ((low <= 3) & (high >= 3)).mean() >= LOWEST


def test_the_cells_of_the_old_bootstrap() -> None:
    """It covered .76 of n 30 at p .95, .86 of n 100 at p .02, .83 of 5 clusters, and said 0 .. 0 of 0 of 40."""
    nothing = estimate(ratio([0.0] * 40), share=True)
    assert nothing[:3] == (0.0, 0.0, 0.0)
    assert nothing.high == pytest.approx(1 - 0.025 ** (1 / 40))  # Clopper and Pearson's of no hit, in closed form
    clusters = [i // 20 for i in range(100)]
    all_right = estimate(ratio([1.0] * 100), clusters, share=True)
    assert all_right.high == 1.0
    assert all_right.low < 0.5, "five clusters that agree are no hundred items"
    balanced = estimate(Ratio(np.eye(2)[[0, 1] * 20], np.eye(2)[[0, 1] * 20]), share=True)
    assert balanced.value == 1.0
    assert 0.8 < balanced.low < 1
