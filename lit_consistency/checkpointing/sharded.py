"""Checkpoints of sharded runs: a folder in which every rank has written its own shards.

The tensors are stored by ``torch.distributed.checkpoint`` under flat names, so that any number of ranks, or one
process, reads them; everything else stands in ``meta.pt``. The folder is written beside its place, each file is hashed
by the rank that wrote it, and it is moved into place before the manifest is written: whole or not at all, as
io.py does for a file. ``torch.distributed.checkpoint`` is imported where a folder is written or read: it takes a
fifth of a second, for which a run on one device would wait.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.checkpointing.manifest import CheckpointError, describe, manifest_of
from lit_consistency.records.atomic import flush, publish, remove_leftovers, unfinished, write_text

META = "meta.pt"


def save_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors are sharded; every rank calls it.

    Args:
        checkpoint: Lightning's, its ``optimizer_states`` by the names of the parameters; see ``named_state``.
        path: the folder; one that is there is replaced.

    Raises:
        CheckpointError: on every rank, naming the path and the cause on any of them.
    """
    from torch.distributed.checkpoint import FileSystemWriter, save

    tensors, rest = _divide(checkpoint)
    temporary = unfinished(path)
    first = dist.get_rank() == 0
    _together(path, lambda: _make(temporary) if first else None)
    _together(path, lambda: save(tensors, storage_writer=FileSystemWriter(temporary)))
    _together(path, lambda: _write_meta(rest, temporary) if first else None)
    described = _together(path, lambda: {file.name: describe(file) for file in _own_files(temporary)})
    manifest = {name: entry for files in described for name, entry in files.items()}
    _together(path, lambda: _publish(temporary, path, manifest) if first else None)


def read_meta(path: Path) -> dict[str, Any]:
    """Everything of a checkpoint folder but its tensors; nothing in the file is executed."""
    return torch.load(path / META, map_location="cpu", weights_only=True)


def stored_tensors(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Flat name -> shape and dtype of every tensor of a checkpoint folder."""
    from lit_consistency.checkpointing.shard_index import ShardReader

    index = ShardReader(path).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in index.items()}  # type: ignore[union-attr]


def fill(tensors: dict[str, Tensor], path: Path) -> None:
    """Read tensors in place, each in the layout that it has; collective where a process group is there.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    from torch.distributed.checkpoint import CheckpointException, load

    from lit_consistency.checkpointing.shard_index import ShardReader

    stored = stored_tensors(path)
    for name, tensor in tensors.items():
        shape = tuple(stored[name][0]) if name in stored else "nothing"
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{path}: {name}: expected {tuple(tensor.shape)}, found {shape}")
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")
        try:
            load(tensors, storage_reader=ShardReader(path), no_dist=not sharded)
        except CheckpointException as error:
            raise CheckpointError(f"{path}: cannot be read: {_last_line(error)}") from error


def read_folder(path: Path, model_only: bool = False) -> dict[str, Any]:
    """A checkpoint folder as one process would have written it into a file: whole tensors on the CPU.

    Args:
        path: the folder.
        model_only: leave the tensors of the optimizer's state where they are, twice as many as the model's.
    """
    checkpoint = read_meta(path)
    stored = {name: entry for name, entry in stored_tensors(path).items() if _is_model(name) or not model_only}
    tensors = {name: torch.empty(size, dtype=dtype) for name, (size, dtype) in stored.items()}
    fill(tensors, path)
    checkpoint["state_dict"] = {name.removeprefix("model/"): t for name, t in tensors.items() if _is_model(name)}
    for i, state in enumerate(checkpoint["optimizer_states"]):
        for flat, tensor in tensors.items():
            if flat.startswith(f"optimizer{i}/"):
                _, name, key = flat.split("/")
                state["state"].setdefault(name, {})[key] = tensor
    checkpoint["optimizer_states"] = [numbered_state(state) for state in checkpoint["optimizer_states"]]
    return checkpoint


def named_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """An optimizer's state dict whose parameters go by their names.

    Raises:
        ValueError: the groups have no names.
    """
    state = optimizer.state_dict()
    names = {i: name for group in state["param_groups"] for i, name in zip(group["params"], _names(group), strict=True)}
    groups = [{**group, "params": [names[i] for i in group["params"]]} for group in state["param_groups"]]
    return {"state": {names[i]: dict(entry) for i, entry in state["state"].items()}, "param_groups": groups}


def numbered_state(state: dict[str, Any]) -> dict[str, Any]:
    """The opposite of ``named_state``: parameters go by their position, as torch's optimizers count them."""
    numbers: dict[str, int] = {}
    for group in state["param_groups"]:
        for name in group["params"]:
            numbers[name] = len(numbers)
    groups = [{**group, "params": [numbers[name] for name in group["params"]]} for group in state["param_groups"]]
    return {"state": {numbers[name]: entry for name, entry in state["state"].items()}, "param_groups": groups}


def _names(group: dict[str, Any]) -> list[str]:
    if "param_names" not in group:
        raise ValueError("an optimizer of a sharded run: expected groups of named parameters, of parameter_groups")
    return group["param_names"]


def _is_model(name: str) -> bool:
    return name.startswith("model/")


def _divide(checkpoint: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors under flat names, and the checkpoint without them."""
    rest = {key: value for key, value in checkpoint.items() if key != "state_dict"}
    tensors = {f"model/{name}": tensor for name, tensor in checkpoint["state_dict"].items()}
    rest["optimizer_states"] = []
    for i, state in enumerate(checkpoint.get("optimizer_states", [])):
        left: dict[str, dict[str, Any]] = {}
        for name, entry in state["state"].items():
            left[name] = {key: value for key, value in entry.items() if not isinstance(value, Tensor)}
            tensors |= {f"optimizer{i}/{name}/{k}": v for k, v in entry.items() if isinstance(v, Tensor)}
        rest["optimizer_states"].append({"state": left, "param_groups": state["param_groups"]})
    return tensors, rest


def _together(path: Path, act: Callable[[], Any]) -> list[Any]:
    """Act on every rank and give all results to all; what fails on one fails on all, instead of letting them wait."""
    from torch.distributed.checkpoint import CheckpointException

    outcome: tuple[str | None, Any]
    try:
        outcome = (None, act())
    except (OSError, RuntimeError, CheckpointException) as error:
        outcome = (_last_line(error), None)
    outcomes: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(outcomes, outcome)
    problems = [problem for problem, _ in outcomes if problem is not None]
    if problems:
        raise CheckpointError(f"could not save the checkpoint {path}: {problems[0]}")
    return [result for _, result in outcomes]


def _last_line(error: BaseException) -> str:
    """The cause: torch.distributed.checkpoint puts the tracebacks of all ranks into one message."""
    return str(error).strip().rpartition("\n")[2]


def _make(temporary: Path) -> None:
    temporary.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(temporary.parent)
    temporary.mkdir()


def _write_meta(rest: dict[str, Any], folder: Path) -> None:
    with open(folder / META, "wb") as file:
        torch.save(rest, file)
    flush(folder / META)


def _own_files(folder: Path) -> list[Path]:
    """What this rank has written: the writer puts the rank first into the name of a file."""
    from lit_consistency.checkpointing.shard_index import INDEX

    own = sorted(folder.glob(f"__{dist.get_rank()}_*"))
    return [*own, folder / INDEX, folder / META] if dist.get_rank() == 0 else own


def _publish(temporary: Path, path: Path, manifest: dict[str, Any]) -> None:
    manifest_of(path).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    flush(temporary)
    publish(temporary, path)
    write_text(manifest_of(path), json.dumps(manifest))
