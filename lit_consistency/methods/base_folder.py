"""A step of a run, or adapters, as a base: wherever a model folder is asked for, these may be named instead.

The folder of a step is made once, where the run keeps its series (``RUN/series/step-XXXXXXXX``), and is then a model
like any other: the weights that the run was measured with at that step (adapters merged), its configuration and
tokenizer, and a provenance that names the step. Adapters are merged into ``merged`` in their own folder. Where a folder
cannot be written to, the model goes into the user's cache, by the hash of the checkpoint or of the adapters. Nothing
that stands in a checkpoint is run: its manifest is verified, its tensors are read ``weights_only``, and of the method
that it names only those of this package are known, by their names.
"""

from __future__ import annotations

import errno
import pickle
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock
from torch import Tensor

from lit_consistency.checkpointing.io import checkpoints, named_checkpoint, step_of
from lit_consistency.checkpointing.manifest import manifest_of, verify
from lit_consistency.checkpointing.sharded import read_folder
from lit_consistency.data.tokens.cache import default_cache_dir
from lit_consistency.distributed.optimizer_state import FILE, write_optimizer_state
from lit_consistency.methods.adapters import is_adapters, merge_adapters
from lit_consistency.methods.base import Merging
from lit_consistency.methods.lora import LoRA
from lit_consistency.model import model_config, write_weights
from lit_consistency.records.atomic import new_file, replaced_folder
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.model_folder import ADAPTERS, CONFIG
from lit_consistency.records.provenance import provenance_of, read_provenance
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.shipped import on_this_machine, shipped

STEP = re.compile(r"step-(\d+)(\.ckpt)?")
IN_BASE_NAMES = ("Full", "HFT", "Pull")
"""Methods whose parameters are the base model's."""
PREFIX = "gpt."
"""Of the model's weights among those of the LightningModule."""
NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS)
_TO_COME: ContextVar[bool] = ContextVar("base to come", default=False)


@contextmanager
def base_to_come() -> Iterator[None]:
    """Within it a model without a base is one whose base is yet to be trained: options that need one are taken."""
    token = _TO_COME.set(True)
    try:
        yield
    finally:
        _TO_COME.reset(token)


def is_from_scratch(checkpoint_dir: Path | None) -> bool:
    """Whether there is no base, and none to come."""
    return checkpoint_dir is None and not _TO_COME.get()


def base_folder(path: Path, option: str = "checkpoint_dir", optimizer_state: bool = False) -> Path:
    """The model folder that a path names; a step checkpoint, or adapters, become one first.

    Args:
        path: a model folder; or a step of a run: ``RUN/checkpoints/step-00000100.ckpt`` (a file or a folder of
            shards), ``RUN/checkpoints/step-100`` or ``RUN/series/step-100``; or a folder of adapters, ``RUN/adapters``.
        option: what the user calls it, for messages.
        optimizer_state: take the optimizer's state out of the checkpoint too, where the folder has none yet.

    Returns:
        The folder; any other path unchanged, for ``check_checkpoint_dir`` to say what is missing there.

    Raises:
        FileNotFoundError: the run holds no model and no checkpoint of this step; those that it holds are named. Or the
            base of the adapters is missing.
        ValueError: the checkpoint is damaged, asks to run code, or was trained by a method that is not known here. Or
            the adapters are damaged, or their base is another model.
    """
    path = shipped(on_this_machine(option, path))
    if is_adapters(path):
        return _merged_once(path)
    named = STEP.fullmatch(path.name)
    if (path / CONFIG).is_file() or named is None:
        return path
    run, step = RunFolder(path.parent.parent), int(named[1])
    checkpoint = named_checkpoint(path if path.suffix else run.checkpoints / path.name)
    if run.series_model(step).is_dir() and not (optimizer_state and checkpoint.exists()):
        model = run.series_model(step)
        return _merged_once(model) if is_adapters(model) else model
    if not checkpoint.exists():
        steps = sorted({*run.series_models(), *(step_of(other) for other in checkpoints(run.checkpoints))})
        raise FileNotFoundError(
            f"{option} = {path}: {run.path} holds no model of step {step}; "
            + (f"expected one of its steps {steps}" if steps else "expected a step of a run, as RUN/checkpoints/step-N")
        )
    verify(checkpoint)
    try:
        return _made_once(run.series_model(step), checkpoint, run, option, optimizer_state)
    except OSError as error:
        if error.errno not in NOT_WRITABLE:
            raise
    cache = default_cache_dir().parent / "models" / sha256(manifest_of(checkpoint))[:24]
    return _made_once(cache / run.series_model(step).name, checkpoint, run, option, optimizer_state)


