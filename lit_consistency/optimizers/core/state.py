"""Checks of a saved state before an optimizer loads it: it is of its kind, of these parameters, and finite.

Every rank checks its own shards; the checks change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

# state that holds one number for each number of the parameter
ELEMENTWISE = ("master", "exp_avg", "exp_avg_sq", "momentum_buffer")
# what a group gets later than at construction: from schedulers, torch's own included, and from the first step
LATER = ("initial_lr", "max_lr", "min_lr", "max_momentum", "base_momentum", "rounded_steps", "params", "param_names")


def check_state(groups: Sequence[Mapping[str, Any]], state_dict: Mapping[str, Any]) -> None:
    """See that ``state_dict`` can continue an optimizer over ``groups``.

    Args:
        groups: the optimizer's ``param_groups``.
        state_dict: of ``Optimizer.state_dict()``.

    Raises:
        ValueError: its groups hold other parameters or lack hyperparameters, a tensor has another shape than its
            parameter, or a value is NaN or infinite; naming the parameter or group, the state, and what to do.
    """
    saved_groups = state_dict["param_groups"]
    if len(saved_groups) != len(groups):
        raise ValueError(
            f"optimizer state: it has {len(saved_groups)} parameter groups, expected {len(groups)}; "
            "it was saved by another optimizer, method or model: load weights only, without the optimizer's state"
        )
    for saved, group in zip(saved_groups, groups, strict=True):
        names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
        _check_names(saved.get("param_names"), names, saved, group)
        _check_hyperparameters(saved, group)
        for i, name, parameter in zip(saved["params"], names, group["params"], strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor):
                    _check_value(name, key, value, parameter)


def _check_names(
    saved_names: Sequence[str] | None, names: Sequence[str], saved: Mapping[str, Any], group: Mapping[str, Any]
) -> None:
    """See that a saved group holds the parameters of ``group``, in their order."""
    if len(saved["params"]) == len(group["params"]) and (saved_names is None or list(saved_names) == list(names)):
        return
    missing = [name for name in names if name not in (saved_names or [])]
    unknown = [name for name in saved_names or [] if name not in names]
    raise ValueError(
        f"optimizer state: a group of role {group.get('role')!r} has {len(saved['params'])} parameters, expected the "
        f"{len(group['params'])} of the model in their order; not in the state: {missing[:3]}, not in the model: "
        f"{unknown[:3]}; load weights only, without the optimizer's state"
    )


def _check_hyperparameters(saved: Mapping[str, Any], group: Mapping[str, Any]) -> None:
    """See that a saved group says all that the optimizer asks of a group, in finite numbers."""
    missing = [key for key in group if key not in saved and key not in LATER]
    if missing:
        raise ValueError(
            f"optimizer state: a group of role {group.get('role')!r} has no {', '.join(missing)}; it was saved by "
            "another optimizer: load weights only, without the optimizer's state"
        )
    for key, value in saved.items():
        numbers = value if isinstance(value, list | tuple) else [value]
        if key != "params" and any(isinstance(number, float) and not math.isfinite(number) for number in numbers):
            raise ValueError(
                f"optimizer state: {key} = {value} in a group of role {group.get('role')!r}: expected finite numbers; "
                "resume from an earlier checkpoint, or load weights only, without the optimizer's state"
            )


def _check_value(name: str, key: str, value: Tensor, parameter: Tensor) -> None:
    """See that one tensor of the state of ``parameter`` has its shape and is finite."""
    if key in ELEMENTWISE and value.shape != parameter.shape:
        raise ValueError(
            f"optimizer state: {key} of {name} has shape {list(value.shape)}, expected {list(parameter.shape)}; it was "
            "saved with another model: load weights only, without the optimizer's state"
        )
    shard = value.to_local() if isinstance(value, DTensor) else value
    if not shard.is_floating_point() or torch.isfinite(shard).all():
        return
    bad = shard.numel() - int(torch.isfinite(shard).sum())
    raise ValueError(
        f"optimizer state: {key} of {name} has {bad} of {shard.numel()} values that are NaN or infinite; every step "
        "from it would be, too: resume from an earlier checkpoint, or load weights only, without the optimizer's state"
    )
