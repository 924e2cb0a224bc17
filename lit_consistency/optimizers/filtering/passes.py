"""MoFO's step as passes over flat tensors: means, scores, and what the chosen coordinates do.

Every function reads its tensors coordinate by coordinate, so that a compiler makes one pass over memory of each, and
so that it does not matter in which pieces a block comes. Hyperparameters are tensors, because a compiler makes a new
program for every new Python number; ``compiled.py`` makes the programs.

Source: Chen et al. 2025, arXiv 2407.20999, algorithm 1; the formula stands in ``mofo.py``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lit_consistency.optimizers.core.rounding import seed_of
from lit_consistency.optimizers.filtering.threshold import Threshold, chosen

Filter = Literal["momentum", "gradient", "adam_update", "second_moment", "random", "complement"]
FILTERS: tuple[str, ...] = get_args(Filter)
WORD = 2**32 - 1


class Rule(NamedTuple):
    """What a compiled pass is made for."""

    filter: Filter
    decay_unselected: bool
    indexed: bool = True  # whether ties are broken by index in the pass; if not, only threshold.low is compared with

    @property
    def smallest(self) -> bool:
        """Whether coordinates of smallest score move."""
        return self.filter == "complement"

    @property
    def reads_square(self) -> bool:
        """Whether the score depends on v."""
        return self.filter in ("adam_update", "second_moment")

    @property
    def ranks_momentum(self) -> bool:
        """Whether the score is abs(m), which need not be kept beside m."""
        return self.filter in ("momentum", "complement")


class Coefficients(NamedTuple):
    """The numbers of one step, each of shape (); they travel as one tensor (7,), in this order."""

    one_minus_beta1: Tensor
    beta2: Tensor
    one_minus_beta2: Tensor
    step_size: Tensor  # lr / (1 - beta1^t)
    shrinkage: Tensor  # 1 - lr * weight_decay
    eps: Tensor
    square_scale: Tensor  # 1 / (1 - beta2^t)


def coefficients_of(
    step: int,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The coefficients of step t >= 1, of shape (7,); see ``Coefficients``."""
    corrections = [1.0 if beta == 0 else -math.expm1(step * math.log(beta)) for beta in betas]
    numbers = [
        1 - betas[0],
        betas[1],
        1 - betas[1],
        lr / corrections[0],
        1 - lr * weight_decay,
        eps,
        1 / corrections[1],
    ]
    return torch.tensor(numbers, dtype=dtype).to(device, non_blocking=True)


# -------------------- the formula


def new_mean(grad: Tensor, exp_avg: Tensor, by: Coefficients) -> Tensor:
    """The running mean m, float32 or float64, after a gradient of its shape and any float dtype."""
    return exp_avg + (grad.to(exp_avg.dtype) - exp_avg) * by.one_minus_beta1


def new_square(grad: Tensor, exp_avg_sq: Tensor, by: Coefficients) -> Tensor:
    """The running mean v of the square, likewise."""
    grad = grad.to(exp_avg_sq.dtype)
    return exp_avg_sq * by.beta2 + grad * grad * by.one_minus_beta2


def score(
    filter: Filter,
    grad: Tensor | None,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    by: Coefficients,
    index: Tensor,
    key: Tensor,
) -> Tensor:
    """What the filter ranks coordinates by, at least 0.

    Args:
        filter: see ``MoFO``.
        grad: of any float dtype; read by the filter of that name alone.
        exp_avg: running mean m, this gradient included.
        exp_avg_sq: running mean v of the square, likewise.
        by: of the step.
        index: of each coordinate in its parameter, int64; read by the random filter, as ``key``.
        key: int64 (2,), see ``key_of``.
    """
    if filter == "random":
        return uniform(index, key, exp_avg.dtype)
    if filter == "gradient":
        assert grad is not None
        return grad.to(exp_avg.dtype).abs()
    if filter == "second_moment":
        return exp_avg_sq.abs()
    if filter == "adam_update":
        return exp_avg.abs() / ((exp_avg_sq * by.square_scale).sqrt() + by.eps)
    return exp_avg.abs()


