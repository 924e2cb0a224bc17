"""What the optimizers share: the closure, groups left as they came, weight decay by role, state that stays precise.

Given up: sparse and complex gradients. The attribute ``_step_supports_amp_scaling`` is never set, so that Lightning
clips gradients under mixed precision (Lightning issue 21435).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, ParamsT

DECAY_ROLES = ("hidden", "adapter", "embedding", "head")


class GroupOptimizer(Optimizer, ABC):
    """An optimizer over parameter groups; a subclass says how one group moves.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch. The dicts are copied.
        defaults: hyperparameters of a group that does not bring its own.
    """

    def __init__(self, groups: ParamsT, defaults: dict[str, Any]) -> None:
        super().__init__(copy_groups(groups), defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; gradients are left as they are.

        Args:
            closure: computes the loss and its gradients; called once, with gradients enabled.

        Returns:
            What ``closure`` returned, or None.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self.update_group(group)
        return loss

    @abstractmethod
    def update_group(self, group: dict[str, Any]) -> None:
        """Move the parameters of one group, in place; those without a gradient stay, and so does their state."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state; tensors keep at least float32.

        torch casts float state to the parameter's dtype, which turns the moments of bfloat16 parameters into bfloat16.
        """
        super().load_state_dict(state_dict)
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                dtype = torch.float32 if key == "step" else state_dtype(parameter)
                self.state[parameter][key] = value.to(device=parameter.device, dtype=dtype, copy=True)


def copy_groups(groups: ParamsT) -> list[Any]:
    """The entries of ``groups``; dicts are copied, because torch writes its defaults into the dicts it is given."""
    entries: Iterable[Any] = groups
    return [dict(entry) if isinstance(entry, dict) else entry for entry in entries]


def decay_by_role(groups: ParamsT, weight_decay: float, decay_roles: Sequence[str]) -> list[Any]:
    """Copies of ``groups`` in which each has its own ``weight_decay``: 0 where its role is not in ``decay_roles``.

    Groups without a role decay, and a group that already has a ``weight_decay`` keeps it.
    """
    copies = copy_groups(groups)
    for group in copies:
        if isinstance(group, dict):
            decays = group.get("role") is None or group["role"] in decay_roles
            group.setdefault("weight_decay", weight_decay if decays else 0.0)
    return copies


def require_roles(name: str, groups: ParamsT) -> list[dict[str, Any]]:
    """Copies of ``groups``, all of which have a role.

    Raises:
        ValueError: one has none.
    """
    copies = copy_groups(groups)
    if not copies or not all(isinstance(group, dict) and group.get("role") is not None for group in copies):
        raise ValueError(f"{name}: expected groups with a role each; call parameter_groups(model) for them")
    return copies


def with_gradient(group: dict[str, Any]) -> list[tuple[str, Tensor, Tensor]]:
    """(name, parameter, gradient) of a group's parameters that have one; without names, their number in the group."""
    names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
    return [(name, p, p.grad) for name, p in zip(names, group["params"], strict=True) if p.grad is not None]


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Dtype of the optimizer's state: float32, or float64 for a float64 parameter."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_of_state(parameter: Tensor) -> Tensor:
    """Zeros of the parameter's shape and strides in the state's dtype."""
    return torch.zeros_like(parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format)
