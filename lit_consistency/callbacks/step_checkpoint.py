"""Checkpoints of a run in progress: every k optimizer steps and on a signal, the newest few kept."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints, step_of
from lit_consistency.checkpointing.manifest import has_manifest, manifest_of, write_manifest
from lit_consistency.records.run_folder import RunFolder


class StepCheckpoint(Checkpoint):
    """Save ``<run>/checkpoints/step-XXXXXXXX.ckpt`` at optimizer steps; resume with ``fit --ckpt_path auto``.

    Lightning runs it after all other callbacks, so that what they have counted and measured at a step is in the
    checkpoint.

    Args:
        every_n_steps: optimizer steps between checkpoints; 0 saves only when the run is interrupted.
        keep: how many checkpoints stay on disk, at least 2, so that one bad file never costs the run.
        at_end: save one more when training ends, so that the run can be continued with more steps.
    """

    def __init__(self, every_n_steps: int = 0, keep: int = 2, at_end: bool = False) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps = {every_n_steps}: expected 0 (never) or more")
        if keep < 2:
            raise ValueError(f"keep = {keep}: expected at least 2")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.at_end = at_end
        self.folder: Path | None = None
        self._saved_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints go into the run's folder."""
        self.folder = RunFolder(Path(trainer.strategy.broadcast(trainer.default_root_dir))).checkpoints

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move checkpoints of later steps aside: a branch that this run has left, which is not its newest."""
        assert self.folder is not None
        ahead = [path for path in checkpoints(self.folder) if step_of(path) > trainer.global_step]
        if not ahead:
            return
        aside = self.folder / time.strftime("abandoned-%Y%m%d-%H%M%S")
        aside.mkdir(parents=True, exist_ok=True)
        for path in ahead:
            for file in (manifest_of(path), path):  # the manifest first: a half-moved checkpoint does not count
                if file.exists():
                    os.replace(file, aside / file.name)
        rank_zero_info(f"checkpoints of later steps were moved to {aside}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a multiple of ``every_n_steps`` has just been reached, or the run is to stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        due = self.every_n_steps and trainer.global_step % self.every_n_steps == 0
        if due or getattr(trainer, "interrupted_by", None):
            self.save(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the end, if asked to."""
        if self.at_end:
            self.save(trainer)

    def save(self, trainer: Trainer) -> None:
        """Save now, at an optimizer-step boundary, then remove what is older than the newest ``keep``."""
        assert self.folder is not None
        if trainer.global_step == self._saved_at:
            return
        path = self.folder / f"step-{trainer.global_step:08d}.ckpt"
        trainer.save_checkpoint(path, weights_only=False)
        if path.is_dir() and trainer.is_global_zero and not has_manifest(path):
            write_manifest(path)  # another strategy's folder; that of FSDP2Strategy brings its own
        trainer.strategy.barrier("checkpoint")
        self._saved_at = trainer.global_step
        self._retain()

    @rank_zero_only
    def _retain(self) -> None:
        assert self.folder is not None
        complete = [path for path in checkpoints(self.folder) if has_manifest(path)]
        for path in complete[: -self.keep]:
            try:
                AtomicCheckpointIO().remove_checkpoint(path)
            except OSError as error:
                rank_zero_warn(f"could not remove the old checkpoint {path}: {error}")
