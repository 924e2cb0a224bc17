"""An optimizer's state beside the weights it belongs to, so that the next run can go on with it: one safetensors file.

Tensors stand under ``PARAMETER/STATE``, as ``lm_head.weight/exp_avg``; the header holds the optimizer's class, and what
its groups and parameters have counted. All of the state is carried, the counters of steps too: they are what the bias
correction, the warm-up of Muon's momentum and MoFO's annealing go by, and moments of a thousand steps corrected as
those of one would be a thousand times too large. Not carried are float32 masters of parameters in half precision (the
weights are the base's), learning rates and other hyperparameters (they are the new run's).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lit_consistency.checkpointing.sharded import named_state
from lit_consistency.distributed.dtensors import full_tensor, shard_like, zeros_sharded_as
from lit_consistency.model.tensors import write_tensors
from lit_consistency.optimizers.core.optimizer import PROGRESS, GroupOptimizer
from lit_consistency.records.provenance import verify_weights

FILE = "optimizer_state.safetensors"
HEADER = "lit_consistency"
OPTION = "model.carry_optimizer_state = true"
NOT_CARRIED = ("master",)


def gathered_optimizer_state(optimizer: torch.optim.Optimizer, keep: bool) -> dict[str, Any]:
    """The state by parameter names, full tensors on the CPU; a collective call.

    Args:
        optimizer: over groups of named parameters.
        keep: whether this rank keeps it; where not, there are no tensors in it.
    """
    state = named_state(optimizer)
    for entry in state["state"].values():
        for key, value in entry.items():
            if isinstance(value, Tensor) and key not in NOT_CARRIED:
                full = full_tensor(value)  # on every rank, whether it keeps it or not
                entry[key] = full.detach().cpu() if keep else None
    return {**state, "optimizer": type(optimizer).__name__}


def write_optimizer_state(state: Mapping[str, Any], path: Path) -> None:
    """Write the file.

    Args:
        state: ``optimizer`` (its class), ``state`` and ``param_groups`` by names, as ``named_state`` gives them.
        path: of the file.

    Raises:
        ValueError: a value is neither a tensor nor a plain one.
    """
    tensors: dict[str, Tensor] = {}
    values: dict[str, dict[str, Any]] = {}
    for name, entry in state["state"].items():
        values[name] = {}
        for key, value in entry.items():
            if key in NOT_CARRIED:
                continue
            if isinstance(value, Tensor):
                tensors[f"{name}/{key}"] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            elif value is None or isinstance(value, int | float | str):
                values[name][key] = value
            else:
                raise ValueError(f"optimizer state: {key} of {name} is a {type(value).__name__}: expected a tensor")
    counted = {name: _progress(group) for group in state["param_groups"] for name in group["params"]}
    header = {"optimizer": state["optimizer"], "values": values, "counted": counted}
    write_tensors(path, tensors, {HEADER: json.dumps(header)})


def read_header(folder: Path) -> dict[str, Any]:
    """``optimizer``, ``values`` and ``counted`` of a model folder's state; no tensor is read.

    Raises:
        ValueError: the folder has no state, or one that cannot be read.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        raise ValueError(
            f"{OPTION}: {folder} holds no {FILE}; expected a base of a run with run.save_optimizer_state true, or one "
            "of its step checkpoints, as RUN/checkpoints/step-100"
        )
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()[HEADER])
    except (SafetensorError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: cannot be read, expected a file of this package ({error})") from error


def check_class(folder: Path, optimizer: str) -> None:
    """ValueError unless the state in a model folder is that of an optimizer of this class."""
    saved = read_header(folder)["optimizer"]
    if saved != optimizer:
        raise ValueError(
            f"{OPTION}: {folder} holds the state of {saved}; expected model.optimizer = {saved}, got {optimizer}"
        )


@torch.no_grad()
def carry_optimizer_state(optimizer: torch.optim.Optimizer, folder: Path) -> None:
    """Give an optimizer that has not yet moved the state in a model folder; each rank reads what it holds.

    Raises:
        ValueError: the state is of another class, lacks a parameter, has another shape or is not finite.
    """
    verify_weights(Path(folder) / FILE)
    check_class(folder, type(optimizer).__name__)
    header = read_header(folder)
    parameters = {n: p for group in optimizer.param_groups for n, p in zip(_names(group), group["params"], strict=True)}
    if missing := [name for name in parameters if name not in header["counted"] or name not in header["values"]]:
        raise ValueError(
            f"{OPTION}: {folder} has no state of {missing[:3]}, {len(missing)} of {len(parameters)} parameters; "
            "expected a base of the same architecture whose training moved all of them"
        )
    entries: dict[str, dict[str, Any]] = {name: dict(header["values"][name]) for name in parameters}
    with safe_open(Path(folder) / FILE, framework="pt") as file:
        for flat in file.keys():  # noqa: SIM118 - safetensors' file is no mapping
            name, _, key = flat.rpartition("/")
            if name in parameters:
                value = file.get_tensor(flat)
                entries[name][key] = shard_like(value, zeros_sharded_as(parameters[name], value.shape, value.dtype))
    state = optimizer.state_dict()
    for group, names in zip(state["param_groups"], map(_names, optimizer.param_groups), strict=True):
        for key in PROGRESS:
            if counts := {header["counted"][name][key] for name in names if key in header["counted"][name]}:
                group[key] = max(counts)
    state["state"] = dict(enumerate(entries.values()))
    optimizer.load_state_dict(state)


def _progress(group: Mapping[str, Any]) -> dict[str, Any]:
    return {key: group[key] for key in PROGRESS if key in group}


def _names(group: Mapping[str, Any]) -> list[str]:
    return group.get("param_names") or [str(i) for i in range(len(group["params"]))]


def warn_of_lost_steps(optimizer: torch.optim.Optimizer) -> None:
    """A class that is not ours may keep float32 masters of its own; torch's have none, and nothing says so."""
    half = {p.dtype for group in optimizer.param_groups for p in group["params"]} & {torch.bfloat16, torch.float16}
    if half and not isinstance(optimizer, GroupOptimizer):
        name = f"{type(optimizer).__module__}.{type(optimizer).__name__}"
        rank_zero_warn(
            f"{name} moves parameters in {', '.join(sorted(map(str, half)))}: without float32 masters of its own, "
            f"steps below their gap are lost; `check-optimizer {name}` tells. trainer.precision bf16-mixed keeps "
            "parameters in float32"
        )
