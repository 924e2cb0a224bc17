"""TensorBoard events in the run's folder, none before the run has really begun."""

from __future__ import annotations

from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger


class RunBoard(TensorBoardLogger):
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

    def save(self) -> None:
        """Write what is buffered."""
        if self.begun:
            self.experiment.flush()
