"""Learning against forgetting of a run, as a picture in TensorBoard: its own way from the base, with intervals.

A picture for every retained set: how much was learned to the right, how much was forgotten upwards, a point for each
measurement, with intervals of 95%. It is drawn from metrics.jsonl, so that a resumed run shows its whole way. Drawing
takes a hundredth of the time at most while the run lasts, and the last picture is drawn when all else is written.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from lit_consistency.callbacks.listeners import MeasurementListener
from lit_consistency.callbacks.summary_table import Measurement
from lit_consistency.callbacks.time_budget import TimeBudget
from lit_consistency.drawing import png
from lit_consistency.drawing.charts.path import Panel, Stop, draw_paths
from lit_consistency.drawing.figure import WIDE
from lit_consistency.loggers.tensorboard import TensorBoardRunLogger
from lit_consistency.records.run_folder import RunFolder

TAG = "learning against forgetting"
SHARE = 0.01
"""Of the run's time that drawing takes before its end."""
NORMAL = 1.96
"""Standard errors in half an interval of 95%."""


class FrontPicture(Callback, MeasurementListener):
    """Draw the run's way as it goes, and at its end."""

    def __init__(self) -> None:
        self._metrics: dict[str, dict[str, str]] = {}
        self._budget = TimeBudget(SHARE)
        self._drawn_at = -1
        self._can_draw = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The time of the run begins."""
        self._budget.begin()

    def on_measurement(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        measurements: Sequence[Measurement],
        numbers: Mapping[str, float],
    ) -> None:
        """Note what the sets are measured by; draw, unless that would take too much of the time."""
        self._metrics = {kind: {m.name: m.metric for m in measurements if m.kind == kind} for kind in KINDS}
        if trainer.global_step > 0 and self._budget.allows_one_more():
            self._draw(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The whole way."""
        self._draw(trainer)

    def _draw(self, trainer: Trainer) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, TensorBoardRunLogger)]
        if not (self._can_draw and trainer.is_global_zero and loggers and all(self._metrics.get(k) for k in KINDS)):
            return
        began = time.perf_counter()
        way = way_of(RunFolder(Path(trainer.default_root_dir)).read_metrics())
        last = max(way, default=0)
        if len(way) < 2 or last == self._drawn_at:
            return
        self._drawn_at = last
        if not png.can_draw():
            self._can_draw = False  # said once a run
            rank_zero_info(f"no picture of {TAG}: matplotlib is absent; pip install 'lit_consistency[study]'")
            return
        picture = front_png(panels_of(way, self._metrics["learn"], self._metrics["retain"]), trainer.default_root_dir)
        for logger in loggers:
            logger.log_picture(TAG, picture, last)
        self._budget.spend(time.perf_counter() - began)


KINDS = {"learn": "learned/", "retain": "forget/"}
"""Kind of a watched set -> beginning of the names of how it has changed."""


def way_of(lines: Iterable[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
    """Step -> changes since the base and their standard errors, of the lines of metrics.jsonl.

    Of a step that was measured twice, as after a resume, the later one holds; what is no number is NaN.
    """
    starts = tuple(KINDS.values())
    way: dict[int, dict[str, float]] = {}
    for line in lines:
        changes = {key: math.nan if v is None else float(v) for key, v in line.items() if key.startswith(starts)}
        if changes and line["step"] is not None:
            way[int(line["step"])] = changes
    return dict(sorted(way.items()))


def panels_of(
    way: Mapping[int, Mapping[str, float]], learned: Mapping[str, str], retained: Mapping[str, str]
) -> list[Panel]:
    """A panel for each retained set and each metric of what is learned: only what has one unit shares an axis.

    Args:
        way: of ``way_of``.
        learned: name of a set -> the metric that judges it.
        retained: likewise.
    """
    panels, last = [], max(way, default=0)
    for metric in dict.fromkeys(learned.values()):
        alike = [name for name, of in learned.items() if of == metric]
        title = f"{alike[0]}, better by ({metric})" if len(alike) == 1 else f"better by ({metric})"
        for name, of in retained.items():
            paths = {
                own: [_stop(f"{'step ' * (step == last)}{step}", way[step], own, name) for step in way] for own in alike
            }
            panels.append(Panel(name, title, f"worse by ({of})", paths))
    return panels


def _stop(label: str, numbers: Mapping[str, float], learned: str, retained: str) -> Stop:
    x, y = f"{KINDS['learn']}{learned}", f"{KINDS['retain']}{retained}"
    values = [numbers.get(key, math.nan) for key in (x, y)]
    reaches = [NORMAL * numbers.get(f"{key}.stderr", math.nan) for key in (x, y)]
    return Stop(label, *values, *reaches)


def front_png(panels: Sequence[Panel], run: str) -> bytes:
    """The picture of all panels as a file.

    Args:
        panels: of ``panels_of``.
        run: its folder, whose name stands in the title.
    """
    columns = 3 if len(panels) > 4 else min(2, len(panels))
    canvas = draw_paths(panels, WIDE if columns > 1 else WIDE / 2, columns)
    file = BytesIO()
    title = f"{Path(run).name}: {TAG}"
    png.write_png(canvas, title, file)
    return file.getvalue()
