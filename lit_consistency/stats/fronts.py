r"""Learning against forgetting: fronts, attainment surfaces over seeds, and hypervolumes with intervals.

A point is (learning, forgetting): of learning more is better, of forgetting less. A point dominates another if it is
no worse in both and better in one; those of a seed that nobody dominates are its front. A point with a number that is
not finite (a diverged run) is on no front, dominates nothing and holds no area.

Over n seeds the k/n attainment surface is the border of what at least k of the seeds reach: at learning x the k-th
least of the seeds' own least forgetting. A seed without any finite point reaches nothing, and counts among the n.

The hypervolume is the area between a front and a reference point that is worse in both:

.. math::
    H = \left| \bigcup_i [r_l, l_i] \times [f_i, r_f] \right|

Its mean over seeds is the area under the share of seeds that attain a point. Everything takes O(n log n).

Sources: Kung, Luccio and Preparata 1975, J. ACM 22(4) (maxima by one sorted pass); Grunert da Fonseca, Fonseca and Hall
2001, Inferential Performance Assessment of Stochastic Optimisers and the Attainment Function, EMO; Zitzler and Thiele
1999, IEEE Transactions on Evolutionary Computation 3(4) (hypervolume); Davison and Hinkley 1997, Bootstrap Methods and
their Application, section 3.8 (two levels).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import stdtrit

N_BOOT = 1000


class HypervolumeInterval(NamedTuple):
    """Mean hypervolume of ``n`` seeds with its interval and standard error; the latter are NaN for a single seed."""

    value: float
    low: float
    high: float
    stderr: float
    n: int


def front(points: ArrayLike) -> np.ndarray:
    """Indices of the points that no other point dominates, by learning, the least first.

    Copies of a point do not dominate each other: all of them are on the front, or none. Which points are chosen does
    not depend on the order of the rows.

    Args:
        points: (n, 2) learning and forgetting.
    """
    points = _as_points(points)
    rows = np.flatnonzero(np.isfinite(points).all(1))
    rows = rows[np.lexsort((points[rows, 1], -points[rows, 0]))]
    learning, forgetting = points[rows].T
    # sorted from much learned to little, a point is dominated by one that comes before and forgets no more
    least_before = np.minimum.accumulate(np.concatenate([[math.inf], forgetting]))[:-1]
    # copies stand beside each other, and share the fate of the first
    first = np.ones(len(rows), bool)
    first[1:] = (np.diff(learning) != 0) | (np.diff(forgetting) != 0)
    chosen = (forgetting < least_before)[first][np.cumsum(first) - 1]
    kept = rows[chosen]
    return kept[np.lexsort((kept, points[kept, 0]))]


def corners(points: ArrayLike) -> np.ndarray:
    """(m, 2) points of the front, each once, with learning and forgetting both rising."""
    points = _as_points(points)
    return np.unique(points[front(points)], axis=0)


def attainment(points_by_seed: Sequence[ArrayLike]) -> dict[str, list[tuple[float, float]]]:
    """Empirical attainment surfaces of n seeds.

    Args:
        points_by_seed: (n_points, 2) of every seed, also of those without a point.

    Returns:
        ``1/n`` (what the best seed reaches) to ``n/n`` (what all seeds reach), then ``median`` (what at least half of
        them do), each as corners (learning, forgetting) sorted by learning; empty where too few seeds reach anything.

    Raises:
        ValueError: there is no seed.
    """
    fronts = _corners_by_seed(points_by_seed)
    n = len(fronts)
    levels = np.unique(np.concatenate([corner[:, 0] for corner in fronts]))
    # of a front sorted by learning, the first point that has learned enough has forgotten least
    least = np.stack([np.append(corner[:, 1], math.inf)[np.searchsorted(corner[:, 0], levels)] for corner in fronts])
    surfaces = {}
    for k, least_of_k in enumerate(np.sort(least, axis=0), start=1):
        # a corner is where more learning costs more forgetting
        corner = least_of_k < np.append(least_of_k[1:], math.inf)
        surfaces[f"{k}/{n}"] = list(zip(levels[corner].tolist(), least_of_k[corner].tolist(), strict=True))
    return surfaces | {"median": surfaces[f"{(n + 1) // 2}/{n}"]}


def common_reference(points_by_front: Sequence[ArrayLike]) -> tuple[float, float]:
    """The least learning and the most forgetting of all points that stand on any of the fronts.

    Runs that are dominated within their front, collapsed ones for instance, do not move it.

    Raises:
        ValueError: no front has a finite point.
    """
    ends = np.concatenate(_corners_by_seed(points_by_front))
    if not len(ends):
        raise ValueError("no reference for fronts without a finite point: expected at least one")
    return float(ends[:, 0].min()), float(ends[:, 1].max())


def hypervolume(points: ArrayLike, reference: tuple[float, float]) -> float:
    """Area that the points dominate, up to ``reference``.

    Args:
        points: (n, 2) learning and forgetting, on the front or not.
        reference: (learning, forgetting); a point that is not better in both adds nothing.
    """
    return float(_areas(_as_points(points), _as_reference(reference)))


def hypervolume_interval(
    points_by_seed: Sequence[ArrayLike],
    reference: tuple[float, float],
    items: Sequence[ArrayLike] | None = None,
    same_items: bool = False,
    level: float = 0.95,
    seed: int = 0,
    n_boot: int = N_BOOT,
) -> HypervolumeInterval:
    """Mean hypervolume over seeds, with Student's interval around it from a bootstrap over seeds, then items.

    A resample draws n seeds with replacement and shifts all points of each by a normal error of its items, each point
    by its own standard error: the points of a seed are scored on the same items, so their errors go together. The
    spread s of the resampled means gives ``value`` +- t s sqrt(n / (n - 1)) with n - 1 degrees of freedom, for the
    bootstrap's own percentiles cannot leave the range of the seeds: of three they cover 75% at most.

    Where every seed has items of its own, their error stands in the spread of the seeds already, and the interval with
    ``items`` is wider than need be; where all seeds share them (``same_items``), it stands nowhere else.

    Args:
        points_by_seed: (n_points, 2) of every seed; one without a finite point has the hypervolume 0.
        reference: as for ``hypervolume``.
        items: standard errors of learning and forgetting, one array for every one of ``points_by_seed`` and of its
            shape; what is not finite counts as 0.
        same_items: whether all seeds were scored on the same items, so that one error moves all of them.
        level: of the interval.
        seed: of the resamples.
        n_boot: how many.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a share between 0 and 1")
    if n_boot < 2:
        raise ValueError(f"n_boot {n_boot}: expected at least 2")
    seeds = [_as_points(points) for points in points_by_seed]
    corner = _as_reference(reference)
    n = len(seeds)
    if not n:
        raise ValueError("points_by_seed is empty: expected the points of at least one seed")
    errors = _as_errors(seeds, items)
    value = float(np.mean([_areas(points, corner) for points in seeds]))
    if n < 2:
        return HypervolumeInterval(value, math.nan, math.nan, math.nan, n)

    rng = np.random.default_rng(seed)
    drawn = rng.integers(n, size=(n_boot, n))
    # one error for every place of a resample, so a seed that is drawn twice has two, unless the items are the same
    shifts = rng.standard_normal((n_boot, 1 if same_items else n, 2))
    areas = np.empty((n_boot, n))
    for k, (points, error) in enumerate(zip(seeds, errors, strict=True)):
        samples, places = np.nonzero(drawn == k)
        if not error.any():
            areas[samples, places] = _areas(points, corner)
            continue
        near = _near_front(points, error, float(np.abs(shifts).max()))
        moves = shifts[samples, 0 if same_items else places]
        areas[samples, places] = _areas(points[near] + moves[:, None] * error[near], corner)
    stderr = float(areas.mean(1).std(ddof=1)) * math.sqrt(n / (n - 1))
    half = float(stdtrit(n - 1, (1 + level) / 2)) * stderr
    return HypervolumeInterval(value, value - half, value + half, stderr, n)


