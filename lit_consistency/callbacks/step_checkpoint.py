"""Checkpoints of a run: every k optimizer steps, on a signal and of the end, the newest few kept; and its series.

That of the end is written as soon as the last step is done, before the last validation, the last measurement and the
final model: whatever fails then, ``--ckpt_path auto`` makes the end from it. A checkpoint continues the run and goes
when newer ones come. The series is models that stay, spaced over the run, for those who study how finetuning depends on
the length of pretraining; RunRecord, which knows where a model comes from, writes them.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from torch.optim import Optimizer

from lit_consistency.callbacks.best_model import BestRule
from lit_consistency.callbacks.exact_resume import make_up_validation, validation_follows
from lit_consistency.callbacks.kept_model import KeptModel
from lit_consistency.callbacks.run_model import find_callback
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.checkpointing.io import AtomicCheckpointIO, checkpoints, step_of
from lit_consistency.checkpointing.manifest import CheckpointError, has_manifest, manifest_of, write_manifest
from lit_consistency.module import language_model
from lit_consistency.records.atomic import remove_leftovers
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.series import check_series, series_steps

MINUTES = "checkpoint/minutes"
"""What the first rank tells the others with the numbers of a step: its clock says that it is time."""


class StepCheckpoint(Checkpoint):
    """Save ``<run>/checkpoints/step-XXXXXXXX.ckpt`` at optimizer steps; resume with ``fit --ckpt_path auto``.

    Lightning runs it after all other callbacks, so that what they have counted and measured at a step is in the
    checkpoint.

    Args:
        every_n_steps: optimizer steps between checkpoints; 0 counts none.
        every_n_minutes: minutes after which one is saved at the next step, so that a kill of a run for which nobody
            has chosen steps costs no more; 0 never.
        keep: how many checkpoints stay on disk, at least 2, so that one bad file never costs the run.
        at_end: save the last step, so that nothing is lost if the model cannot be written, and the run can be continued
            with more steps.
        series: steps whose models are kept as ``<run>/series/step-XXXXXXXX/`` in LitGPT's format, each a base for
            other runs: ``{steps: log, count: 8}`` spaces 8 evenly in the logarithm from step 1 (or ``first: M``) to the
            last; a list of steps, as ``[10, 100, 1000]``; or ``{tokens: [1000000]}``, counted by full batches.
        best: which measured step's model becomes ``model/``, that of the last step standing beside it in ``last/``:
            ``{most: learn/NAME, while: "forget/*<=0.05"}``, or ``least`` for a loss. ``while`` leaves out steps at
            which a bound is breached, by the interval of the change. Where no step is better than the base, it is that.
    """

    def __init__(
        self,
        every_n_steps: int = 0,
        every_n_minutes: float = 15.0,
        keep: int = 2,
        at_end: bool = True,
        series: dict[str, Any] | list[int] | None = None,
        best: dict[str, Any] | None = None,
    ) -> None:
        if every_n_steps < 0:
            raise ValueError(f"every_n_steps = {every_n_steps}: expected 0 (never) or more")
        if keep < 2:
            raise ValueError(f"keep = {keep}: expected at least 2")
        if every_n_minutes < 0:
            raise ValueError(f"every_n_minutes = {every_n_minutes}: expected 0 (never) or more")
        self.every_n_steps = every_n_steps
        self.every_n_minutes = every_n_minutes
        self.keep = keep
        self.at_end = at_end
        if series is not None:
            check_series(series)
        self.series = series
        self.best = BestRule(best) if best is not None else None
        self.folder: Path | None = None
        self._begun = False
        self._saved_at = -1
        self._saved_time = time.monotonic()
        self._validation_due: int | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Checkpoints go into the run's folder; the series must fit into the run, which is seen before it is begun."""
        self.folder = RunFolder(Path(trainer.strategy.broadcast(trainer.default_root_dir))).checkpoints
        if stage != "fit":
            return
        record = find_callback(trainer, RunRecord)
        record.checkpoint_at_end = self.at_end
        record.before_model = lambda: self._save_end(trainer)
        if kept := find_callback(trainer, KeptModel):  # which asks for the watched tasks, known when the fit starts
            record.before_start = lambda: kept.begin(trainer, self.best)
        if self.series is None:
            return
        data = trainer.datamodule  # type: ignore[attr-defined]
        per_step = data.global_batch_size * data.block_size
        record.series = series_steps(self.series, language_model(pl_module).total_steps(), per_step)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Move later steps aside, then make up for the validation that was due behind the checkpoint."""
        record = find_callback(trainer, RunRecord)
        self._begun = True
        self._saved_time = time.monotonic()
        if record.resumed_from is not None and Path(record.resumed_from).absolute() == self._path(trainer).absolute():
            self._saved_at = trainer.global_step  # it stands there, verified
        self._abandon_later_steps(trainer, record)
        if self._validation_due is not None:
            make_up_validation(trainer, self._validation_due)
            self._validation_due = None

    @rank_zero_only
    def _abandon_later_steps(self, trainer: Trainer, record: RunRecord) -> None:
        """A branch that this run has left is not its newest."""
        assert self.folder is not None
        remove_leftovers(self.folder)
        ahead = [path for path in checkpoints(self.folder) if step_of(path) > trainer.global_step]
        # the manifest first: a half-moved checkpoint does not count
        later = {self.folder: [file for path in ahead for file in (manifest_of(path), path)]}
        remove_leftovers(record.folder.series)
        if record.resumed_from is None or record.allow_changes:  # an exact resume would write the same models again
            models = record.folder.series_models()
            later[record.folder.series] = [path for step, path in models.items() if step > trainer.global_step]
        for folder, paths in later.items():
            if aside := record.folder.abandon(folder, paths):
                names = ", ".join(path.name for path in paths)
                rank_zero_info(f"{names}: of later steps, moved to {aside}, which the next run of this name removes")
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
        last = self.at_end and trainer.global_step >= language_model(pl_module).total_steps()
        interrupted = getattr(trainer, "interrupted_by", None)
        # a run that is stopped in an epoch goes on in it, as from a signal; its end comes behind that of the epoch
        stopped = self.at_end and trainer.should_stop
        if due or last or interrupted or stopped or self._minutes_are_over(trainer):
            follows = trainer.left_out_validation if interrupted else validation_follows(trainer)  # type: ignore[attr-defined]
            self._validation_due = trainer.current_epoch if follows else None
            self.save(trainer, at_end=bool(last))
            self._validation_due = None

    def _minutes_are_over(self, trainer: Trainer) -> bool:
        """Whether it is time for a checkpoint, on all ranks alike, whose clocks differ."""
        if not self.every_n_minutes:
            return False
        if trainer.world_size == 1:
            return self._clock_is_over()
        report = language_model(trainer.lightning_module).reports.latest
        # a report of before the last checkpoint does not know of it
        return report is not None and report.step >= self._saved_at and report.votes.get(MINUTES, 0) > 0

    def _clock_is_over(self) -> bool:
        return time.monotonic() - self._saved_time > 60 * self.every_n_minutes

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The clock of the first rank holds for all."""
        if self.every_n_minutes and trainer.world_size > 1:
            votes = language_model(pl_module).reports.votes
            votes[MINUTES] = trainer.is_global_zero and self._clock_is_over()

    def _save_end(self, trainer: Trainer) -> None:
        """Save a step that nobody knew to be the last, as when a callback has stopped the run."""
        if self.at_end:
            self.save(trainer, at_end=True)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """What fails when all steps are done costs nothing: say where they are."""
        if not self._begun or trainer.global_step < language_model(pl_module).total_steps():
            return
        path = self._path(trainer)
        if has_manifest(path):
            rank_zero_warn(
                f"all {trainer.global_step} steps are done and {path} holds the end; the same command with --run.name "
                f"{path.parent.parent.name} --ckpt_path auto goes on from there"
            )
        else:
            rank_zero_warn(f"all {trainer.global_step} steps are done, and no checkpoint holds the end")

    def state_dict(self) -> dict[str, Any]:
        """The epoch whose validation is due behind this step, or None."""
        return {"validation_due": self._validation_due}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """It is made up for when training starts."""
        self._validation_due = state_dict["validation_due"]

    def _path(self, trainer: Trainer) -> Path:
        assert self.folder is not None
        return self.folder / f"step-{trainer.global_step:08d}.ckpt"

    def save(self, trainer: Trainer, at_end: bool = False) -> None:
        """Save now, at an optimizer-step boundary, then remove what is older than the newest ``keep``.

        Args:
            trainer: of the run.
            at_end: whether the steps are all done; the model is written next, so a failure is a warning only.
        """
        if trainer.global_step == self._saved_at:
            return
        path = self._path(trainer)
        try:
            trainer.save_checkpoint(path, weights_only=False)
        except CheckpointError as error:
            if not at_end:
                raise
            rank_zero_warn(f"{error}; going on to the final model")
            trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other ranks of DDP wait
        if path.is_dir() and trainer.is_global_zero and not has_manifest(path):
            write_manifest(path)  # another strategy's folder; that of FSDP2Strategy brings its own
        trainer.strategy.barrier("checkpoint")
        self._saved_at, self._saved_time = trainer.global_step, time.monotonic()
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
