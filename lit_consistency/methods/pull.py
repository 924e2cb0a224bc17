r"""All weights are trained, and pulled to where they started.

With p_0 the start, s the strength and d = p - p_0, in the loss:

.. math::
    \text{L1: } \; s \sum |d|, \qquad \text{L2: } \; \tfrac{s}{2} \sum d^2,

whose gradient, s sign(d) or s d, joins the gradient of an optimizer step once, whatever the number of micro-batches
and ranks; the logged loss stays that of the data. Decoupled, as the weight decay of AdamW is from Adam, after every
step with learning rate lr:

.. math::
    \text{L1: } \; p \leftarrow p_0 + \operatorname{sign}(d) \max(|d| - lr \, s, 0), \qquad
    \text{L2: } \; p \leftarrow p_0 + (1 - lr \, s) \, d.

Adam divides a pull in the loss by the size of the gradients, and Muon orthogonalizes it together with them; only the
decoupled one is what it says with every optimizer, and only the decoupled L1 leaves weights exactly at the start.
Weights in bfloat16 are pulled as their optimizer rounds them: in a float32 copy, or up or down by chance.
Given up: one more copy of the pulled weights; ``low_precision: nearest``, which loses small pulls as small steps.

Source: Li et al. 2018, Explicit Inductive Bias for Transfer Learning with Convolutional Networks (L2-SP), arXiv
1802.01483; soft-thresholding, the proximal step of L1: Parikh and Boyd 2014, Proximal Algorithms; the
baselines L1 and L2 of Chen et al. 2025, MoFO, arXiv 2407.20999.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Literal, TypeGuard, get_args

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Replicate
from torch.nn.functional import softshrink
from torch.optim import Optimizer

from lit_consistency.methods.full import Full
from lit_consistency.optimizers import roles as roles_of
from lit_consistency.optimizers.core.checks import check_at_least, check_choice, check_choices
from lit_consistency.optimizers.core.optimizer import GroupOptimizer, local, master_or_parameter, state_dtype
from lit_consistency.optimizers.groups import ROLES

Norm = Literal["l1", "l2"]


class Pull(Full):
    """All weights are trained with a pull to their start; with strength 0 it is Full.

    Args:
        norm: of the distance from the start: ``l1`` or ``l2``.
        strength: s, at least 0.
        decoupled: pull after the optimizer's step, by the learning rate times the strength, instead of in the loss.
        roles: roles of the parameters that are pulled.
    """

    def __init__(
        self,
        norm: Norm = "l2",
        strength: float = 0.01,
        decoupled: bool = False,
        roles: Sequence[str] = ("hidden", "embedding", "head"),
    ) -> None:
        check_choice("norm", norm, get_args(Norm))
        check_at_least("strength", strength, 0)
        check_choices("roles", roles, ROLES)
        self.norm = norm
        self.strength = strength
        self.decoupled = decoupled
        self.roles = tuple(roles)
        self._start: dict[str, Tensor] = {}
        self._bound: dict[Tensor, Tensor] = {}
        self._penalty: Tensor | None = None

    @property
    def name(self) -> str:
        """The norm, and ``_decoupled`` where it is."""
        return f"{self.norm}_decoupled" if self.decoupled else self.norm

    def begin(self, model: nn.Module) -> None:
        """Copy the weights of the start.

        Raises:
            ValueError: no parameter has one of the roles.
        """
        if self.strength == 0:
            return
        role = roles_of(model)
        self._start = {name: p.detach().clone() for name, p in model.named_parameters() if role[name] in self.roles}
        if not self._start:
            raise ValueError(
                f"roles = {list(self.roles)}: no parameter has one of them; found {sorted(set(role.values()))}"
            )

    def attach(self, model: nn.Module, optimizer: Optimizer) -> None:
        """Move the start to the parameters' device; decoupled, pull after every step of ``optimizer``."""
        parameters = dict(model.named_parameters())
        for name, start in self._start.items():
            self._start[name] = start.to(device=parameters[name].device, dtype=parameters[name].dtype)
        self._bound = {parameters[name]: start for name, start in self._start.items()}
        if self.decoupled:
            optimizer.register_step_post_hook(self._pull_back)

    @torch.no_grad()
    def before_step(self) -> None:
        """Measure the penalty; where it is in the loss, add its gradient."""
        penalties = []
        for parameter, start in self._bound.items():
            difference = local(parameter) - local(start)
            penalties.append((parameter, _size(difference, self.norm)))
            if not self.decoupled:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                direction = difference.sign_() if self.norm == "l1" else difference
                local(parameter.grad).add_(direction, alpha=self.strength)
        self._penalty = self.strength * total(penalties) if penalties else None

    @torch.no_grad()
    def _pull_back(self, optimizer: Optimizer, *_: Any) -> None:
        found_inf = getattr(optimizer, "found_inf", None)
        for group in optimizer.param_groups:
            pull = float(group["lr"]) * self.strength
            for i, parameter in enumerate(group["params"]):
                if pull and parameter in self._bound:
                    moving = master_or_parameter(optimizer, parameter)
                    pulled = towards(local(moving), local(self._bound[parameter]), self.norm, pull)
                    if found_inf is not None:  # the optimizer may have skipped the step
                        pulled = torch.where(found_inf > 0, local(moving), pulled)
                    if parameter.dtype == torch.bfloat16 and rounds_by_chance(optimizer):
                        # to the nearest, every pull would be lost that is below half of bfloat16's gap
                        name = f"{group['param_names'][i] if 'param_names' in group else i}/pull"
                        optimizer.round_by_chance(group, name, local(parameter), pulled)
                        continue
                    local(parameter).copy_(pulled)
                    if moving is not parameter:
                        local(moving).copy_(pulled)

    def log_values(self) -> dict[str, float]:
        """``train/penalty``: the penalty at the weights of the last step, in the loss or not."""
        return {"train/penalty": 0.0 if self._penalty is None else self._penalty.item()}


