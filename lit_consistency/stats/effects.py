r"""Effects over seeds: paired differences, the effects of a crossed design, components of variance.

The variance sits in the base: a difference is taken within each seed of the base, and the seeds are the sample. With
differences d of n seeds the interval is Student's, mean(d) +- t s(d) / sqrt(n) with n - 1 degrees of freedom.

Consistency is an interaction: matched pairs do better than the better base and the better finetuner together explain.
For two optimizers, y[b, f] the number of base b finetuned with f,

.. math::
    I = (y_{11} - y_{10}) - (y_{01} - y_{00}) = (y_{00} + y_{11}) - (y_{01} + y_{10}),

so of forgetting a negative interaction says that matched pairs forget less. For A optimizers the matching contrast is
the mean of the diagonal less the mean of what stands beside it, after the means of rows and columns are removed (which
changes nothing: every row and every column has one matched cell); of two optimizers it is I / 2.

Given up: anything but nearly normal differences for fewer than six seeds, where no other interval has 95%.

Sources: Student 1908, Biometrika 6(1); Hesterberg 2015, What Teachers Should Know About the Bootstrap, The American
Statistician 69(4) (the expanded percentile interval); Searle, Casella and McCulloch 1992, Variance Components, chapter
3 (the analysis of variance of unequal groups).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, stdtr, stdtrit

from lit_consistency.stats.intervals import ratio
from lit_consistency.stats.paired_tests import permutation_test

N_BOOT = 9999


class Contrast(NamedTuple):
    """An effect over seeds.

    Attributes:
        value: mean over seeds, NaN without any.
        low: end of the interval, NaN where n seeds give none.
        high: the other end.
        p: two-sided, of no effect; it is below 1 - level where the interval leaves out 0.
        n: seeds that have all numbers of this contrast.
        stderr: standard error of ``value``, NaN for fewer than two seeds.
        left_out: seeds that lack a number of it.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    stderr: float
    left_out: int = 0


class Crossed(NamedTuple):
    """Effects of a design of bases x finetuners; every name says what is subtracted from what.

    Attributes:
        main: ``base B - A`` and ``finetuner B - A``, means over all levels of the other factor, against the first.
        simple: ``B - A on base C`` and ``base B - A with finetuner C``, against the first.
        matched: base -> its own finetuner less the mean of the other bases' finetuners on it.
        interaction: difference of differences of two optimizers that are both base and finetuner; None of another
            number of them.
        matching: diagonal less the rest, of all optimizers that are both; None of fewer than two.
    """

    main: dict[str, Contrast]
    simple: dict[str, Contrast]
    matched: dict[str, Contrast]
    interaction: Contrast | None
    matching: Contrast | None


class VarianceComponents(NamedTuple):
    """Standard deviations of a number: where its spread comes from; NaN where too few runs tell.

    Attributes:
        base: between seeds of the base.
        order: between orders of the data on one base, without the error of the items.
        items: root of the mean squared standard error of a run.
        n_bases: seeds of the base with a number.
        n_runs: runs with a number.
    """

    base: float
    order: float
    items: float
    n_bases: int
    n_runs: int


def paired_effect(
    first: ArrayLike,
    second: ArrayLike,
    level: float = 0.95,
    method: Literal["student", "bootstrap"] = "student",
    seed: int = 0,
    n_boot: int = N_BOOT,
) -> Contrast:
    """Second less first by seed of the base.

    Student's assumes nearly normal differences. The bootstrap does not; its percentiles are widened to the quantile of
    Student's distribution and by sqrt(n / (n - 1)) (Hesterberg), and its p is that of the exact permutation test. As
    it cannot leave the range of the differences, which n seeds leave with probability 2^(1 - n), it gives no interval
    where that is more than 1 - level: fewer than 6 seeds at 95%.

    Args:
        first: (n_seeds,) numbers; a seed without one in both is left out.
        second: (n_seeds,) of the same seeds in the same order.
        level: of the interval.
        method: as above.
        seed: of the bootstrap.
        n_boot: resamples.
    """
    one, two = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if one.ndim != 1 or one.shape != two.shape:
        raise ValueError(f"first and second have shapes {list(one.shape)} and {list(two.shape)}: expected (n_seeds,)")
    there = np.isfinite(one) & np.isfinite(two)
    differences = np.where(there, two, math.nan) - np.where(there, one, math.nan)
    student = over_seeds(differences, level)
    if method == "student":
        return student
    if method != "bootstrap":
        raise ValueError(f"method {method!r}: expected student or bootstrap")
    n = student.n
    if n < 2:
        return student
    p = permutation_test(ratio(one[there]), ratio(two[there]), seed=seed)
    if 2.0 ** (1 - n) > 1 - level:
        return student._replace(low=math.nan, high=math.nan, p=p)
    picks = np.random.default_rng(seed).integers(n, size=(n_boot, n))
    tail = float(ndtr(stdtrit(n - 1, (1 - level) / 2) * math.sqrt(n / (n - 1))))
    low, high = np.quantile(differences[there][picks].mean(1), [tail, 1 - tail])
    return student._replace(low=float(low), high=float(high), p=p)


