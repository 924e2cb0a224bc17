"""A run that branches off another: from a step checkpoint, with its optimizer, data and step, on a schedule of its own.

Intermediate checkpoints of a long run are taken at a high learning rate; what each is worth shows when the rate has
come down. ``fit --branch_from RUN/checkpoints/step-1000 --model.schedule lit_consistency.optimizers.Linear
--trainer.max_steps 1100`` makes the steps 1001 to 1100 of such a branch in a folder of its own. Steps go on counting,
and so do ``trainer.max_steps`` and the tokens.

A schedule that differs from that of the checkpoint runs over the steps of the branch alone, its step 0 being the first
step of the branch, times the factor that the learning rate had at the branch point: ``Linear`` falls from there to 0 at
the end. One that does not differ goes on as it was, so a branch that changes nothing is the run itself, bit for bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml

from lit_consistency.checkpointing.io import named_checkpoint
from lit_consistency.checkpointing.manifest import verify
from lit_consistency.checkpointing.sharded import read_meta
from lit_consistency.cli.resume import check_changes
from lit_consistency.records.differences import differences
from lit_consistency.records.run_folder import RunFolder

ANNEALING = ("model.schedule", "trainer.max_steps", "trainer.max_epochs")
"""Keys in which a branch may differ from its run, beside those that are free for every resume."""


def begin_branch(section: Mapping[str, Any], config: str) -> dict[str, Any]:
    """What is known of a branch before it begins.

    Args:
        section: the parsed options.
        config: the complete configuration, as YAML.

    Returns:
        For run.json, provenance and the branch's checkpoints: ``checkpoint``, ``run`` and ``step`` of the branch point;
        ``schedule``, ``begin`` and ``factor`` of a new one, or None where it goes on as it was; ``anew``, whether
        schedule or length differ.

    Raises:
        ValueError: it is no step checkpoint, or one that is damaged; or more differs than a branch may change.
    """
    path = Path(section["branch_from"])
    if RunFolder(path.parent.parent).series == path.parent:
        raise ValueError(
            f"branch_from = {path}: a model of a series has no optimizer and no place in the data; expected a step "
            "checkpoint, as RUN/checkpoints/step-1000"
        )
    path = named_checkpoint(path)
    verify(path)
    check_changes(path, config, allow=section["allow_changes"], free=("branch_from", *ANNEALING))
    content = _plain(path)
    step, most = content["global_step"], section["trainer"]["max_steps"]
    if most not in (-1, None) and most <= step:
        raise ValueError(
            f"trainer.max_steps = {most}: expected more than {step}, the step of branch_from = {path}; a branch goes "
            "on counting its steps"
        )
    keys = differences(yaml.safe_load(content["config"]), yaml.safe_load(config))
    # a branch of a branch whose schedule goes on keeps where that schedule began
    schedule = (content.get("branch") or {}).get("schedule")
    if any(key.startswith("model.schedule") for key in keys):
        schedule = {"begin": step, "factor": _factor(content, path)}
    source = RunFolder.of_checkpoint(path)
    return {
        "checkpoint": str(path),
        "run": source.path.name if source else None,
        "step": step,
        "schedule": schedule,
        "anew": any(key.startswith(ANNEALING) for key in keys),
    }


def saved_branch(path: Path) -> dict[str, Any] | None:
    """What a checkpoint says of the branch that it belongs to; None where it belongs to none."""
    return _plain(path).get("branch")


def _plain(path: Path) -> dict[str, Any]:
    """A verified checkpoint, its tensors not yet read."""
    if path.is_dir():
        return read_meta(path)
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)


def _factor(content: Mapping[str, Any], path: Path) -> float:
    """By what the learning rates of the next step had been multiplied, read from the rates themselves."""
    groups = [group for state in content["optimizer_states"] for group in state["param_groups"]]
    factors = [group["lr"] / group["initial_lr"] for group in groups if group.get("initial_lr")]
    factor = factors[0] if factors else 1.0
    if factor == 0:
        raise ValueError(
            f"branch_from = {path}: the learning rate has come down to 0 there, and a new schedule starts from it; "
            "expected an earlier step"
        )
    return factor
