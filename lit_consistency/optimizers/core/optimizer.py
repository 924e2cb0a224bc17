"""What the optimizers share: the closure, groups left as they came, weight decay by role, state that stays precise.

An optimizer sees its parameters as entries of local tensors: of a sharded parameter (DTensor) the shard that lies on
this rank, which may be empty, and of a parameter in bfloat16 or float16 float32 values that stand for it, from which
it is rounded after the step. The state is kept in the parameter's own layout, so that distributed checkpoints reshard
it.

A master copy follows its parameter: where the parameter has been written by others since the last step, as when other
weights are loaded, the master takes the new values. The version counter of the parameter tells; a write through
``param.data`` does not move it and is lost.

Given up: sparse and complex gradients. The attribute ``_step_supports_amp_scaling`` is never set, so that Lightning
clips gradients under mixed precision (Lightning issue 21435).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import Optimizer, ParamsT

from lit_consistency.optimizers.core.checks import check_choice
from lit_consistency.optimizers.core.rounding import round_stochastically, seed_of
from lit_consistency.optimizers.core.state import check_state

LowPrecision = Literal["master", "stochastic", "nearest"]
LOW_PRECISIONS: tuple[str, ...] = get_args(LowPrecision)
PRECISE = (torch.float32, torch.float64)  # parameters of these dtypes move themselves
# what a group has counted, beside its hyperparameters: no configuration sets it
PROGRESS = ("rounded_steps", "steps_taken")
DECAY_ROLES = ("hidden", "adapter", "embedding", "head")


class Entry(NamedTuple):
    """A parameter that has a gradient, as a step sees it."""

    name: str
    param: Tensor  # the parameter itself: the key of its state, a DTensor where it is sharded
    target: Tensor  # local: what the step moves, the parameter's values or float32 ones that stand for them
    grad: Tensor  # local: of the target's shape, only read
    state: dict[str, Any]  # the optimizer's state of the parameter, in the parameter's layout; see `local`


class GroupOptimizer(Optimizer, ABC):
    """An optimizer over parameter groups; a subclass says how one group moves.

    Args:
        groups: of ``parameter_groups(model)``, or parameters as for any optimizer of torch. The dicts are copied.
        defaults: hyperparameters of a group that does not bring its own.
        low_precision: how parameters in bfloat16 or float16 move, each by a float32 step: ``master`` keeps a float32
            copy that moves, and rounds it to the parameter; ``stochastic`` keeps none and rounds up or down by chance,
            right in expectation (bfloat16 only); ``nearest`` keeps none and loses small steps.
        seed: of stochastic rounding, whose random bits are a function of seed, parameter name and step.
        decay_roles: roles whose groups have the weight decay of ``defaults``, the others 0; None: every group has it.
    """

    # Parameters moved at a time where their float32 values are temporary, counted in elements; None: the whole group.
    # For steps that look at each parameter by itself.
    elements_at_once: int | None = None
    # Whether a step with ``found_inf`` 1 leaves parameters and state as they are; see core/skipping.py. Where not,
    # whoever has to stop before a step must wait for the device.
    heeds_found_inf: bool = False
    found_inf: Tensor | None = None

    def __init__(
        self,
        groups: ParamsT,
        defaults: dict[str, Any],
        low_precision: LowPrecision = "master",
        seed: int = 0,
        decay_roles: Sequence[str] | None = None,
    ) -> None:
        check_choice("low_precision", low_precision, LOW_PRECISIONS)
        self.low_precision = low_precision
        self.seed = seed
        self.decay_roles = None if decay_roles is None else tuple(decay_roles)
        self._versions: dict[Tensor, tuple[int, int]] = {}  # of the values that were last rounded from their masters
        super().__init__(groups, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group, of the constructor or a later one; the dict that is given is left as it is.

        Raises:
            ValueError: the optimizer cannot move its parameters; nothing has been added then.
        """
        group = self.complete_group(dict(param_group))
        for entry in group["params"] if not isinstance(group["params"], Tensor) else [group["params"]]:
            param = entry[1] if isinstance(entry, tuple) else entry
            if self.low_precision == "stochastic" and param.dtype == torch.float16:
                raise ValueError("low_precision = 'stochastic': expected bfloat16 parameters, got float16")
        super().add_param_group(group)

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """A group with what the optimizer says of its role; what the group says itself stays.

        Raises:
            ValueError: it lacks what the optimizer needs.
        """
        if self.decay_roles is not None and group.get("role") not in (None, *self.decay_roles):
            group.setdefault("weight_decay", 0.0)
        return group

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
            for portion in self._portions(group):
                entries = self.entries(group, portion)
                self.update_group(group, entries)
                self._round(group, entries)
            if self.low_precision == "stochastic":
                group["rounded_steps"] = group.get("rounded_steps", 0) + 1
        return loss

    def entries(self, group: dict[str, Any], portion: slice = slice(None)) -> list[Entry]:
        """The group's parameters that have a gradient; without names, their number in the group.

        Args:
            group: one of ``param_groups``.
            portion: which of its parameters.
        """
        names = group.get("param_names") or [str(i) for i in range(len(group["params"]))]
        entries = []
        for name, param in zip(names[portion], group["params"][portion], strict=True):
            grad = param.grad
            if grad is None:
                continue
            state = self.state[param]
            target = param if param.dtype in PRECISE else self._float32_values(param, state)
            if type(grad) is Tensor:  # not sharded: thousands of small parameters are not asked twice
                entries.append(Entry(name, param, target, grad, state))
            else:
                entries.append(Entry(name, param, local(target), local(grad), state))
        return entries

    @abstractmethod
    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """Move the targets of the entries of one group, in place.

        Args:
            group: its hyperparameters.
            entries: of ``entries(group)``.
        """

    def log_values(self) -> dict[str, float]:
        """What is to be logged of the last step, by tag; all ranks call it together."""
        return {}

    def record(self) -> dict[str, Any]:
        """What a run's record says of the optimizer beside its options: what it chose by itself, fit for JSON."""
        return {}

    def __getstate__(self) -> dict[str, Any]:
        """For ``copy.deepcopy`` and ``pickle``: torch keeps only what its own optimizers have, and no hook."""
        # a learning-rate scheduler puts a step of its own, which cannot be pickled, over that of the class
        own = {key: value for key, value in vars(self).items() if key != "step" and not key.startswith("_optimizer_")}
        return own | super().__getstate__()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a saved state; float tensors keep at least float32, other values stay as they are.

        torch casts float state to the parameter's dtype, which turns the moments of bfloat16 parameters into bfloat16.

        Raises:
            ValueError: the state is not one of these parameters, or not finite; nothing has been changed then.
        """
        check_state(self.param_groups, state_dict)
        super().load_state_dict(state_dict)
        self._versions.clear()
        ids = [i for group in state_dict["param_groups"] for i in group["params"]]
        parameters = [p for group in self.param_groups for p in group["params"]]
        for i, parameter in zip(ids, parameters, strict=True):
            for key, value in state_dict["state"].get(i, {}).items():
                if isinstance(value, Tensor) and value.is_floating_point():
                    dtype = torch.float32 if key == "step" else state_dtype(parameter)
                    value = value.to(device=parameter.device, dtype=dtype, copy=True)
                elif isinstance(value, Tensor):
                    # a mask lies where its parameter does; the state of a generator stays on the CPU
                    value = value.to(parameter.device if value.shape == parameter.shape else value.device, copy=True)
                self.state[parameter][key] = value

    def _portions(self, group: dict[str, Any]) -> Iterator[slice]:
        """Slices of the group's parameters that are moved together; the whole group where nothing is temporary."""
        if self.elements_at_once is None or self.low_precision == "master":
            yield slice(None)
            return
        start = elements = 0
        for i, param in enumerate(group["params"]):
            # of the whole parameter, so that ranks that hold shards of it take the same slices
            if elements and elements + param.numel() > self.elements_at_once:
                yield slice(start, i)
                start, elements = i, 0
            elements += 0 if param.dtype in PRECISE else param.numel()
        yield slice(start, None)

    def _float32_values(self, param: Tensor, state: dict[str, Any]) -> Tensor:
        """What moves in place of a parameter in bfloat16 or float16: its master copy, or its values for this step."""
        if self.low_precision != "master":
            return param.detach().float()
        if "master" not in state:
            state["master"] = param.detach().to(torch.float32, copy=True)
        elif self._versions.get(param) != version_of(param):
            # the parameter was written by others since: loaded, pulled or averaged
            master, values = local(state["master"]), local(param)
            master.copy_(torch.where(master.to(values.dtype) == values, master, values.float()))
        return state["master"]

    def _round(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """Give parameters in bfloat16 or float16 the values that stood for them in the step."""
        for entry in entries:
            if entry.param.dtype in PRECISE:
                continue
            values = local(entry.param)
            if self.low_precision == "stochastic":
                self.round_by_chance(group, entry.name, values, entry.target)
            else:
                values.copy_(entry.target)
                self._versions[entry.param] = version_of(entry.param)

    def round_by_chance(self, group: dict[str, Any], name: str, target: Tensor, source: Tensor) -> None:
        """Round float32 values to a parameter in bfloat16, up or down by chance.

        Args:
            group: of the parameter; with ``name`` and the steps that it has counted, it decides the chance.
            name: of the parameter, or another one for a second rounding in a step.
            target: local values of the parameter, overwritten.
            source: of its shape, only read.
        """
        seed = seed_of(self.seed, name, group.get("rounded_steps", 0))
        round_stochastically(target, source, torch.Generator(target.device).manual_seed(seed))


def copy_groups(groups: ParamsT) -> list[Any]:
    """The entries of ``groups``; dicts are copied, because torch writes its defaults into the dicts it is given."""
    entries: Iterable[Any] = groups
    return [dict(entry) if isinstance(entry, dict) else entry for entry in entries]


def require_roles(name: str, groups: ParamsT) -> list[dict[str, Any]]:
    """Copies of ``groups``, all of which have a role.

    Raises:
        ValueError: one has none.
    """
    copies = copy_groups(groups)
    if not copies or not all(isinstance(group, dict) and group.get("role") is not None for group in copies):
        raise ValueError(f"{name}: expected groups with a role each; call parameter_groups(model) for them")
    return copies


def check_present(name: str, by_role: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]) -> None:
    """See that every role that an option names has a group.

    Raises:
        ValueError: one has none, so that what is said of it would change nothing.
    """
    present = sorted({group["role"] for group in groups})
    for role, value in by_role.items():
        if role not in present:
            raise ValueError(f"{name}.{role} = {value}: no parameter has this role: expected {', '.join(present)}")


def local(tensor: Tensor) -> Tensor:
    """What lies on this rank of a sharded tensor, sharing its memory; another tensor as it is."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def master_or_parameter(optimizer: Optimizer, parameter: Tensor) -> Tensor:
    """What an optimizer moves: the float32 master of a parameter in bfloat16 or float16, or the parameter itself.

    Whoever writes to the one between two steps writes to the other as well, or the next step loses one of the two.

    Args:
        optimizer: any; only a ``GroupOptimizer`` keeps masters, from its first step on.
        parameter: one of its parameters.
    """
    return optimizer.state.get(parameter, {}).get("master", parameter)


def version_of(tensor: Tensor) -> tuple[int, int]:
    """Changes when the tensor is written in place, as a whole or, sharded, by way of its shard."""
    return tensor._version, local(tensor)._version


def state_dtype(parameter: Tensor) -> torch.dtype:
    """Dtype of the optimizer's state: float32, or float64 for a float64 parameter."""
    return torch.promote_types(parameter.dtype, torch.float32)


def zeros_of_state(parameter: Tensor) -> Tensor:
    """Zeros of the parameter's shape and strides in the state's dtype."""
    return torch.zeros_like(parameter, dtype=state_dtype(parameter), memory_format=torch.preserve_format)
