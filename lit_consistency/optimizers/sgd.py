"""SGD with momentum.

Equal to ``torch.optim.SGD``, with the momentum in float32 for parameters of any precision. As there, weight decay is
the coupled one: it is part of the gradient and passes through the momentum. Given up: dampening, maximize.

Source: Sutskever et al. 2013, On the importance of initialization and momentum in deep learning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_at_least, check_below_one, check_choices
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


class SGD(GroupOptimizer):
    """Stochastic gradient descent with momentum.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch.
        lr: learning rate, at least 0.
        momentum: decay rate of the sum of past gradients, in [0, 1).
        nesterov: look one step ahead; needs momentum above 0.
        weight_decay: weight_decay * parameter is added to the gradient (coupled, as in torch.optim.SGD); at least 0.
        decay_roles: roles of the parameters that decay.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    elements_at_once = 2**24
    heeds_found_inf = True

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 1e-2,
        momentum: float = 0.9,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_at_least("lr", lr, 0)
        check_below_one("momentum", momentum)
        if nesterov and momentum == 0:
            raise ValueError("nesterov = true: expected momentum > 0 with it, got momentum = 0")
        check_at_least("weight_decay", weight_decay, 0)
        check_choices("decay_roles", decay_roles, ROLES)
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay}
        super().__init__(groups, defaults, low_precision, seed, decay_roles)

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One SGD step of the group."""
        for entry in entries:
            momentum_buffer = None
            if group["momentum"]:
                if "momentum_buffer" not in entry.state:
                    entry.state["momentum_buffer"] = zeros_of_state(entry.param)
                momentum_buffer = local(entry.state["momentum_buffer"])
            moved = [entry.target] if momentum_buffer is None else [entry.target, momentum_buffer]
            with unchanged_where(self.found_inf, moved):
                sgd_step(
                    entry.target,
                    entry.grad,
                    momentum_buffer,
                    lr=group["lr"],
                    momentum=group["momentum"],
                    nesterov=group["nesterov"],
                    weight_decay=group["weight_decay"],
                )


def sgd_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor | None,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
) -> None:
    r"""One SGD step: :math:`p \leftarrow p - \eta d`, with d of ``momentum_direction`` for :math:`g + \lambda p`.

    Args:
        param: changed in place.
        grad: gradient, only read.
        momentum_buffer: changed in place; None for momentum 0.
        lr: learning rate.
        momentum: decay rate of the buffer.
        nesterov: look one step ahead.
        weight_decay: coefficient of the coupled weight decay.
    """
    grad = grad.to(state_dtype(param))
    if weight_decay:
        grad = grad.add(param, alpha=weight_decay)
    if momentum_buffer is not None:
        grad = momentum_direction(momentum_buffer, grad, momentum=momentum, nesterov=nesterov)
    param.add_(grad, alpha=-lr)


def momentum_direction(momentum_buffer: Tensor, grad: Tensor, *, momentum: float, nesterov: bool) -> Tensor:
    r"""Direction of heavy-ball or Nesterov momentum, a sum and not a mean of past gradients.

    .. math::
        b \leftarrow \mu b + g, \quad d = g + \mu b \text{ (Nesterov)} \quad \text{or} \quad d = b

    Args:
        momentum_buffer: b, changed in place.
        grad: g, only read; of the buffer's dtype.
        momentum: decay rate :math:`\mu`.
        nesterov: which of the two directions.

    Returns:
        d, the buffer itself where ``nesterov`` is false: only read it.
    """
    momentum_buffer.mul_(momentum).add_(grad)
    return grad.add(momentum_buffer, alpha=momentum) if nesterov else momentum_buffer