def over_seeds(values: ArrayLike, level: float = 0.95) -> Contrast:
    """Mean over seeds with Student's interval; of values that are all alike it has no width.

    Args:
        values: (n_seeds,) one contrast each; what is not finite is left out and counted.
        level: of the interval.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level}: expected a share between 0 and 1")
    array = np.asarray(values, dtype=np.float64)
    known = array[np.isfinite(array)]
    n, left_out = len(known), len(array) - len(known)
    value = float(known.mean()) if n else math.nan
    if n < 2:
        return Contrast(value, math.nan, math.nan, math.nan, n, math.nan, left_out)
    return at_level(Contrast(value, 0, 0, 0, n, float(known.std(ddof=1)) / math.sqrt(n), left_out), level)


def at_level(effect: Contrast, level: float) -> Contrast:
    """The same effect with Student's interval and p at another level of confidence, as Holm's test asks for."""
    if effect.n < 2:
        return effect
    half = float(stdtrit(effect.n - 1, (1 + level) / 2)) * effect.stderr
    return effect._replace(
        low=effect.value - half, high=effect.value + half, p=distance_p(abs(effect.value), effect.stderr, effect.n)
    )


def distance_p(distance: float, stderr: float, n: int) -> float:
    """Two-sided p of Student's test that a mean of n lies as far as this from a number; NaN for n below 2."""
    if n < 2:
        return math.nan
    # differences that are all alike have no spread: they are sure, unless they are nothing
    t = distance / stderr if stderr > 0 else (math.inf if distance > 0 else 0.0)
    return 2 * float(stdtr(n - 1, -t))


def crossed(
    table: ArrayLike,
    bases: Sequence[str] | None = None,
    finetuners: Sequence[str] | None = None,
    level: float = 0.95,
) -> Crossed:
    """Main effects, simple effects and the interaction, each a contrast within seeds.

    Near a ceiling an interaction in points can be one of the scale alone: hand in the table on two scales
    (``matched.to_scale``), and read both.

    Args:
        table: (n_seeds, A, B) numbers of every base and finetuner, NaN where there is none; a seed is left out of
            those contrasts alone whose cells it lacks.
        bases: A names; None numbers them.
        finetuners: B names; a base and a finetuner of one name are a matched pair.
        level: of the intervals.
    """
    cells = np.asarray(table, dtype=np.float64)
    if cells.ndim != 3 or min(cells.shape[1:], default=0) < 1:
        raise ValueError(f"table has shape {list(cells.shape)}: expected (n_seeds, bases, finetuners)")
    rows = _names("bases", bases, cells.shape[1])
    columns = _names("finetuners", finetuners, cells.shape[2])

    def contrast(plus: tuple[Sequence[str], Sequence[str]], minus: tuple[Sequence[str], Sequence[str]]) -> Contrast:
        """Mean of the cells of some bases x finetuners, less the mean of those of others."""
        weights = np.zeros(cells.shape[1:])
        for sign, (some_rows, some_columns) in ((1, plus), (-1, minus)):
            block = np.ix_([rows.index(b) for b in some_rows], [columns.index(f) for f in some_columns])
            weights[block] += sign / (len(some_rows) * len(some_columns))
        return _weighted(cells, weights, level)

    main, simple = {}, {}
    for b in rows[1:]:
        main[f"base {b} - {rows[0]}"] = contrast(([b], columns), ([rows[0]], columns))
        for f in columns:
            simple[f"base {b} - {rows[0]} with finetuner {f}"] = contrast(([b], [f]), ([rows[0]], [f]))
    for f in columns[1:]:
        main[f"finetuner {f} - {columns[0]}"] = contrast((rows, [f]), (rows, [columns[0]]))
        for b in rows:
            simple[f"{f} - {columns[0]} on base {b}"] = contrast(([b], [f]), ([b], [columns[0]]))

    both = [name for name in rows if name in columns]
    if len(both) < 2:
        return Crossed(main, simple, {}, None, None)
    matched = {b: contrast(([b], [b]), ([b], [f for f in both if f != b])) for b in both}
    n = len(both)
    pairs = np.zeros(cells.shape[1:])
    pairs[np.ix_([rows.index(b) for b in both], [columns.index(f) for f in both])] = -1 / (n * (n - 1))
    for name in both:
        pairs[rows.index(name), columns.index(name)] = 1 / n
    matching = _weighted(cells, pairs, level)
    return Crossed(main, simple, matched, _weighted(cells, 2 * pairs, level) if n == 2 else None, matching)