def _areas(points: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """(...,) areas of (..., n, 2) points: boxes from the widest to the narrowest add what they are taller."""
    sizes = (points - reference) * (1, -1)
    # a box without finite sides, or on the wrong side of the reference, is empty
    sizes = np.where((np.isfinite(sizes) & (sizes > 0)).all(-1, keepdims=True), sizes, 0)
    order = np.argsort(-sizes[..., 0], axis=-1)
    width, height = (np.take_along_axis(sizes[..., axis], order, axis=-1) for axis in (0, 1))
    return (width * np.diff(np.maximum.accumulate(height, axis=-1), axis=-1, prepend=0)).sum(-1)


def _near_front(points: np.ndarray, error: np.ndarray, largest: float) -> np.ndarray:
    """Which points no shift of up to ``largest`` standard errors leaves dominated; the others never add area."""
    best = front(points)
    # two hundred of them leave out nearly as much, and the table below stays small
    best = best[:: max(1, len(best) // 200)]
    # (n, m) by how much every point of the front is better, and how much of it the shift may take
    better = (points[best] - points[:, None]) * (1, -1)
    taken = largest * np.abs(error[best] - error[:, None])
    return ~((better >= taken).all(-1) & (better > 0).any(-1)).any(1)


def _corners_by_seed(points_by_seed: Sequence[ArrayLike]) -> list[np.ndarray]:
    if not len(points_by_seed):
        raise ValueError("points_by_seed is empty: expected the points of at least one seed")
    return [corners(points) for points in points_by_seed]


def _as_points(points: ArrayLike) -> np.ndarray:
    array = np.asarray(points, dtype=np.float64)
    if array.size == 0:
        return array.reshape(0, 2)
    if array.ndim != 2 or array.shape[1] != 2:
        raise ValueError(f"points has shape {list(array.shape)}: expected (n, 2), learning and forgetting")
    return array


def _as_reference(reference: tuple[float, float]) -> np.ndarray:
    array = np.asarray(reference, dtype=np.float64)
    if array.shape != (2,) or not np.isfinite(array).all():
        raise ValueError(f"reference {reference}: expected two finite numbers, learning and forgetting")
    return array


def _as_errors(seeds: list[np.ndarray], items: Sequence[ArrayLike] | None) -> list[np.ndarray]:
    """Standard errors of every seed's points, 0 where they are not known."""
    if items is None:
        return [np.zeros_like(points) for points in seeds]
    errors = [_as_points(error) for error in items]
    shapes, expected = [error.shape for error in errors], [points.shape for points in seeds]
    if shapes != expected:
        raise ValueError(f"items has shapes {shapes}: expected those of points_by_seed, {expected}")
    if any((error < 0).any() for error in errors):
        raise ValueError(
            f"items has a standard error of {min(error.min() for error in errors if error.size)}: expected none below 0"
        )
    return [np.where(np.isfinite(error), error, 0) for error in errors]
