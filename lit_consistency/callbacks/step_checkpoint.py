"""Checkpoints of a run in progress: every k optimizer steps and on a signal, the newest few kept; and its series.

A checkpoint continues the run and goes when newer ones come. The series is models that stay, spaced over the run, for
those who study how finetuning depends on the length of pretraining; RunRecord, which knows where a model comes from,
writes them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_consistency.callbacks.run_model import find_callback
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints, step_of
from lit_consistency.checkpointing.manifest import has_manifest, manifest_of, write_manifest
from lit_consistency.module import language_model
from lit_consistency.records.atomic import remove_leftovers
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.series import check_series, series_steps


class StepCheckpoint(Checkpoint):
    """Save ``<run>/checkpoints/step-XXXXXXXX.ckpt`` at optimizer steps; resume with ``fit --ckpt_path auto``.

    Lightning runs it after all other callbacks, so that what they have counted and measured at a step is in the
    checkpoint.

    Args:
        every_n_steps: optimizer steps between checkpoints; 0 saves only when the run is interrupted.
        keep: how many checkpoints stay on disk, at least 2, so that one bad file never costs the run.
        at_end: save one more when training ends, so that the run can be continued with more steps.
        series: steps whose models are kept as ``<run>/series/step-XXXXXXXX/`` in LitGPT's format, each a base for
            other runs: ``{steps: log, count: 8}`` spaces 8 evenly in the logarithm from step 1 (or ``first: M``) to the
            last; a list of steps, as ``[10, 100, 1000]``; or ``{tokens: [1000000]}``, counted by full batches.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        keep: int = 2,
        at_end: bool = False,
        series: dict[str, Any] | list[int] | None = None,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps = {every_n_steps}: expected 0 (never) or more")
        if keep < 2:
            raise ValueError(f"keep = {keep}: expected at least 2")
        self.every_n_steps = every_n_steps
        self.keep = keep
        self.at_end = at_end
        if series is not None:
            check_series(series)
        self.series = series
        self.folder: Path | None = None
        self._saved_at = -1

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints go into the run's folder; the series must fit into the run, which is seen before it is begun."""
        self.folder = RunFolder(Path(trainer.strategy.broadcast(trainer.default_root_dir))).checkpoints
        if stage != "fit" or self.series is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        per_step = data.global_batch_size * data.block_size
        find_callback(trainer, RunRecord).series = series_steps(
            self.series, language_model(pl_module).total_steps(), per_step
        )

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move what belongs to later steps aside: a branch that this run has left, which is not its newest."""
        assert self.folder is not None
        record = find_callback(trainer, RunRecord)
        ahead = [path for path in checkpoints(self.folder) if step_of(path) > trainer.global_step]
        # the manifest first: a half-moved checkpoint does not count
        _set_aside(self.folder, [file for path in ahead for file in (manifest_of(path), path)])
        remove_leftovers(record.folder.series)
        if record.resumed_from is None or record.allow_changes:  # an exact resume would write the same models again
            models = record.folder.series_models()
            _set_aside(record.folder.series, [path for step, path in models.items() if step > trainer.global_step])
        there = record.folder.series_models()
        if missed := [step for step in record.series if step <= trainer.global_step and step not in there]:
            rank_zero_warn(f"checkpoint.series: steps {missed} lie before step {trainer.global_step}: not written")

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


def _set_aside(folder: Path, paths: list[Path]) -> None:
    """Move files or folders, in this order, into a folder beside them."""
    paths = [path for path in paths if path.exists()]
    if not paths:
        return
    aside = folder / time.strftime("abandoned-%Y%m%d-%H%M%S")
    aside.mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.replace(path, aside / path.name)
    rank_zero_info(f"{', '.join(path.name for path in paths)}: of later steps, moved to {aside}")
