r"""One step of MoFO as functions on tensors: moments, scores, and what the chosen coordinates do.

All functions read flat tensors coordinate by coordinate, so that a compiler makes one pass over memory of each, and
so that it does not matter in which pieces a block comes. Hyperparameters are tensors, because a compiler makes a new
program for every new Python number.

.. math::
    m \leftarrow m + (1 - \beta_1) (g - m), \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \quad
    p \leftarrow S \odot \Big((1 - \eta \lambda) p - \frac{\eta m}{(1 - \beta_1^t) (\sqrt{v / (1 - \beta_2^t)}
    + \epsilon)}\Big) + (1 - S) \odot p

Source: Chen et al. 2025, arXiv 2407.20999, algorithm 1.
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
NEED_SQUARE = ("adam_update", "second_moment")
"""Filters whose score is made of the mean of squares."""
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


def coefficients(
    step: int,
    *,
    lr: float,
    betas: Sequence[float],
    eps: float,
    weight_decay: float,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """The numbers of step t >= 1: 1 - beta1, beta2, 1 - beta2, step size, shrinkage, eps, 1 / (1 - beta2^t); (7,)."""
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


def new_mean(grad: Tensor, exp_avg: Tensor, numbers: Tensor) -> Tensor:
    """The running mean m, float32 or float64, after a gradient of its shape and any float dtype."""
    return exp_avg + (grad.to(exp_avg.dtype) - exp_avg) * numbers[0]


def new_square(grad: Tensor, exp_avg_sq: Tensor, numbers: Tensor) -> Tensor:
    """The running mean v of the square, likewise."""
    grad = grad.to(exp_avg_sq.dtype)
    return exp_avg_sq * numbers[1] + grad * grad * numbers[2]


def score(
    filter: Filter, grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, numbers: Tensor, index: Tensor, key: Tensor
) -> Tensor:
    """What the filter ranks coordinates by, at least 0.

    Args:
        filter: see ``MoFO``.
        grad: of any float dtype.
        exp_avg: running mean m, this gradient included.
        exp_avg_sq: running mean v of the square, likewise.
        numbers: of ``coefficients``.
        index: of each coordinate in its parameter, int64; read by the random filter, as ``key``.
        key: int64 (2,), see ``key_of``.
    """
    if filter == "random":
        return uniform(index, key, exp_avg.dtype)
    if filter == "gradient":
        return grad.to(exp_avg.dtype).abs()
    if filter == "second_moment":
        return exp_avg_sq.abs()
    if filter == "adam_update":
        return exp_avg.abs() / ((exp_avg_sq * numbers[6]).sqrt() + numbers[5])
    return exp_avg.abs()


def one_pass(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    numbers: Tensor,
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
        numbers: of ``coefficients``.
        threshold: of shape ().
        offset: index of the first coordinate in its parameter, int64 of shape ().
        key: of the random filter.
        rule: filter, and whether unselected coordinates decay.
    """
    mean, square = new_mean(grad, exp_avg, numbers), new_square(grad, exp_avg_sq, numbers)
    new = _moved(param, grad, mean, square, numbers, threshold, offset, key, rule)
    exp_avg.copy_(mean)
    exp_avg_sq.copy_(square)
    param.copy_(new)


def moments_pass(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    numbers: Tensor,
    offset: Tensor,
    key: Tensor,
    scores: Tensor,
    rule: Rule,
) -> None:
    """The first half of a step, for an exact threshold: ``scores`` (coordinates,) is filled, and the mean m moves.

    The mean v moves here only if the score needs it, else in the second half: memory is then read once less.
    """
    mean, square = new_mean(grad, exp_avg, numbers), exp_avg_sq
    if rule.filter in NEED_SQUARE:
        square = new_square(grad, exp_avg_sq, numbers)
    scores.copy_(score(rule.filter, grad, mean, square, numbers, places(grad, offset), key))
    exp_avg.copy_(mean)
    if rule.filter in NEED_SQUARE:
        exp_avg_sq.copy_(square)


def param_pass(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    numbers: Tensor,
    threshold: Threshold,
    offset: Tensor,
    key: Tensor,
    rule: Rule,
) -> None:
    """The second half: ``one_pass`` where m has moved, and v if the score needed it."""
    if rule.filter in NEED_SQUARE:
        param.copy_(_moved(param, grad, exp_avg, exp_avg_sq, numbers, threshold, offset, key, rule))
        return
    square = new_square(grad, exp_avg_sq, numbers)
    new = _moved(param, grad, exp_avg, square, numbers, threshold, offset, key, rule)
    exp_avg_sq.copy_(square)
    param.copy_(new)


def _moved(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    numbers: Tensor,
    threshold: Threshold,
    offset: Tensor,
    key: Tensor,
    rule: Rule,
) -> Tensor:
    """The parameter after the step."""
    index = places(grad, offset)
    scores = score(rule.filter, grad, exp_avg, exp_avg_sq, numbers, index, key)
    if rule.indexed:
        selected = chosen(scores, index, threshold, rule.smallest)
    else:
        selected = scores <= threshold.low if rule.smallest else scores >= threshold.low
    old = param.to(exp_avg.dtype)
    new = old * numbers[4] - numbers[3] * exp_avg / ((exp_avg_sq * numbers[6]).sqrt() + numbers[5])
    left = old * numbers[4] if rule.decay_unselected else old
    return torch.where(selected, new, left).to(param.dtype)


def places(tensor: Tensor, offset: Tensor) -> Tensor:
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


def number_kept(fraction: float, numel: int) -> int:
    """K = ceil(fraction * numel), at least 1."""
    # rounded first: 0.07 * 100 is 7.000000000000001 in floats, and K is 7
    return max(1, math.ceil(round(fraction * numel, 6)))


def key_of(seed: int, name: str, step: int, device: torch.device) -> Tensor:
    """The two words that make the random filter's numbers, int64 (2,)."""
    seed = seed_of(seed, name, step)
    return torch.tensor([seed & WORD, seed >> 32]).to(device, non_blocking=True)