def variance_components(
    values: Mapping[str | int, Sequence[float]],
    stderrs: Mapping[str | int, Sequence[float]] | None = None,
) -> VarianceComponents:
    r"""Spread between bases, between orders of the data on one base, and of the items, by the method of moments.

    With n_i runs of base i, N in all, of k bases, and the mean squares within and between bases,

    .. math::
        \sigma_o^2 = M_w - \overline{se^2}, \qquad
        \sigma_b^2 = \frac{M_b - M_w}{n_0}, \qquad n_0 = \frac{N - \sum n_i^2 / N}{k - 1},

    each 0 where it comes out below. Where all orders are scored on the same items, part of the items' error is common
    to them: the spread of orders is then larger than said.

    Args:
        values: seed of the base -> a number for every order; what is not finite is left out.
        stderrs: standard errors of the same shape; NaN counts as unknown. None subtracts nothing.

    Returns:
        ``base`` is NaN without two bases, ``order`` without a base of two orders, and then so is ``base``, which
        cannot be told from it; ``items`` without standard errors.
    """
    groups, squares = [], []
    for base, numbers in values.items():
        row = np.asarray(numbers, dtype=np.float64)
        errors = np.full_like(row, math.nan) if stderrs is None else np.asarray(stderrs.get(base, ()), dtype=np.float64)
        if errors.shape != row.shape:
            raise ValueError(f"stderrs of base {base!r} has {errors.size} numbers: expected {row.size}, as values has")
        known = np.isfinite(row)
        if known.any():
            groups.append(row[known])
            squares.append(errors[known] ** 2)
    n_i = np.array([len(group) for group in groups])
    k, n = len(groups), int(n_i.sum())
    error = np.concatenate(squares) if groups else np.empty(0)
    items = float(error[np.isfinite(error)].mean()) if np.isfinite(error).any() else math.nan
    if n == k:
        return VarianceComponents(math.nan, math.nan, math.sqrt(items), k, n)
    means = np.array([group.mean() for group in groups])
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in groups) / (n - k)
    order = math.sqrt(max(within - (0 if math.isnan(items) else items), 0))
    if k < 2:
        return VarianceComponents(math.nan, order, math.sqrt(items), k, n)
    between = float((n_i * (means - (n_i * means).sum() / n) ** 2).sum()) / (k - 1)
    n_0 = (n - float((n_i**2).sum()) / n) / (k - 1)
    return VarianceComponents(math.sqrt(max(between - within, 0) / n_0), order, math.sqrt(items), k, n)


def _weighted(table: np.ndarray, weights: np.ndarray, level: float) -> Contrast:
    """A contrast of the cells that have a weight; a seed that lacks one of them lacks the contrast."""
    used = weights != 0
    numbers = np.where(np.isfinite(table[:, used]), table[:, used], math.nan)
    return over_seeds((numbers * weights[used]).sum(1), level)


def _names(key: str, names: Sequence[str] | None, n: int) -> list[str]:
    listed = [str(i) for i in range(n)] if names is None else list(names)
    if len(listed) != n or len(set(listed)) != n:
        raise ValueError(f"{key} {listed}: expected {n} names, each once")
    return listed
