"""Lightning's progress bar, which also says at which step of how many the run is."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar

from lit_consistency.module import language_model


class RunProgress(RichProgressBar):
    """One bar per epoch, with ``step: 120/500`` of the whole run beside the loss."""

    def __init__(self) -> None:
        super().__init__()
        self._total_steps = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The schedule knows how long the run is."""
        self._total_steps = language_model(pl_module).total_steps()
        super().on_train_start(trainer, pl_module)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The numbers beside the bar."""
        metrics = dict(super().get_metrics(trainer, pl_module))
        if trainer.training:
            metrics["step"] = f"{trainer.global_step}/{self._total_steps}"
        return metrics

    def _get_train_description(self, current_epoch: int) -> str:
        """Without the number of epochs, which is -2 for a run that is limited by steps."""
        return f"{f'epoch {current_epoch + 1}':{len(self.validation_description)}}"
