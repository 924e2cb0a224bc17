r"""Forecast: from the first steps of a finetuning, how much will be forgotten at its end.

Reads the records of finished runs, no model. Every run gives the features at one early measurement (the forgetting so
far, KL to the base on the new task and on the retained text, distance from the base, or whatever else
``metrics.jsonl`` has) and ``final/forget/TASK``. Both are brought to a scale on which ratios count,

.. math::
    z = asinh(x / s), \qquad s = 0.1 \; median |x|,

which is a logarithm above s and passes through 0, as forgetting may be negative. A ridge regression foretells z, and
CV+ gives its interval (stats/ridge.py). All of it, s included, is learnt without the runs that are foretold: groups
of runs, those of one base (or of one seed), are held out one after the other, so that no base is on both sides.

Beside the regression on all features stand what it must beat: ``mean`` (the runs' mean), ``rate`` (the learning rate
alone), ``rate_optimizer`` (with the optimizer's class), every feature alone, and ``all_rate_optimizer``, all of it
together. Reported for each: R2 and mean absolute error in the target's unit on the runs held out (R2 below 0 is worse
than their mean), R2 on the scale of z, the share of intervals that hold the truth, with its own interval by groups,
and the median width of an interval. They are reported also where they are no good.

Given up: anything that is not additive in z; steps before the first measurement. A measurement late in a run foretells
little that is new: ``share`` says how far it was. Sources: Shenfeld et al. 2025, RL's Razor, arXiv 2509.04259 (KL
foretells forgetting); Barber et al. 2021, Annals of Statistics 49(1) (CV+).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.finetunings import Finetuning, group_names, read_runs
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.scatter import Spot, draw_scatter
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import estimate, ratio
from lit_consistency.stats.ridge import cv_plus, fit_ridge

FEATURES = ("kl_to_base", "kl_to_base_retained", "relative_distance/all")
GROUPS = ("base", "seed")
LEAST_GROUPS = 3
"""One to foretell, two of which one is left out to learn the interval."""


@dataclass(frozen=True)
class Forecast(Analysis):
    """Forecast.

    Args:
        runs: folders of finished finetunings; or folders that hold such, of which those without an end, without a base
            or without the target are left out and counted.
        target: what is foretold, as ``forget/old_chains``; null: the one that the runs have.
        features: of the early measurement, in the runs' metrics.jsonl; null: forgetting so far, and of ``kl_to_base``,
            ``kl_to_base_retained`` and ``relative_distance/all`` those that all runs have.
        share: of the run; the last measurement up to there is read. 0: the first one after step 0.
        group: what is held out together: the runs of one ``base``, or of one ``seed``, with all that share a base.
        penalty: of the ridge regression on standardised features.
        level: of the intervals.
    """

    title: ClassVar[str] = "What will be forgotten"
    needs_model: ClassVar[bool] = False
    together: ClassVar[bool] = True

    runs: list[str] = field(default_factory=list)
    target: str | None = None
    features: list[str] | None = None
    share: float = 0.0
    group: str = "base"
    penalty: float = 0.01
    level: float = 0.9

    def __post_init__(self) -> None:
        if not self.runs:
            raise ValueError("runs: expected folders of finished finetunings, or a folder that holds them")
        if self.group not in GROUPS:
            raise ValueError(f"group = {self.group!r}: expected one of {', '.join(GROUPS)}")
        if not 0 <= self.share < 1:
            raise ValueError(f"share = {self.share}: expected 0 <= share < 1")
        if not self.penalty > 0:
            raise ValueError(f"penalty = {self.penalty}: expected a number above 0")
        if not 0 < self.level < 1:
            raise ValueError(f"level = {self.level}: expected a share between 0 and 1")

    def check(self, subject: Subject) -> None:
        """All runs must have target and features, and there must be groups to hold out."""
        runs, _, target = self._read()
        self._features(runs, target)
        groups = group_names(runs, self.group)
        if len(set(groups)) < LEAST_GROUPS:
            raise ValueError(
                f"runs: {len(runs)} of them, in {len(set(groups))} groups by {self.group}; expected at least "
                f"{LEAST_GROUPS} groups, of which one is held out"
            )

    def inputs(self, subject: Subject) -> list[str]:
        """What is read of the runs."""
        return [fingerprint_of([list(map(str, run)) for run in self._read()[0]])]

    def parts(self, subject: Subject) -> list[str]:
        """One."""
        return ["forecast"]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every run and predictor, foretold while its group is held out."""
        runs, n_left_out, target = self._read()
        groups = group_names(runs, self.group)
        final = np.asarray([run.final for run in runs])
        rows: list[Row] = []
        columns = _columns(runs, self._features(runs, target))
        for name, features in columns.items():
            foretold = hold_out(features, final, groups, self.penalty, self.level)
            for run, group, (predicted, low, high) in zip(runs, groups, foretold.tolist(), strict=True):
                row: Row = {"predictor": name, "run": run.name, "group": group, "optimizer": run.optimizer}
                row |= {"rate": run.rate, "early_step": run.step, "early_share": run.share, "target": target}
                row |= {"actual": run.final, "predicted": predicted, "low": low, "high": high}
                rows.append({**row, "n_left_out": n_left_out})
            advance(1 / len(columns))
        return rows

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Errors and coverage of every predictor; see the file's beginning."""
        numbers: dict[str, float] = {}
        for name in dict.fromkeys(str(row["predictor"]) for row in rows):
            numbers |= {f"{key}/{name}": v for key, v in _errors([r for r in rows if r["predictor"] == name]).items()}
        own = [row for row in rows if row["predictor"] == "all"]
        share = float(np.median([float(row["early_share"]) for row in own]))
        n_groups = len({row["group"] for row in own})
        return {**numbers, "n_runs": float(len(own)), "n_groups": float(n_groups), "early_share": share}

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """Foretold against what came, and the predictors' errors."""
        own = [row for row in rows if row["predictor"] == "all"]
        target = str(own[0]["target"])
        columns = ("run", "group", "optimizer", "actual", "predicted", "low", "high")
        table = tuple(
            (*(str(row[key]) for key in columns[:3]), *(short_number(float(row[key])) for key in columns[3:]))
            for row in own
        )
        spots = [
            Spot(str(r["run"]), str(r["optimizer"]), *(float(r[k]) for k in ("actual", "predicted", "low", "high")))
            for r in own
        ]
        shares = sorted({float(row["early_share"]) for row in own})
        early = f"{shares[0]:.0%}" if len(shares) == 1 else f"{shares[0]:.0%} to {shares[-1]:.0%}"
        left_out = f" {own[0]['n_left_out']} folders were no such run." if own[0]["n_left_out"] else ""
        caption = (
            f"{target} at the end of {len(own)} runs, foretold from a measurement at {early} of each while all runs of "
            f"its group were held out; {self.level:.0%} intervals. On the dashed line it came as foretold.{left_out}"
        )
        canvas = draw_scatter(spots, "as it came", "foretold", WIDTH, log_x=True, log_y=True, diagonal=True)
        figures = [Figure("", "", "Forgetting foretold", caption, canvas, None, columns, table)]
        names = list(dict.fromkeys(str(row["predictor"]) for row in rows))
        errors = {name: _errors([row for row in rows if row["predictor"] == name]) for name in names}
        said = {
            "mae": ("Mean absolute error", "What the forecasts are off by, in the unit of the target."),
            "r2": ("R2 on runs held out", "1 is perfect; 0 as good as the mean of all runs, below 0 worse."),
            "coverage": (
                "Coverage of the intervals",
                f"Share of intervals that hold the truth, {self.level:.0%} are wanted; 95% intervals by groups.",
            ),
        }
        for key, (title, caption) in said.items():
            ends = [(e.get(f"{key}_low", math.nan), e.get(f"{key}_high", math.nan)) for e in errors.values()]
            dots = [Dot(name, key, errors[name][key], *end) for name, end in zip(names, ends, strict=True)]
            cells = tuple((name, short_number(errors[name][key])) for name in names)
            figures.append(
                Figure("", "", title, caption, draw_dots(dots, title, WIDTH), None, ("predictor", title), cells)
            )
        return figures

    def _read(self) -> tuple[list[Finetuning], int, str]:
        """The runs, how many folders are none of them, and the target."""
        return read_runs(tuple(self.runs), self.target, self.share)

    def _features(self, runs: Sequence[Finetuning], target: str) -> list[str]:
        """Names of the features, which all runs have."""
        if self.features is None:
            there = [name for name in FEATURES if any(name in run.early for run in runs)]
            wanted = [target, *there]
        else:
            wanted = self.features
        for name in wanted:
            if lacking := next((run for run in runs if name not in run.early), None):
                close = [key for key in lacking.early if key.partition("/")[0] == name.partition("/")[0]]
                raise ValueError(
                    f"features: {name!r}: run {lacking.name} has none at step {lacking.step}; expected a number of its "
                    f"metrics.jsonl{', as ' + ', '.join(close[:3]) if close else ''}"
                )
        if not wanted:
            raise ValueError("features: expected at least one, or null")
        return wanted


