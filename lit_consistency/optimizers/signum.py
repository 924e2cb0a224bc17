"""Signum: the sign of the momentum, and with momentum 0 signSGD; weight decay is decoupled.

The sign-like finetuner beside AdamW, without its second moment: what of AdamW's forgetting is due to sign-like steps
shows by comparison. It is Lion with one decay rate. Given up: the majority vote of many workers, which compresses what
they send; here gradients are averaged before the sign is taken.

Source: Bernstein et al. 2018, signSGD: Compressed Optimisation for Non-Convex Problems, arXiv 1802.04434, algorithm 2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_at_least, check_below_one, check_choices
from lit_consistency.optimizers.core.optimizer import DECAY_ROLES, Entry, GroupOptimizer, LowPrecision
from lit_consistency.optimizers.groups import ROLES
from lit_consistency.optimizers.lion import update_by_sign


class Signum(GroupOptimizer):
    """Steps by the sign of the momentum.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch.
        lr: learning rate, at least 0: how far every coordinate moves in a step.
        momentum: decay rate of the running mean of gradients, in [0, 1); 0 is signSGD.
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
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_at_least("lr", lr, 0)
        check_below_one("momentum", momentum)
        check_at_least("weight_decay", weight_decay, 0)
        check_choices("decay_roles", decay_roles, ROLES)
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay}
        super().__init__(groups, defaults, low_precision, seed, decay_roles)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One Signum step of the group."""
        update_by_sign(entries, group, (group["momentum"], group["momentum"]), self.found_inf)
