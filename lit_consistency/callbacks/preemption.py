"""Stop on a signal without losing a step.

The handler only sets a flag. At the end of an optimizer step the ranks agree by an all-reduce, save a checkpoint and
stop; the command line then exits with 128 plus the signal's number (143 for SIGTERM, 130 for SIGINT). Lightning's own
handler broadcasts from inside the handler and hangs when only one rank is told.
"""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_consistency.callbacks.checkpoint import StepCheckpoint

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Preemption(Callback):
    """Save and stop at the next optimizer step after SIGTERM or SIGINT; a second SIGINT stops at once.

    After the run, ``trainer.interrupted_by`` holds the signal's number.
    """

    def __init__(self) -> None:
        self.received = 0
        self._previous: dict[int, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over from Lightning, which has registered its handlers just before."""
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """At a step boundary: agree, save, stop."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        number = self._agree(pl_module.device)
        if not number:
            return
        trainer.interrupted_by = number  # type: ignore[attr-defined]
        trainer.should_stop = True
        rank_zero_info(f"{signal.Signals(number).name}: saving at step {trainer.global_step}, then stopping")
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, StepCheckpoint):
                callback.save(trainer)

    def _agree(self, device: torch.device) -> int:
        """The greatest signal number that any rank has received; 0 for none."""
        if not dist.is_initialized():
            return self.received
        flag = torch.tensor(self.received, device=device)
        dist.all_reduce(flag, op=dist.ReduceOp.MAX)
        return int(flag)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