def rounds_by_chance(optimizer: Optimizer) -> TypeGuard[GroupOptimizer]:
    """Whether the optimizer keeps no float32 copy of a parameter in bfloat16 and rounds without a bias."""
    return isinstance(optimizer, GroupOptimizer) and optimizer.low_precision == "stochastic"


def towards(tensor: Tensor, start: Tensor, norm: Norm, pull: float) -> Tensor:
    """A tensor after its decoupled pull.

    Args:
        tensor: p, only read.
        start: p_0, of its shape.
        norm: ``l1`` or ``l2``.
        pull: lr times strength, at least 0; 1 and more is the way back to the start for ``l2``.

    Returns:
        The pulled values, in float32 or in float64 for a float64 tensor.
    """
    dtype = state_dtype(tensor)
    tensor, start = tensor.to(dtype), start.to(dtype)
    if norm == "l2":
        return torch.lerp(tensor, start, min(pull, 1.0))
    return start + softshrink(tensor - start, pull)


def total(local_sums: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Sum over parameters and their shards; a collective call where parameters are sharded.

    Args:
        local_sums: (parameter, sum over its shard on this rank, of shape ()); one all-reduce for each way of sharding.

    Returns:
        The sum, of shape (), the same on every rank.
    """
    sums: dict[Any, Tensor] = {}
    for parameter, number in local_sums:
        sharding = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        sums[sharding] = sums[sharding] + number if sharding in sums else number
    for sharding, number in sums.items():
        if sharding is not None:
            mesh, placements = sharding
            partial = [Partial() if placement.is_shard() else Replicate() for placement in placements]
            sums[sharding] = DTensor.from_local(number, mesh, partial, run_check=False).full_tensor()
    return torch.stack(list(sums.values())).sum()


def _size(difference: Tensor, norm: Norm) -> Tensor:
    """Sum of absolute values, or half the sum of squares; shape ()."""
    dtype = state_dtype(difference)
    if norm == "l1":
        return torch.linalg.vector_norm(difference, 1, dtype=dtype)
    return torch.linalg.vector_norm(difference, dtype=dtype).square() / 2
