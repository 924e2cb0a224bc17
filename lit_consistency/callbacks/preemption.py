"""Stop on a signal without losing a step.

The handler only sets a flag. At the end of an optimizer step the ranks agree by an all-reduce; StepCheckpoint, which
comes last, saves; the command line exits with 128 plus the signal's number (143 for SIGTERM, 130 for SIGINT).
Lightning's own handler broadcasts from inside the handler and hangs when only one rank gets the signal. A signal that
comes when the last step is done lets the run finish, with its last evaluation and its model.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_consistency.callbacks.exact_resume import validation_follows
from lit_consistency.module import language_model


class Preemption(Callback):
    """Save and stop at the next optimizer step after a signal; a second SIGINT stops at once.

    After the run, ``trainer.interrupted_by`` holds the signal's number; ``trainer.left_out_validation`` says whether a
    validation was due behind the last step, for which the grace of a signal may not be enough.

    Args:
        requeue_signal: by which SLURM says that the time of a job is nearly over, or None. It is noted from the setup
            on, as what it would do to a process that does not expect it is end it; then the first step is the last.
    """

    def __init__(self, requeue_signal: signal.Signals | None = None) -> None:
        usual = [signal.SIGTERM, signal.SIGINT, getattr(signal, "SIGUSR1", None), requeue_signal]
        self.watched = list(dict.fromkeys(number for number in usual if number is not None))
        self.requeue_signal = requeue_signal
        self.begun = False
        self.received = 0
        self._previous: dict[int, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep the handlers that stand before Lightning sets its own."""
        if stage == "fit":
            self._previous = {number: signal.getsignal(number) for number in self.watched}
            if self.requeue_signal is not None:
                signal.signal(self.requeue_signal, self._note)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which has registered its handlers just before."""
        self.begun = True
        for number in self._previous:
            signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Tell the other ranks, with the numbers of the step."""
        if trainer.world_size > 1:
            said = {_vote(number): number == self.received for number in self._previous}
            language_model(pl_module).reports.votes.update(said)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At a step boundary: the ranks agree whether to stop, and do."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        number = self._agreed(trainer, pl_module)
        if number and trainer.global_step < language_model(pl_module).total_steps():
            rank_zero_info(f"{signal.Signals(number).name}: saving at step {trainer.global_step}, then stopping")
            _stop(trainer, number)

    def _agreed(self, trainer: Trainer, pl_module: LightningModule) -> int:
        """The greatest number of a signal that any rank had received when it reported on a step; 0 for none."""
        if trainer.world_size == 1:
            return self.received
        report = language_model(pl_module).reports.latest
        votes = {} if report is None else report.votes
        return max((number for number in self._previous if votes.get(_vote(number))), default=0)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Restore the handlers."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Restore the handlers."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def _vote(number: int) -> str:
    return f"signal/{number}"


def _stop(trainer: Trainer, number: int) -> None:
    """Leave the loop after this step: no minimum of steps, no validation on the way out."""
    trainer.interrupted_by = number  # type: ignore[attr-defined]
    trainer.left_out_validation = validation_follows(trainer)  # type: ignore[attr-defined]
    trainer.should_stop = True
    trainer.limit_val_batches = 0
    trainer.fit_loop.min_epochs = None
    trainer.fit_loop.epoch_loop.min_steps = None
