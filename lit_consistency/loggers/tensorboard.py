"""TensorBoard events in the run's folder, none before the run has really begun, none twice after a step back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only


class TensorBoardRunLogger(TensorBoardLogger):
    """TensorBoardLogger that waits for ``begin`` and writes no hparams.yaml, which config.yaml makes superfluous.

    Lightning touches ``experiment`` before the model is built, which would leave a folder behind for a wrong call.
    """

    begun = False

    def begin(self) -> None:
        """From now on there is something to log."""
        self.begun = True

    @property
    def experiment(self) -> Any:
        """The SummaryWriter; None before the beginning."""
        return super().experiment if self.begun else None

    @rank_zero_only
    def keep_until(self, step: int) -> None:
        """Have readers drop the events of later steps, which older files of the folder hold.

        A new file of events says from which step on it holds (``purge_step``): TensorBoard and its EventAccumulator
        then forget what they have read of this step and later ones. The old files stay as they are.
        """
        assert self._experiment is None, "a file of events says this in its first entry"
        # in a new folder there is nothing to forget, and readers are spared a restart
        if any(Path(self.log_dir).glob("events.out.tfevents.*")):
            self._kwargs["purge_step"] = step + 1

    def save(self) -> None:
        """Write what is buffered."""
        if self.begun:
            self.experiment.flush()
