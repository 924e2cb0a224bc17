"""Lion: the sign of an interpolation between momentum and gradient, with decoupled weight decay.

Every coordinate that has a gradient moves by the learning rate, up or down, so rates are a third to a tenth of AdamW's
and weight decay 3 to 10 times as strong for the same product. Half of AdamW's state. Given up: torch has no fused
kernel for it, so a step is a few passes over memory.

Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, arXiv 2302.06675, program 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_at_least, check_betas, check_choices
from lit_consistency.optimizers.core.optimizer import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    local,
    state_dtype,
    zeros_of_state,
)
from lit_consistency.optimizers.core.skipping import unchanged_where
from lit_consistency.optimizers.groups import ROLES


class Lion(GroupOptimizer):
    """Sign steps along an interpolation of momentum and gradient.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch.
        lr: learning rate, at least 0: how far every coordinate moves in a step.
        betas: weights of the momentum in the direction of a step and in the momentum itself, each in [0, 1).
        weight_decay: per step, parameters shrink by lr * weight_decay; at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    elements_at_once = 2**24
    heeds_found_inf = True

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_at_least("lr", lr, 0)
        check_betas(betas)
        check_at_least("weight_decay", weight_decay, 0)
        check_choices("decay_roles", decay_roles, ROLES)
        defaults = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(groups, defaults, low_precision, seed, decay_roles)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One Lion step of the group."""
        update_by_sign(entries, group, group["betas"], self.found_inf)


def update_by_sign(
    entries: Sequence[Entry], group: dict[str, Any], betas: tuple[float, float], found_inf: Tensor | None = None
) -> None:
    """One step of ``entries`` with the hyperparameters of ``group``, in place.

    Args:
        entries: parameters that have a gradient; ``exp_avg`` is made in their state at the first step.
        group: ``lr``, ``weight_decay``.
        betas: as of ``sign_step``.
        found_inf: flag of a step that changes nothing.
    """
    for entry in entries:
        if "exp_avg" not in entry.state:
            entry.state["exp_avg"] = zeros_of_state(entry.param)
        exp_avg = local(entry.state["exp_avg"])
        options = {"lr": group["lr"], "betas": betas, "weight_decay": group["weight_decay"]}
        with unchanged_where(found_inf, [entry.target, exp_avg]):
            sign_step(entry.target, entry.grad, exp_avg, **options)


def sign_step(
    param: Tensor, grad: Tensor, exp_avg: Tensor, *, lr: float, betas: tuple[float, float], weight_decay: float
) -> None:
    r"""One step by a sign.

    .. math::
        p \leftarrow (1 - \eta \lambda) p - \eta \operatorname{sign}(\beta_1 m + (1 - \beta_1) g), \quad
        m \leftarrow \beta_2 m + (1 - \beta_2) g

    Args:
        param: changed in place.
        grad: gradient g, only read.
        exp_avg: running mean m, float32 or float64; changed in place.
        lr: learning rate.
        betas: the two decay rates.
        weight_decay: coefficient of the decoupled weight decay.
    """
    grad = grad.to(state_dtype(param))
    # a coordinate without gradient and momentum has the sign 0: it stays
    direction = exp_avg.lerp(grad, 1 - betas[0]).sign_()
    exp_avg.lerp_(grad, 1 - betas[1])
    param.mul_(1 - lr * weight_decay).sub_(direction, alpha=lr)
