"""MoFO: AdamW that moves, of every block, only the coordinates of largest momentum.

The moments are dense; the kept coordinates take AdamW's ordinary step, the others stay where they are. With fraction
1 it is AdamW, bit for bit, because the step is AdamW's own and is then taken back where the filter says so. A fused
query-key-value matrix is three blocks.

Given up: shards of a tensor (the block must be whole), and the speed of a sampled threshold: exactly K coordinates
are kept.

Source: Chen et al. 2025, MoFO: Momentum-Filtered Optimizer for Mitigating Forgetting in LLM Fine-Tuning, TMLR, arXiv
2407.20999.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.adamw import adamw_state, adamw_step, bias_correction, update_adamw
from lit_consistency.optimizers.base import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    decay_by_role,
    require_roles,
)
from lit_consistency.optimizers.checks import check_adam, check_choice, check_choices, check_share
from lit_consistency.optimizers.groups import ROLES, Split, blocks
from lit_consistency.optimizers.rounding import seed_of
from lit_consistency.optimizers.selection import select_largest

Filter = Literal["momentum", "gradient", "adam_update", "second_moment", "random", "complement"]
FILTERS: tuple[str, ...] = get_args(Filter)


class MoFO(GroupOptimizer):
    """AdamW on the share of each block's coordinates that have the largest momentum.

    Args:
        groups: of ``parameter_groups(model)``.
        lr: learning rate, at least 0.
        betas: decay rates of the running means of the gradient and of its square, each in [0, 1).
        eps: added to the denominator, at least 0.
        weight_decay: per step, parameters shrink by lr * weight_decay; at least 0.
        fraction: share of each block's coordinates that move in a step, 0 < fraction <= 1; at least one moves.
        filter: what is largest where coordinates move: ``momentum`` abs(m); for ablations ``gradient`` abs(g),
            ``adam_update`` abs(m) / (sqrt(v) + eps), ``second_moment`` v, ``random``, and ``complement``: those that
            momentum with 1 - fraction would leave, the smallest abs(m).
        decay_unselected: whether weight decay also shrinks the coordinates that the filter leaves; they stay put if
            not.
        seed: of the random filter and of stochastic rounding; functions of seed, parameter name and step.
        unfiltered_roles: roles whose parameters take AdamW's full step.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
    """

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        fraction: float = 0.15,
        filter: Filter = "momentum",
        decay_unselected: bool = False,
        seed: int = 0,
        unfiltered_roles: Sequence[str] = ("norm", "bias"),
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
    ) -> None:
        check_adam(lr, betas, eps, weight_decay)
        check_share("fraction", fraction)
        check_choice("filter", filter, FILTERS)
        check_choices("unfiltered_roles", unfiltered_roles, ROLES)
        check_choices("decay_roles", decay_roles, ROLES)
        defaults = {"lr": lr, "betas": tuple(betas), "eps": eps, "weight_decay": weight_decay, "fraction": fraction}
        defaults |= {"filter": filter, "decay_unselected": decay_unselected, "seed": seed}
        with_roles = [
            {"filtered": group["role"] not in unfiltered_roles} | group for group in require_roles("MoFO", groups)
        ]
        self._moved: dict[str, tuple[list[Tensor], list[int]]] = {}
        super().__init__(decay_by_role(with_roles, weight_decay, decay_roles), defaults, low_precision, seed)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One AdamW step of the group; where it is filtered, only the selected coordinates keep it."""
        if not group["filtered"]:
            update_adamw(entries, group)
            return
        keys = ("lr", "betas", "eps", "weight_decay", "fraction", "filter", "decay_unselected", "split")
        options = {key: group[key] for key in keys}
        counts, numel = self._moved.setdefault(group["role"], ([], []))
        for entry in entries:
            state: dict[str, Any] = adamw_state(entry)
            # only the random filter reads the seed, and only it waits for the device to tell the step
            seed = seed_of(group["seed"], entry.name, int(state["step"])) if group["filter"] == "random" else 0
            counts.append(mofo_step(entry.target, entry.grad, **state, **options, seed=seed))
            numel.append(entry.target.numel())

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """As for every optimizer here; what ``last_density`` tells starts anew."""
        self._moved = {}
        return super().step(closure)

    def last_density(self) -> dict[str, float]:
        """Share in [0, 1] of the coordinates that the last step moved, by role; of filtered parameters with a gradient.

        Below ``fraction`` where the filter spends its budget on zeros, as in an embedding with few active rows.
        """
        return {
            role: float(torch.stack([count.cpu() for count in counts]).sum()) / sum(numel)
            for role, (counts, numel) in self._moved.items()
            if counts
        }