def _merged_once(adapters: Path) -> Path:
    """Merge adapters onto their base, unless that is done."""
    of_adapters = sha256(adapters / ADAPTERS)[:24]
    for folder in (adapters / "merged", default_cache_dir().parent / "models" / of_adapters):
        if folder.is_dir():
            return folder
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(folder.with_name(f".{folder.name}.lock")):
                if not folder.is_dir():
                    merge_adapters(adapters, folder)
                return folder
        except OSError as error:
            if error.errno not in NOT_WRITABLE:
                raise
    raise PermissionError(errno.EACCES, f"neither can be written to: {adapters}", str(folder))


def _made_once(folder: Path, checkpoint: Path, run: RunFolder, option: str, optimizer_state: bool) -> Path:
    """Write the model of a checkpoint, unless it is there; of several processes one writes and the others wait."""
    is_complete = (folder / FILE).is_file() if optimizer_state else folder.is_dir()
    if is_complete:
        return folder
    if not run.model_files.is_dir():
        raise FileNotFoundError(
            f"{option} = {checkpoint}: {run.model_files} is missing, which holds its configuration and tokenizer; "
            "expected the checkpoint in the folder of its run, written by this version"
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):
        content = _read(checkpoint, model_only=not optimizer_state)
        if not folder.is_dir():
            weights = _merged(content, run.model_files, checkpoint)
            with replaced_folder(folder) as unfinished:
                shutil.copytree(run.model_files, unfinished, dirs_exist_ok=True)
                write_weights(unfinished, weights)
                provenance_of(content.get("provenance"), f"{checkpoint}: provenance").write(unfinished)
        if optimizer_state and not (folder / FILE).is_file():
            # beside weights that stay as they are: the model is the same with it and without
            with new_file(folder / FILE) as temporary:
                write_optimizer_state(_state_by_name(content, checkpoint), temporary)
            if provenance := read_provenance(folder):
                provenance.write(folder)  # which now vouches for the state too
    return folder


def _state_by_name(content: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    """The optimizer's state of a checkpoint by the names of the parameters, which torch counts."""
    (saved,) = content["optimizer_states"]
    if not all("param_names" in group for group in saved["param_groups"]):
        raise ValueError(f"{checkpoint}: its optimizer knows no names of parameters; expected one of parameter_groups")
    named = {
        i: name
        for group in saved["param_groups"]
        for i, name in zip(group["params"], group["param_names"], strict=True)
    }
    groups = [{**group, "params": group["param_names"]} for group in saved["param_groups"]]
    state = {named[i]: entry for i, entry in saved["state"].items()}
    return {"optimizer": content["optimizer"], "state": state, "param_groups": groups}


def _read(checkpoint: Path, model_only: bool) -> dict[str, Any]:
    """A verified checkpoint, its tensors mapped and not yet read; of a folder of shards the model's alone if so."""
    try:
        if checkpoint.is_dir():
            return read_folder(checkpoint, model_only)
        return torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{checkpoint}: refused, expected tensors and plain values only; the file asks to run code"
        ) from error


def _merged(content: Mapping[str, Any], model_files: Path, checkpoint: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint under the base model's names."""
    state = content["state_dict"]
    weights = {name.removeprefix(PREFIX): tensor for name, tensor in state.items() if name.startswith(PREFIX)}
    method = (yaml.safe_load(content["config"]).get("model") or {}).get("method") or {}
    path = method.get("class_path", f"lit_consistency.methods.{IN_BASE_NAMES[0]}")
    package, _, name = path.rpartition(".")
    ours = package.startswith("lit_consistency.methods")
    if ours and name in IN_BASE_NAMES:
        return weights
    if not (ours and name == LoRA.__name__):
        raise ValueError(
            f"{checkpoint}: trained by {path}: expected a method of lit_consistency.methods, since no class that a "
            "checkpoint names is run; take a model that the run itself has written, as by checkpoint.series"
        )
    lora = LoRA(**method.get("init_args", {}))
    if merging := (content.get("provenance") or {}).get("merging"):
        lora.merging = Merging.of_record(merging)
    with torch.device("meta"):  # only the layers' settings are asked for
        model = lora.build(model_config(None, model_files, {}, None))
    return lora.merged_state(model, weights)
