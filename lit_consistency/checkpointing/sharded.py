"""Checkpoints of sharded runs: a folder in which every rank has written its own shards.

The tensors are stored by ``torch.distributed.checkpoint`` under flat names, so that any number of ranks, or one
process, reads them; everything else stands in ``meta.pt``. The folder is written beside its place, each file is hashed
by the rank that wrote it, and it is moved into place before the manifest is written: whole or not at all, as
io.py does for a file. The index of the tensors is a pickle; it is read by an unpickler that makes nothing
but the classes of such an index.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.tensor import DTensor

from lit_consistency.checkpointing.manifest import CheckpointError, describe, manifest_of
from lit_consistency.records.atomic import flush, publish, remove_leftovers, unfinished, write_text

META = "meta.pt"
INDEX = ".metadata"
INDEX_CLASSES = {
    "torch.distributed.checkpoint.metadata": (
        "BytesStorageMetadata",
        "ChunkStorageMetadata",
        "Metadata",
        "MetadataIndex",
        "StorageMeta",
        "TensorProperties",
        "TensorStorageMetadata",
        "_MEM_FORMAT_ENCODING",
    ),
    "torch.distributed.checkpoint.filesystem": ("_StorageInfo", "_StoragePrefix"),
}
"""Module -> classes of plain values of which an index is made."""


def save_folder(checkpoint: dict[str, Any], path: Path) -> None:
    """Write a checkpoint whose tensors are sharded; every rank calls it.

    Args:
        checkpoint: Lightning's, its ``optimizer_states`` by the names of the parameters; see ``named_state``.
        path: the folder; one that is there is replaced.

    Raises:
        CheckpointError: on every rank, naming the path and the cause on any of them.
    """
    tensors, rest = _divide(checkpoint)
    temporary = unfinished(path)
    first = dist.get_rank() == 0
    _together(path, lambda: _make(temporary) if first else None)
    _together(path, lambda: dcp.save(tensors, storage_writer=dcp.FileSystemWriter(temporary)))
    _together(path, lambda: _write_meta(rest, temporary) if first else None)
    described = _together(path, lambda: {file.name: describe(file) for file in _own_files(temporary)})
    manifest = {name: entry for files in described for name, entry in files.items()}
    _together(path, lambda: _publish(temporary, path, manifest) if first else None)


def read_meta(path: Path) -> dict[str, Any]:
    """Everything of a checkpoint folder but its tensors; nothing in the file is executed."""
    return torch.load(path / META, map_location="cpu", weights_only=True)


def stored_tensors(path: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Flat name -> shape and dtype of every tensor of a checkpoint folder."""
    index = _Reader(path).read_metadata().state_dict_metadata
    return {name: (entry.size, entry.properties.dtype) for name, entry in index.items()}  # type: ignore[union-attr]


def fill(tensors: dict[str, Tensor], path: Path) -> None:
    """Read tensors in place, each in the layout that it has; collective where a process group is there.

    Raises:
        CheckpointError: one is missing or has another shape.
    """
    stored = stored_tensors(path)
    for name, tensor in tensors.items():
        shape = tuple(stored[name][0]) if name in stored else "nothing"
        if shape != tuple(tensor.shape):
            raise CheckpointError(f"{path}: {name}: expected {tuple(tensor.shape)}, found {shape}")
    sharded = any(isinstance(tensor, DTensor) for tensor in tensors.values())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*assuming the intent is to load in a single process")
        try:
            dcp.load(tensors, storage_reader=_Reader(path), no_dist=not sharded)
        except dcp.CheckpointException as error:
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
    outcome: tuple[str | None, Any]
    try:
        outcome = (None, act())
    except (OSError, RuntimeError, dcp.CheckpointException) as error:
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
    own = sorted(folder.glob(f"__{dist.get_rank()}_*"))
    return [*own, folder / INDEX, folder / META] if dist.get_rank() == 0 else own


def _publish(temporary: Path, path: Path, manifest: dict[str, Any]) -> None:
    manifest_of(path).unlink(missing_ok=True)
    if path.exists():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    flush(temporary)
    publish(temporary, path)
    write_text(manifest_of(path), json.dumps(manifest))


# the one in C has no instruction to override; what is known of types of this one is known of that one
_Unpickler: Any = pickle._Unpickler


class _IndexUnpickler(_Unpickler):
    dispatch = dict(_Unpickler.dispatch)

    def load_build(self) -> None:
        """Set the state of a value; of a class it would change what the class does, here and everywhere."""
        if isinstance(self.stack[-2], type):
            raise pickle.UnpicklingError(f"{self.stack[-2].__name__}: an index sets values, not classes")
        super().load_build()

    dispatch[pickle.BUILD[0]] = load_build

    def find_class(self, module: str, name: str) -> Any:
        """Only the classes of an index and plain values: it may name nothing that does something."""
        own = name in INDEX_CLASSES.get(module, ())
        expected = own or module in ("torch", "torch.serialization") or module.partition(".")[0] == "pathlib"
        # asked before: to look a name up imports its module, and importing runs code
        kind = super().find_class(module, name) if expected and "." not in name else None
        plain = module == "torch" and (kind is torch.Size or isinstance(kind, torch.dtype))
        path = module.partition(".")[0] == "pathlib" and isinstance(kind, type) and issubclass(kind, PurePath)
        # the name of a layout, as `strided`, to the layout
        if own or plain or path or (module, name) == ("torch.serialization", "_get_layout"):
            return kind
        raise pickle.UnpicklingError(f"{module}.{name}: not expected in the index of a checkpoint")


class _Reader(dcp.FileSystemReader):
    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The index; as the parent's, but for the unpickler."""
        file = Path(self.path) / INDEX
        try:
            index = _IndexUnpickler(io.BytesIO(file.read_bytes())).load()
        except (
            OSError,
            pickle.UnpicklingError,
            EOFError,
            AttributeError,
            ImportError,
            LookupError,
            TypeError,
        ) as error:
            raise CheckpointError(f"{file}: {error}") from error
        return index
