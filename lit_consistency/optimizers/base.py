"""What the optimizers share: the closure, groups left as they came, weight decay by role, state that stays precise.

An optimizer sees its parameters as entries of local tensors: of a sharded parameter (DTensor) the shard that lies on
this rank, which may be empty, and of a parameter in bfloat16 or float16 its float32 master copy, from which the
parameter is rounded after the step. The state is kept in the parameter's own layout, so that distributed checkpoints
reshard it.

Given up: sparse and complex gradients. The attribute ``_step_supports_amp_scaling`` is never set, so that Lightning
clips gradients under mixed precision (Lightning issue 21435).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, ParamsT

from lit_consistency.optimizers.checks import check_choice

LowPrecision = Literal["master", "nearest"]
LOW_PRECISIONS: tuple[str, ...] = get_args(LowPrecision)
DECAY_ROLES = ("hidden", "adapter", "embedding", "head")


class Entry(NamedTuple):
    """A parameter that has a gradient, as a step sees it."""

    name: str
    param: Tensor  # the parameter itself: the key of its state, a DTensor where it is sharded
    target: Tensor  # local: what the step moves, the parameter's values or their float32 master copy
    grad: Tensor  # local: of the target's shape, only read
    state: dict[str, Any]  # the optimizer's state of the parameter, in the parameter's layout; see `local`


class GroupOptimizer(Optimizer, ABC):
    """An optimizer over parameter groups; a subclass says how one group moves.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch. The dicts are copied.
        defaults: hyperparameters of a group that does not bring its own.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` keeps a float32 copy that moves, and
            rounds it to the parameter; ``nearest`` rounds every step to the parameter, which loses small ones.
    """

    def __init__(self, groups: ParamsT, defaults: dict[str, Any], low_precision: LowPrecision = "master") -> None:
        check_choice("low_precision", low_precision, LOW_PRECISIONS)
        self.low_precision = low_precision
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
            entries = self.entries(group)
            self.update_group(group, entries)
            for entry in entries:
                if "master" in entry.state:
                    local(entry.param).copy_(entry.target)
        return loss

    def entries(self, group: dict[str, Any]) -> list[Entry]:
        """The group's parameters that have a gradient; without names, their number in the group."""
        names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
        found = []
        for name, param in zip(names, group["params"], strict=True):
            if param.grad is None:
                continue
            state = self.state[param]
            if self.low_precision == "master" and state_dtype(param) != param.dtype and "master" not in state:
                state["master"] = param.detach().to(state_dtype(param), copy=True)
            found.append(Entry(name, param, local(state.get("master", param)), local(param.grad), state))
        return found

    @abstractmethod
    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """Move the targets of the entries of one group, in place.

        Args:
            group: its hyperparameters.
            entries: of ``entries(group)``.
        """

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


def local(tensor: Tensor) -> Tensor:
    """What lies on this rank of a sharded tensor, sharing its memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor.detach()


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Dtype of the optimizer's state: float32, or float64 for a float64 parameter."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_of_state(parameter: Tensor) -> Tensor:
    """Zeros of the parameter's shape and strides in the state's dtype."""
    return torch.zeros_like(parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format)
