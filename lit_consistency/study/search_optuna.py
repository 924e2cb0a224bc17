"""Rates suggested by optuna (extra ``study``), in the place of brackets; a trial is a rate at all seeds.

The trials so far are told to a new sampler with a fixed seed, so the same results lead to the same suggestion.

Source: Akiba et al. 2019, Optuna, arXiv 1907.10902; Bergstra et al. 2011 (the tree-structured Parzen estimator).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_consistency.records.extras import require


def suggested(
    search: Mapping[str, Any], results: Mapping[float, Sequence[float]], higher_is_better: bool
) -> list[float]:
    """The next rate, or none when all trials have been made.

    Args:
        search: with ``low``, ``high`` and ``trials``.
        results: rate -> a number of every seed; NaN where one diverged.
        higher_is_better: of the number.
    """
    if len(results) >= int(search.get("trials") or 8):
        return []
    require("optuna", "search: {kind: optuna}", "study")
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(seed=len(results), n_startup_trials=3)
    study = optuna.create_study(direction="maximize" if higher_is_better else "minimize", sampler=sampler)
    low, high = float(search["low"]), float(search["high"])
    # rates that were given may lie outside of what is searched
    told = optuna.distributions.FloatDistribution(min(low, *results), max(high, *results), log=True)
    for rate, values in results.items():
        mean = float(np.mean(values))
        state = optuna.trial.TrialState.COMPLETE if math.isfinite(mean) else optuna.trial.TrialState.FAIL
        value = mean if math.isfinite(mean) else None
        study.add_trial(
            optuna.trial.create_trial(params={"rate": rate}, distributions={"rate": told}, value=value, state=state)
        )
    rate = study.ask({"rate": optuna.distributions.FloatDistribution(low, high, log=True)}).params["rate"]
    return [float(f"{rate:.4g}")]