def mofo_step(
    param: Tensor,
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    weight_decay: float,
    fraction: float,
    filter: Filter,
    decay_unselected: bool,
    split: Split | None,
    seed: int,
) -> Tensor:
    r"""One MoFO step of one parameter: AdamW's step p' where the mask S says so, the old value elsewhere.

    .. math::
        p \leftarrow S \odot p' + (1 - S) \odot p
        \quad \text{or, with decay_unselected,} \quad S \odot p' + (1 - S) \odot (1 - \eta \lambda) p

    Args:
        param: changed in place.
        grad: of that shape, only read.
        exp_avg: running mean m, float32 or float64; changed in place, in every coordinate.
        exp_avg_sq: running mean v, likewise.
        step: counter before this step, of shape (); grows by 1.
        lr: learning rate.
        betas: decay rates of the two means.
        eps: added to the denominator.
        weight_decay: coefficient of the decoupled weight decay.
        fraction: share of each block's coordinates that move.
        filter: see ``MoFO``.
        decay_unselected: whether those that do not move decay.
        split: rows of each block, or None for one block.
        seed: of the random filter.

    Returns:
        Number of coordinates whose value changed, of shape ().
    """
    before = param.clone()
    adamw_step([param], [grad], [exp_avg], [exp_avg_sq], [step], lr=lr, betas=betas, eps=eps, weight_decay=weight_decay)
    selected = mofo_mask(
        grad, exp_avg, exp_avg_sq, step, betas=betas, eps=eps, fraction=fraction, filter=filter, split=split, seed=seed
    )
    left = before * (1 - lr * weight_decay) if decay_unselected else before
    param.copy_(torch.where(selected, param, left))
    return (param != before).count_nonzero()


def mofo_mask(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step: Tensor,
    *,
    betas: tuple[float, float],
    eps: float,
    fraction: float,
    filter: Filter,
    split: Split | None,
    seed: int,
) -> Tensor:
    r"""Coordinates that move: in each block the K of largest score, of equal scores the first.

    .. math::
        K = \lceil \alpha n \rceil \text{ for a block of } n \text{ coordinates}

    Args:
        grad: the gradient; only read, as all tensors here.
        exp_avg: running mean m, this gradient included.
        exp_avg_sq: running mean v of the square, likewise.
        step: number of steps t, this one included, of shape ().
        betas: decay rates of the two means.
        eps: of the Adam step.
        fraction: share :math:`\alpha` of each block's coordinates.
        filter: which score.
        split: rows of each block, or None for one block.
        seed: of the random score.

    Returns:
        Bool mask of the gradient's shape.
    """
    if filter == "random":
        generator = torch.Generator(device=grad.device).manual_seed(seed)
        score = torch.rand(grad.shape, generator=generator, device=grad.device)
    elif filter == "gradient":
        score = grad.to(exp_avg.dtype).abs()
    elif filter == "second_moment":
        score = exp_avg_sq
    elif filter == "adam_update":
        score = exp_avg.abs() / (exp_avg_sq / bias_correction(betas[1], step, exp_avg_sq.dtype)).sqrt_().add_(eps)
    else:
        score = exp_avg.abs()
    mask = torch.empty(grad.shape, dtype=torch.bool, device=grad.device)
    for target, block in zip(blocks(mask, split), blocks(score, split), strict=True):
        kept = number_kept(fraction, block.numel())
        if filter == "complement":
            target.copy_(~select_largest(block, block.numel() - kept))
        else:
            target.copy_(select_largest(block, kept))
    return mask


def number_kept(fraction: float, numel: int) -> int:
    """K = ceil(fraction * numel), at least 1."""
    # rounded first: 0.07 * 100 is 7.000000000000001 in floats, and K is 7
    return max(1, math.ceil(round(fraction * numel, 6)))