# -------------------- forecasts


def _columns(runs: Sequence[Finetuning], features: Sequence[str]) -> dict[str, np.ndarray]:
    """Predictor -> its features (N, F), not yet brought to scale."""
    rate = np.asarray([[run.rate] for run in runs])
    kinds = sorted({run.optimizer for run in runs})
    kind = np.asarray([[float(run.optimizer == name) for name in kinds] for run in runs])
    alone = {name: np.asarray([[run.early[name]] for run in runs]) for name in features}
    together = np.concatenate(list(alone.values()), 1)
    columns = {"all": together}
    if np.isfinite(rate).all():
        columns |= {"all_rate_optimizer": np.concatenate([together, rate, kind], 1)}
        columns |= {"rate": rate, "rate_optimizer": np.concatenate([rate, kind], 1)}
    return {**columns, "mean": np.empty((len(runs), 0)), **({} if len(alone) == 1 else alone)}


def hold_out(
    features: np.ndarray, final: np.ndarray, groups: Sequence[str], penalty: float, level: float
) -> np.ndarray:
    """(N, 3): forecast and interval of every run, learnt from the other groups; NaN for an end that is not known.

    Args:
        features: (N, F).
        final: (N,).
        groups: of every run, at least three.
        penalty: of the regression.
        level: of the intervals.
    """
    foretold = np.full((len(final), 3), math.nan)
    member = np.asarray(groups)
    for group in dict.fromkeys(groups):
        own = member == group
        scales, scale = scale_of(features[~own]), float(scale_of(final[~own, None])[0])
        x, y = np.arcsinh(features / scales), np.arcsinh(final / scale)
        middle = fit_ridge(x[~own], y[~own], penalty).predict(x[own])
        low, high = cv_plus(x[~own], y[~own], member[~own].tolist(), x[own], penalty, level)
        with np.errstate(over="ignore"):  # what is beyond all numbers is unknown, as below
            foretold[own] = scale * np.sinh(np.stack([middle, low, high], 1))
    return np.where(np.isfinite(foretold), foretold, math.nan)


