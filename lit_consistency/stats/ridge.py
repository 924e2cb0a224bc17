r"""Ridge regression, and prediction intervals that are learnt from groups held out.

With standardised features x (mean 0, standard deviation 1 over the n rows that are fitted) and an intercept b without
penalty,

.. math::
    \min_{w, b} \frac1n \sum_i (y_i - b - x_i^T w)^2 + \lambda |w|^2.

Interval: CV+ (Barber, Candes, Ramdas and Tibshirani 2021, Predictive inference with the jackknife+, Annals of
Statistics 49(1), section 3). With mu_{-k} fitted without group k, and R_i = |y_i - mu_{-k(i)}(x_i)| the error on a row
of that group, the interval at x runs from the floor(alpha (n + 1))-th smallest of mu_{-k(i)}(x) - R_i to the
ceil((1 - alpha) (n + 1))-th smallest of mu_{-k(i)}(x) + R_i. It needs no normal errors; of exchangeable rows it holds
at least 1 - 2 alpha - sqrt(2 / n) and typically 1 - alpha. Given up: that guarantee for rows of one group that go
together, so coverage is to be checked on groups of their own.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np


class Ridge(NamedTuple):
    """A fitted regression.

    Attributes:
        mean: (F,) of the features.
        spread: (F,) their standard deviation, 1 where they never change.
        weights: (F,) of the standardised features.
        intercept: the mean of the target.
    """

    mean: np.ndarray
    spread: np.ndarray
    weights: np.ndarray
    intercept: float

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(N,) of features (N, F)."""
        return self.intercept + ((features - self.mean) / self.spread) @ self.weights


def fit_ridge(features: np.ndarray, target: np.ndarray, penalty: float) -> Ridge:
    """Fit.

    Args:
        features: (N, F); F may be 0, then the mean is predicted.
        target: (N,).
        penalty: lambda, above 0.
    """
    mean, spread = features.mean(0), features.std(0)
    spread = np.where(spread > 0, spread, 1.0)
    scaled = (features - mean) / spread
    n, n_features = scaled.shape
    intercept = float(target.mean())
    normal = scaled.T @ scaled / n + penalty * np.eye(n_features)
    weights = np.linalg.solve(normal, scaled.T @ (target - intercept) / n)
    return Ridge(mean, spread, weights, intercept)


def cv_plus(
    features: np.ndarray,
    target: np.ndarray,
    groups: Sequence[Hashable],
    at: np.ndarray,
    penalty: float,
    level: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Intervals at new features, learnt by leaving out one group after the other.

    Args:
        features: (N, F).
        target: (N,).
        groups: of every row; at least two.
        at: (M, F).
        penalty: as for ``fit_ridge``.
        level: 1 - alpha.

    Returns:
        Ends (M,) and (M,); infinite where N rows are too few for the level, N < 1 / alpha - 1.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise ValueError(f"groups: {len(names)} of them; expected at least 2, of which one is left out")
    member = np.asarray([names.index(group) for group in groups])
    lows, highs = [], []
    for k in range(len(names)):
        own = member == k
        fitted = fit_ridge(features[~own], target[~own], penalty)
        errors = np.abs(target[own] - fitted.predict(features[own]))
        there = fitted.predict(at)
        lows.append(there[:, None] - errors)
        highs.append(there[:, None] + errors)
    low, high = (np.sort(np.concatenate(parts, 1), 1) for parts in (lows, highs))
    n, alpha = len(target), 1 - level
    # rounding must not ask for one more: .1 * (9 + 1) is 1
    first, last = math.floor(alpha * (n + 1) + 1e-9), math.ceil((1 - alpha) * (n + 1) - 1e-9)
    no_end = np.full(len(at), math.inf)
    return (low[:, first - 1] if first >= 1 else -no_end), (high[:, last - 1] if last <= n else no_end)
