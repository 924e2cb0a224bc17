"""The progress bar of a run on a terminal: optimizer steps of the whole run, and when it will be done.

Lightning's bar counts micro-batches of an epoch, from zero again after a resume; this one counts what the schedule
counts. Measurements are printed above it as they come. Elsewhere log_lines.py takes its place.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import BatchesProcessedColumn, CustomBarColumn
from rich import get_console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.text import Text

from lit_consistency.callbacks.listeners import MeasurementListener
from lit_consistency.callbacks.log_lines import LogLines, measurement_line, time_left
from lit_consistency.callbacks.pace import Pace
from lit_consistency.callbacks.summary_table import Measurement
from lit_consistency.drawing.numbers import duration
from lit_consistency.module import language_model


def bar_or_lines() -> ProgressBar:
    """A bar where one can be redrawn: a terminal that understands it, or a notebook; else lines."""
    console = get_console()
    # FORCE_COLOR makes rich take any stream for a terminal, as it is set in many pipelines
    return RunProgress() if console.is_jupyter or (console.is_interactive and sys.stdout.isatty()) else LogLines()


class EndColumn(ProgressColumn):
    """``3.5 min left, ends 14:32``, and at the end ``took 12 min``; nothing for bars of validation."""

    max_refresh = 0.5  # seconds; more often would flicker

    def render(self, task: Task) -> Text:
        """The text of one bar."""
        pace: Pace | None = task.fields.get("pace")
        if pace is None:
            return Text()
        if task.finished:
            return Text(f"took {duration(task.finished_time or 0.0)}", style="dim")
        return Text(", ".join(time_left(pace)), style="dim")


class RunProgress(RichProgressBar, MeasurementListener):
    """One bar for the whole run, with ``120/500`` optimizer steps, the time left, the epoch and the loss."""

    reads_reports = True  # the loss is taken from the reports of the steps, which nobody waits for

    def __init__(self) -> None:
        super().__init__()
        self._pace = Pace(0)

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """The loss of the latest step that has been read, and what Lightning shows."""
        report = language_model(pl_module).reports.latest
        loss: dict[str, Any] = {} if report is None else {"loss": report.loss}
        return loss | super().get_metrics(trainer, pl_module)

    def configure_columns(self, trainer: Trainer) -> list[Any]:
        """What stands in the line; Lightning puts the numbers behind it."""
        theme = self.theme
        return [
            TextColumn("[progress.description]{task.description}"),
            CustomBarColumn(
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=theme.batch_progress),
            EndColumn(),
        ]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The bar begins at the step from which the run goes on."""
        super().on_train_start(trainer, pl_module)
        self._pace = Pace(language_model(pl_module).total_steps())
        if self.progress is not None:
            self.train_progress_bar_id = self.progress.add_task(
                self._get_train_description(trainer.current_epoch),
                total=self._pace.total,
                completed=trainer.global_step,
                pace=self._pace,
            )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The same bar goes on."""
        if self.progress is not None and self.train_progress_bar_id is not None:
            description = self._get_train_description(trainer.current_epoch)
            self.progress.update(self.train_progress_bar_id, description=description)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Advance by optimizer steps, not by the micro-batches of which they are made."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            self._pace.step(trainer.global_step)
            self._update(self.train_progress_bar_id, trainer.global_step)
            self._update_metrics(trainer, pl_module)

    def on_measurement(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        measurements: Sequence[Measurement],
        numbers: Mapping[str, float],
    ) -> None:
        """Print every measurement above the bar."""
        if self.progress is not None and self.is_enabled:
            line = measurement_line(trainer.global_step, self._pace.total, measurements, numbers)
            self.progress.console.print(line, markup=False, highlight=False)

    def _get_train_description(self, current_epoch: int) -> str:
        """Without the number of epochs, which is -2 for a run that is limited by steps."""
        return f"{f'epoch {current_epoch + 1}':{len(self.validation_description)}}"
