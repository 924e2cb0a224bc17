"""What a sequence of tasks leaves behind: numbers from the matrix of scores, one row a stage and one column a task.

Row 0 holds the scores of the base, row k those after training on tasks 1 to k in turn. Scores are such that more is
better; of a loss hand in its negative. Differences, never ratios: a score near zero in the base would make any ratio.

Source: Lopez-Paz and Ranzato 2017, Gradient Episodic Memory, arXiv 1706.08840; Chaudhry et al. 2018, Riemannian Walk,
arXiv 1801.10112 (forgetting); Wang et al. 2023, TRACE, arXiv 2310.06762 (overall performance).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike


def overall_performance(scores: ArrayLike) -> float:
    r"""OP: mean score, after the last stage, of the tasks trained on so far.

    .. math::
        \frac{1}{t} \sum_{i=1}^{t} R_{t,i}

    Args:
        scores: R, (1 + t stages, at least t tasks), finite.
    """
    return float(_trained(scores)[-1].mean())


def backward_transfer(scores: ArrayLike) -> float:
    r"""BWT: mean change of a task's score between its own stage and the last one; negative is forgetting.

    .. math::
        \frac{1}{t - 1} \sum_{i=1}^{t-1} (R_{t,i} - R_{i,i})

    The last task has had no time to change and is left out, as in GEM; with it, as TRACE writes it, the number is
    (t - 1) / t times this one.

    Args:
        scores: R, (1 + t stages, at least t tasks), finite, t at least 2.
    """
    trained = _trained(scores, at_least=2)
    return float((trained[-1] - trained[1:].diagonal())[:-1].mean())


def forgetting(scores: ArrayLike) -> np.ndarray:
    r"""How far each task has fallen from the best that any earlier stage gave it, the base among them.

    .. math::
        f_i = \max_{k < t} R_{k,i} - R_{t,i}

    Args:
        scores: R, (1 + t stages, tasks), finite; columns of tasks that were never trained on are general abilities.

    Returns:
        (tasks,), negative where the last stage is the best.
    """
    rows = np.asarray(scores, dtype=np.float64)
    if rows.ndim != 2 or len(rows) < 2:
        raise ValueError(f"scores has shape {list(rows.shape)}: expected at least two stages (rows)")
    return rows[:-1].max(0) - rows[-1]


def retained_share(scores: ArrayLike, at_least: float = 0.01) -> np.ndarray:
    """What is left, after the last stage, of what each task had gained over the base at its best.

    Args:
        scores: R, (1 + t stages, tasks), finite.
        at_least: gains below this are no gain: a share of nothing has no meaning.

    Returns:
        (tasks,): 1 keeps all of the gain, 0 is back at the base, NaN where there was no gain.
    """
    rows = np.asarray(scores, dtype=np.float64)
    # the base is among the stages, so no gain is negative
    gain = rows.max(0) - rows[0]
    return np.divide(rows[-1] - rows[0], gain, out=np.full_like(gain, np.nan), where=gain >= at_least)


def _trained(scores: ArrayLike, at_least: int = 1) -> np.ndarray:
    """Columns of the tasks trained on, as float64."""
    rows = np.asarray(scores, dtype=np.float64)
    stages = len(rows) - 1
    if rows.ndim != 2 or stages < at_least or rows.shape[1] < stages:
        raise ValueError(
            f"scores has shape {list(rows.shape)}: expected (1 + t, at least t) with t >= {at_least}, the base first"
        )
    return rows[:, :stages]
