"""How much better or worse a task is than at the base. The same items were asked both times: errors are of pairs."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from lit_consistency.records.results import higher_is_better
from lit_consistency.stats.intervals import Estimate, Ratio, paired_difference, turned, value_of
from lit_consistency.tasks.measured import Measured

GONE = Estimate(math.inf, math.nan, math.inf, math.inf)
CHANGES = {"learn": "learned", "retain": "forget"}
"""What the change of a task since the base is called: positive is better of the one kind, worse of the other."""


def tags(key: str, metric: str, judged_by: str) -> tuple[str, str]:
    """Names of a number and of its standard error; those of the metric that judges a task have no metric in them."""
    return (key, f"{key}.stderr") if metric == judged_by else (f"{key}.{metric}", f"{key}.{metric}_stderr")


def changes_since(
    key: str, base: Mapping[str, Ratio], measured: Measured, judged_by: str
) -> tuple[dict[str, float], Estimate | None]:
    """The changes of one task since the base.

    Args:
        key: ``KIND/NAME`` of the task.
        base: metric -> sums of every item at the base.
        measured: the task now.
        judged_by: the metric that judges it.

    Returns:
        ``learned/NAME`` or ``forget/NAME``, and the same by the other metrics, each with its standard error; and the
        change by the metric that judges, with its interval, where the base has been asked. A retained set that gave a
        number and gives none any more is worse by infinity: such a model has kept nothing.
    """
    kind, name = key.split("/", 1)
    numbers: dict[str, float] = {}
    judged: Estimate | None = None
    for metric, before in base.items():
        if metric == "word_perplexity":  # its items are logarithms, whose difference is no difference of it
            continue
        is_share = higher_is_better(metric)
        difference = paired_difference(before, measured.ratios[metric], measured.clusters, share=is_share)
        # of what is learned better is positive, of what is retained worse
        change = difference if is_share == (kind == "learn") else turned(difference)
        value, error = tags(f"{CHANGES[kind]}/{name}", metric, judged_by)
        numbers |= {value: change.value + 0.0, error: change.stderr}  # no negative zero
        if metric == judged_by:
            gave = math.isfinite(value_of(before.numerator.sum(0), before.denominator.sum(0)))
            gone = kind == "retain" and gave and not math.isfinite(change.value)
            judged = GONE if gone else change
    return numbers, judged


def items_as_tensors(items: Mapping[str, Mapping[str, Ratio]]) -> dict[str, dict[str, Tensor]]:
    """``KIND/NAME`` -> metric -> both sums of every item, for a checkpoint, which holds no arrays of NumPy."""
    return {key: {name: torch.from_numpy(np.stack(sums)) for name, sums in of.items()} for key, of in items.items()}


def items_of_tensors(items: Mapping[str, Mapping[str, Tensor]]) -> dict[str, dict[str, Ratio]]:
    """The opposite of ``items_as_tensors``."""
    return {
        key: {name: Ratio(*(column.numpy() for column in sums)) for name, sums in of.items()}
        for key, of in items.items()
    }
