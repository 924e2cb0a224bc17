"""Who is told of a measurement: callbacks that print it, draw it, or act on it, without ``Forgetting`` knowing them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer

from lit_consistency.callbacks.summary_table import Measurement


class MeasurementListener:
    """Of a callback: its ``on_measurement`` is called on all ranks, when the numbers of a measurement are logged.

    What it takes of the time counts as measuring, so that a picture is no slow step.
    """

    def on_measurement(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        measurements: Sequence[Measurement],
        numbers: Mapping[str, float],
    ) -> None:
        """The model of ``trainer.global_step`` has been measured.

        Args:
            trainer: of the run.
            pl_module: what is trained.
            measurements: every watched task, at the base and now.
            numbers: all that was logged.
        """


def tell_listeners(
    trainer: Trainer,
    pl_module: LightningModule,
    measurements: Sequence[Measurement],
    numbers: Mapping[str, float],
) -> None:
    """Call ``on_measurement`` of the trainer's callbacks that have one, in their order."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, MeasurementListener):
            callback.on_measurement(trainer, pl_module, measurements, numbers)