def new_param(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    by: Coefficients,
    threshold: Threshold,
    offset: Tensor,
    key: Tensor,
    rule: Rule,
) -> Tensor:
    """The parameter after the step; both means hold this gradient. Arguments as for ``one_pass``."""
    index = indices(grad, offset)
    scores = score(rule.filter, grad, exp_avg, exp_avg_sq, by, index, key)
    if rule.indexed:
        selected = chosen(scores, index, threshold, rule.smallest)
    else:
        selected = scores <= threshold.low if rule.smallest else scores >= threshold.low
    old = param.to(exp_avg.dtype)
    new = old * by.shrinkage - by.step_size * exp_avg / ((exp_avg_sq * by.square_scale).sqrt() + by.eps)
    left = old * by.shrinkage if rule.decay_unselected else old
    return torch.where(selected, new, left).to(param.dtype)


# -------------------- passes


def one_pass(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    coefficients: Tensor,
    threshold: Threshold,
    offset: Tensor,
    key: Tensor,
    rule: Rule,
) -> None:
    """The whole step of a piece of a block whose threshold is known; param and both means change in place.

    Args:
        param: (coordinates,), any float dtype, as ``grad``.
        grad: only read.
        exp_avg: running mean m.
        exp_avg_sq: running mean v.
        coefficients: (7,), see ``Coefficients``.
        threshold: of shape ().
        offset: index of the first coordinate in its parameter, int64 of shape ().
        key: of the random filter.
        rule: filter, and whether unselected coordinates decay.
    """
    by = Coefficients(*coefficients.unbind())
    mean, square = new_mean(grad, exp_avg, by), new_square(grad, exp_avg_sq, by)
    new = new_param(param, grad, mean, square, by, threshold, offset, key, rule)
    exp_avg.copy_(mean)
    exp_avg_sq.copy_(square)
    param.copy_(new)


def means_pass(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    coefficients: Tensor,
    offset: Tensor,
    key: Tensor,
    scores: Tensor,
    rule: Rule,
) -> None:
    """The first half of a step, for an exact threshold: ``scores`` (coordinates,) is filled, and the mean m moves.

    The mean v moves here only if the score needs it, else in the second half: memory is then read once less.
    """
    by = Coefficients(*coefficients.unbind())
    mean, square = new_mean(grad, exp_avg, by), exp_avg_sq
    if rule.reads_square:
        square = new_square(grad, exp_avg_sq, by)
    scores.copy_(score(rule.filter, grad, mean, square, by, indices(grad, offset), key))
    exp_avg.copy_(mean)
    if rule.reads_square:
        exp_avg_sq.copy_(square)


def param_pass(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    coefficients: Tensor,
    threshold: Threshold,
    offset: Tensor,
    key: Tensor,
    rule: Rule,
) -> None:
    """The second half: ``one_pass`` where m has moved, and v if the score needed it."""
    by = Coefficients(*coefficients.unbind())
    square = exp_avg_sq if rule.reads_square else new_square(grad, exp_avg_sq, by)
    new = new_param(param, grad, exp_avg, square, by, threshold, offset, key, rule)
    if not rule.reads_square:
        exp_avg_sq.copy_(square)
    param.copy_(new)


# -------------------- the random filter


def key_of(seed: int, name: str, step: int, device: torch.device) -> Tensor:
    """The two words that make the random filter's numbers, int64 (2,)."""
    seed = seed_of(seed, name, step)
    return torch.tensor([seed & WORD, seed >> 32]).to(device, non_blocking=True)


def indices(tensor: Tensor, offset: Tensor) -> Tensor:
    """Index of each coordinate of a flat piece in its parameter, int64."""
    return torch.arange(tensor.shape[0], device=tensor.device) + offset


def uniform(index: Tensor, key: Tensor, dtype: torch.dtype) -> Tensor:
    """Numbers of 24 bits in [0, 1), a function of index and key alone."""
    low = _mix((index ^ key[0]) & WORD)
    return (_mix((low + (index >> 32) + key[1]) & WORD) >> 8).to(dtype) * 2**-24


def _mix(word: Tensor) -> Tensor:
    """A hash of 32 bits in int64, whose products stay below 2^63."""
    # Thomas Mueller, https://stackoverflow.com/a/12996028
    for _ in range(2):
        word = ((word ^ (word >> 16)) * 0x119DE1F3) & WORD
    return word ^ (word >> 16)
