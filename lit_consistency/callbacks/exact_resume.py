"""What a checkpoint holds beyond Lightning's, so that a resumed run continues bit for bit.

Random states of Python, NumPy and torch. Where a checkpoint is written in the middle of an accumulation, the loader
begins that optimizer step anew, so gathered gradients need not be saved. Only tensors and plain values are saved: a
checkpoint is read with ``weights_only=True``.

A checkpoint of a step is written before the validation that may follow it, and that of the last step before all that
happens at the end. Lightning forgets the one and skips the other when it resumes; here both are made up for, and the
model of the last step is validated too, where Lightning stops within an epoch.
"""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loops.fit_loop import _FitLoop
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.optimizers.core.optimizer import PROGRESS


class ExactResume(Callback):
    """Save and restore random states, and let changed hyperparameters take effect; the loader saves its own position.

    Args:
        allow_changes: the configuration may differ from that of the checkpoint, whose values it then replaces.
        checkpoint: from which this process goes on; None begins a run.
    """

    def __init__(self, allow_changes: bool = False, checkpoint: str | None = None) -> None:
        self.allow_changes = allow_changes
        self.checkpoint = checkpoint
        self._checkpoint: dict[str, Any] = {}
        self._configured: list[dict[str, Any]] = []

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """All go on from one checkpoint; a node may see a shared folder as it was a minute ago (NFS keeps names)."""
        first = trainer.strategy.broadcast(self.checkpoint)
        if not trainer.strategy.reduce_boolean_decision(first == self.checkpoint):
            raise ValueError(
                f"ckpt_path: the ranks go on from different checkpoints, rank {trainer.global_rank} from "
                f"{self.checkpoint or 'the beginning'}; expected one, in a folder that all nodes share: start again, a "
                "moment later"
            )

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Add the states of every rank to the checkpoint, which only the first rank writes."""
        states: list[Any] = [random_states()] * trainer.world_size
        if dist.is_initialized():
            dist.all_gather_object(states, random_states())
        checkpoint["random_states"] = states
        checkpoint["optimizer"] = type(trainer.optimizers[0]).__name__

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Keep the checkpoint until training starts: optimizer and schedule do not exist yet."""
        self._checkpoint = checkpoint

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the configured hyperparameters; the state of another optimizer class is left out, with a warning."""
        for group in trainer.optimizers[0].param_groups:
            kept = ("params", "param_names", *PROGRESS)
            self._configured.append({key: value for key, value in group.items() if key not in kept})
        before, now = self._checkpoint.get("optimizer"), type(trainer.optimizers[0]).__name__
        if before not in (None, now):
            self._checkpoint["optimizer_states"] = []
            rank_zero_warn(f"the checkpoint holds the state of {before}: {now} begins with an empty one")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Restore the random states, last of all, when everything that could draw a random number has been set up."""
        if not self._checkpoint:
            return
        if self.allow_changes:
            self._configure_anew(trainer, language_model(pl_module))
        states = self._checkpoint["random_states"]
        # with another number of ranks a rank may have no state of its own: it takes the first rank's
        set_random_states(states[trainer.global_rank if len(states) == trainer.world_size else 0])
        self._checkpoint = {}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The model of this step need not be validated when training ends."""
        if isinstance(trainer.fit_loop, FinishingFitLoop):
            trainer.fit_loop.validated_at = trainer.global_step

    def _configure_anew(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """Overwrite the hyperparameters that came back with the optimizer's state by those of the configuration."""
        factor = module.schedule.factor(trainer.global_step, module.total_steps())
        for group, configured in zip(trainer.optimizers[0].param_groups, self._configured, strict=True):
            group.update(configured, lr=configured["initial_lr"] * factor)
        trainer.lr_scheduler_configs[0].scheduler.base_lrs = [group["initial_lr"] for group in self._configured]


class FinishingFitLoop(_FitLoop):
    """Lightning's loop, whose end is complete.

    The model of the last step is validated, wherever in an epoch that step lies; and the end of a resumed run whose
    steps are all done is not skipped.
    """

    validated_at = -1
    """Step of the latest validation; set by ``ExactResume``."""

    @classmethod
    def replace(cls, trainer: Trainer) -> None:
        """Take the place of the loop that a Trainer has made."""
        made = trainer.fit_loop
        loop = cls(trainer, min_epochs=made.min_epochs, max_epochs=made.max_epochs)
        loop.epoch_loop = made.epoch_loop
        trainer.fit_loop = loop

    @property
    def skip(self) -> bool:
        """Whether there is nothing to do at all."""
        return super().skip and not self.is_resuming

    def on_run_end(self) -> None:
        """Validate what has not been, before the end is measured and written; a run that a signal has stopped goes on.

        The signal sets ``limit_val_batches`` to 0.
        """
        trainer = self.trainer
        if trainer.enable_validation and self.validated_at != trainer.global_step:
            steps_per_epoch = trainer.datamodule.steps_per_epoch  # type: ignore[attr-defined]
            make_up_validation(trainer, (trainer.global_step - 1) // steps_per_epoch)
        super().on_run_end()


def validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates behind the micro-batch in progress; asked in ``on_train_batch_end``."""
    loop = trainer.fit_loop
    return loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]


def make_up_validation(trainer: Trainer, epoch: int) -> None:
    """Validate before training goes on or ends, as Lightning does between two steps.

    Args:
        trainer: before its first step or behind its last one.
        epoch: to whose steps the validation belongs; the Trainer may be in the next one already.
    """
    steps, progress = trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_progress.current
    steps.val_loop.restarting = False
    before = progress.completed, steps._batches_that_stepped
    # between two steps Lightning has not yet counted the one before, which is the step that it logs
    progress.completed, steps._batches_that_stepped = epoch, trainer.global_step - 1
    trainer.validating = True
    steps.val_loop.run()
    trainer.training = True
    progress.completed, steps._batches_that_stepped = before


def random_states() -> dict[str, Any]:
    """States of the global generators, as tensors and plain values."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [str(kind), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: dict[str, Any]) -> None:
    """Restore what ``random_states`` returned."""
    version, internal, gauss = states["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, position, has_gauss, cached = states["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states["torch"])
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
