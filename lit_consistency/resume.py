"""Which checkpoint a run continues from, and whether it may.

A resumed checkpoint never overrides the command line in silence, nor the command line the checkpoint: where the two
configurations differ, the run is refused with the list of differing keys, unless ``--allow_changes``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_consistency.callbacks.checkpoint_io import newest_valid, verify

# what may differ without changing what is computed: where the run is written, shown and executed
FREE = (
    "config",
    "ckpt_path",
    "weights_only",
    "allow_changes",
    "run",
    "checkpoint",
    "forgetting",
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
    "data.init_args.num_workers",
    "data.init_args.cache_dir",
)


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
        path, skipped = newest_valid(Path(run["root"]) / run["name"] / "checkpoints")
        for reason in skipped:
            rank_zero_warn(f"skipped a checkpoint: {reason}")
        rank_zero_info(f"resuming from {path}" if path else "no checkpoint yet: starting from the beginning")
        return path
    path = Path(section["ckpt_path"])
    verify(path)
    if not run["name"] and path.parent.name == "checkpoints":
        run["name"], run["root"] = path.parent.parent.name, str(path.parent.parent.parent)
    return path


def check_changes(path: Path, config: str, allow: bool) -> None:
    """ValueError with the differing keys when the checkpoint was made by another configuration."""
    before = _flat(yaml.safe_load(torch.load(path, map_location="cpu", weights_only=True, mmap=True)["config"]))
    now = _flat(yaml.safe_load(config))
    differing = [
        f"  {key}: {before.get(key, 'absent')!r} in the checkpoint, {now.get(key, 'absent')!r} now"
        for key in sorted({*before, *now})
        if before.get(key, "absent") != now.get(key, "absent") and not _is_free(key)
    ]
    if not differing:
        return
    message = f"{path} was made with another configuration:\n" + "\n".join(differing)
    if not allow:
        raise ValueError(f"{message}\nmake them equal, or pass --allow_changes true")
    rank_zero_warn(f"{message}\ncontinuing with what is configured now (--allow_changes)")


def _is_free(key: str) -> bool:
    return any(key == free or key.startswith(free + ".") for free in FREE)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one mapping with dotted keys."""
    if isinstance(value, Mapping) and value:
        parts = (_flat(part, f"{prefix}.{key}" if prefix else key) for key, part in value.items())
        return {key: leaf for part in parts for key, leaf in part.items()}
    return {prefix: value}
