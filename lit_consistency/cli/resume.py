"""Which checkpoint a run continues from, and whether it may.

A resumed checkpoint never overrides the command line in silence, nor the command line the checkpoint: where the two
configurations differ, the run is refused with the list of differing keys, unless ``--allow_changes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_consistency.checkpointing.io import config_of, named_checkpoint, newest_valid
from lit_consistency.checkpointing.manifest import verify
from lit_consistency.records.differences import differences, flatten
from lit_consistency.records.lease import wait_for_writer
from lit_consistency.records.run_folder import RunFolder

# what may differ without changing what is computed: where the run is written, shown and executed
FREE = (
    "config",
    "ckpt_path",
    "weights_only",
    "allow_changes",
    "run",
    "checkpoint",
    "forgetting.every_n_steps",
    "forgetting.batch_tokens",
    "forgetting.kl_positions",
    "forgetting.time_budget",
    "forgetting.interpolate",
    "forgetting.budget",
    "forgetting.on_breach",
    "throughput",
    "trainer.logger",
    "trainer.callbacks",
    "trainer.plugins",
    "trainer.profiler",
    "trainer.default_root_dir",
    "trainer.accelerator",
    "trainer.strategy",
    "trainer.devices",
    "trainer.num_nodes",
    "trainer.log_every_n_steps",
    "trainer.enable_progress_bar",
    "trainer.val_check_interval",
    "trainer.check_val_every_n_epoch",
    "trainer.limit_val_batches",
    "data.init_args.micro_batch_size",
    "data.init_args.group_by_length",
    "model.activation_checkpointing",
    "model.pretraining_optimizer",
    "data.init_args.num_workers",
    "data.init_args.cache_dir",
)

# options that came later, with the value under which a run computes what it did before there were any
ADDED = {"model.carry_optimizer_state": False, "model.anchor": None, "model.compile": None, "branch_from": None}


def find_checkpoint(section: Mapping[str, Any]) -> Path | None:
    """The verified checkpoint that ``ckpt_path`` names; with ``auto`` the newest valid one of the run, or None.

    A path into another run's folder makes that run the current one, unless ``run.name`` says otherwise.

    Raises:
        ValueError: ``auto`` without ``run.name``, or a named checkpoint that is missing or damaged.
    """
    run = section["run"]
    if section["ckpt_path"] == "auto":
        if not run["name"]:
            raise ValueError("ckpt_path = 'auto': expected run.name too, the run to continue")
        own = RunFolder(Path(run["root"]) / run["name"])
        if getattr(rank_zero_only, "rank", 0) == 0:  # the other ranks read what the first is about to lock
            wait_for_writer(own.path, rank_zero_info)
        return _newest(own)
    path = named_checkpoint(Path(section["ckpt_path"]))
    verify(path)
    if not run["name"] and (folder := RunFolder.of_checkpoint(path)) is not None:
        run["name"], run["root"] = folder.path.name, str(folder.path.parent)
    return path


def has_finished(folder: RunFolder, section: Mapping[str, Any]) -> str | None:
    """Why there is nothing left to do: the run has trained to the end that is configured now, and written everything.

    Args:
        folder: of the run.
        section: the options of ``fit``.

    Returns:
        A sentence; None where something is left. A run that its budget has stopped goes on under another budget.
    """
    if not (folder.is_finished and folder.has_length(section["trainer"])):
        return None
    budget = folder.read_record().get("budget") or {}
    if "stopped_at" not in budget:
        return "the run has finished, there is nothing left to train"
    before = folder.read_config().get("forgetting", {})
    keys = ("budget", "on_breach")
    if section["allow_changes"] or any(before.get(key) != section["forgetting"].get(key) for key in keys):
        return None
    return (
        f"the run was stopped at step {budget['stopped_at']} by forgetting.budget; another budget, or "
        "--allow_changes true, goes on from there"
    )


def _newest(folder: RunFolder) -> Path | None:
    """The newest valid checkpoint, be it of the last step: what is left to do then is measured and written."""
    path, skipped = newest_valid(folder.checkpoints)
    for reason in skipped:
        rank_zero_warn(f"skipped a checkpoint: {reason}")
    if path is None and folder.is_finished:
        raise ValueError(
            f"ckpt_path = 'auto': {folder.path} holds a run that has finished by another configuration, and no "
            "checkpoint from which it could go on; expected another run.name, or its model as model.checkpoint_dir"
        )
    rank_zero_info(f"resuming from {path}" if path else "no checkpoint to continue from: starting from the beginning")
    return path


def check_changes(path: Path, config: str, allow: bool, free: tuple[str, ...] = ()) -> None:
    """ValueError with the differing keys when the checkpoint was made by another configuration.

    Args:
        path: the checkpoint.
        config: the complete configuration now, as YAML.
        allow: warn only.
        free: keys that may differ beside ``FREE``.
    """
    before, now = flatten(yaml.safe_load(config_of(path))), flatten(yaml.safe_load(config))
    changed = differences({**ADDED, **before}, {**ADDED, **now})
    differing = [f"  {text}" for key, text in changed.items() if not _is_free(key, (*FREE, *free))]
    if not differing:
        return
    message = f"{path} was made with another configuration:\n" + "\n".join(differing)
    if not allow:
        raise ValueError(f"{message}\nmake them equal, or pass --allow_changes true")
    rank_zero_warn(f"{message}\ncontinuing with what is configured now (--allow_changes)")


def _is_free(key: str, free: tuple[str, ...]) -> bool:
    return any(key == one or key.startswith(one + ".") for one in free)