def scale_of(values: np.ndarray) -> np.ndarray:
    """(F,) of values (N, F): a tenth of the median size of each column, 1 where that is 0."""
    middle = np.median(np.abs(values), axis=0) / 10
    return np.where(middle > 0, middle, 1.0)


def _errors(rows: Sequence[Row]) -> dict[str, float]:
    """Of one predictor."""
    actual, predicted, low, high = (
        np.asarray([float(row[key]) for row in rows]) for key in ("actual", "predicted", "low", "high")
    )
    scale = float(scale_of(actual[:, None])[0])
    known = np.isfinite(low) & np.isfinite(high)
    held = ratio(((low <= actual) & (actual <= high))[known].astype(float))
    groups = [str(row["group"]) for row, there in zip(rows, known, strict=True) if there]
    coverage = estimate(held, groups, share=True) if known.any() else None
    return {
        "r2": _r2(actual, predicted),
        "r2_log": _r2(np.arcsinh(actual / scale), np.arcsinh(predicted / scale)),
        "mae": float(np.abs(actual - predicted).mean()),
        "coverage": coverage.value if coverage else math.nan,
        "coverage_low": coverage.low if coverage else math.nan,
        "coverage_high": coverage.high if coverage else math.nan,
        "width": float(np.median((high - low)[known])) if known.any() else math.nan,
    }


def _r2(actual: np.ndarray, predicted: np.ndarray) -> float:
    scatter = float(((actual - actual.mean()) ** 2).sum())
    return 1 - float(((actual - predicted) ** 2).sum()) / scatter if scatter > 0 else math.nan
