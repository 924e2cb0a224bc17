"""What a run says where no terminal redraws a bar: a job of SLURM, ``nohup``, a pipe into a file.

One line of text for a logged step, and one for every measurement and validation, each written at once:

    step 120/500: loss 2.314, rate 2.40e-04, 12,345 tokens/s, 3.5 min left, ends 14:32
    step 200/500: learned new_people exact 0.8400 (+0.8267±.010); forgotten old_people exact 0.9100 (+0.0900±.007); ...

Signs and units are those of the table at the end. Lines of steps come at most every 10 seconds, and more rarely the
longer the run has lasted, so that a log of days can be read.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from lit_consistency.callbacks.listeners import MeasurementListener
from lit_consistency.callbacks.pace import Pace, time_of_day
from lit_consistency.callbacks.summary_table import Measurement, cells
from lit_consistency.callbacks.throughput import Throughput
from lit_consistency.drawing.numbers import duration
from lit_consistency.module import language_model

AT_MOST_EVERY = 10.0
"""Seconds between two lines of steps at the beginning of a run."""
LONG_RUN = (200, 60.0)
"""Later a two-hundredth of the time so far, at most a minute: an hour has some 250 lines, a day 1,600."""


def print_line(line: str) -> None:
    """Print a line that a file shows at once too."""
    print(line, flush=True)


class LogLines(ProgressBar, MeasurementListener):
    """Lines of text in place of a progress bar, on the first rank.

    Args:
        say: takes one line.
        clock: seconds since 1970.
    """

    reads_reports = True

    def __init__(self, say: Callable[[str], None] = print_line, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.say = say
        self._clock = clock
        self._enabled = True
        self._pace = Pace(0, clock)
        self._said = -math.inf

    def disable(self) -> None:
        """Say nothing; Lightning asks for this on the other ranks."""
        self._enabled = False

    def enable(self) -> None:
        """Go on saying."""
        self._enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The schedule knows how long the run is."""
        self._pace = Pace(language_model(pl_module).total_steps(), self._clock)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Say a step that is logged, if the last line is old enough."""
        if not self._enabled or (batch_idx + 1) % trainer.accumulate_grad_batches != 0:
            return
        step, total = trainer.global_step, self._pace.total
        self._pace.step(step)
        if (step % trainer.log_every_n_steps == 0 and self._is_due()) or step == total:  # type: ignore[attr-defined]
            module = language_model(pl_module)
            speeds = [c.latest for c in trainer.callbacks if isinstance(c, Throughput)]  # type: ignore[attr-defined]
            speed = speeds[0].get("speed/tokens_per_second") if speeds else None
            self.say(step_line(self._pace, step, module.step_loss, module.used_rates, speed))
            self._said = self._clock()

    def _is_due(self) -> bool:
        now, (part, most) = self._clock(), LONG_RUN
        return now - self._said >= max(AT_MOST_EVERY, min((now - self._pace.began) / part, most))

    def on_measurement(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        measurements: Sequence[Measurement],
        numbers: Mapping[str, float],
    ) -> None:
        """Say every measurement."""
        if self._enabled:
            self.say(measurement_line(trainer.global_step, self._pace.total, measurements, numbers))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say the loss of Lightning's validation."""
        loss = trainer.callback_metrics.get("val/loss")
        if self._enabled and trainer.state.fn == "fit" and loss is not None:
            self.say(f"step {trainer.global_step}/{self._pace.total}: val/loss {float(loss):.4g} nats per token")


def step_line(
    pace: Pace, step: int, loss: float | None, rates: Mapping[str, float], tokens_per_second: float | None
) -> str:
    """A logged step; what is not known yet is left out."""
    parts = [] if loss is None else [f"loss {loss:.4g}"]
    if rates:
        parts.append(f"rate {rates_text(rates)}")
    if tokens_per_second is not None:
        parts.append(f"{tokens_per_second:,.0f} tokens/s")
    if step < pace.total:
        parts += time_left(pace)
    return f"step {step}/{pace.total}: {', '.join(parts)}"


def time_left(pace: Pace) -> list[str]:
    """``["3.5 min left", "ends 14:32"]``; empty as long as nothing is known."""
    end, left = pace.end, pace.seconds_left
    if end is None or left is None:
        return []
    return [f"{duration(left)} left", f"ends {time_of_day(end, pace.clock())}"]


def rates_text(rates: Mapping[str, float]) -> str:
    """One rate, or that of most roles and those of the others by name: ``3.00e-04, hidden 2.00e-02``."""
    most = Counter(rates.values()).most_common(1)[0][0]
    others = [f"{name.removeprefix('lr/')} {rate:.2e}" for name, rate in rates.items() if rate != most]
    return ", ".join([f"{most:.2e}", *others])


def measurement_line(step: int, total: int, measurements: Sequence[Measurement], numbers: Mapping[str, float]) -> str:
    """Every watched task with what it was learned or forgotten, as the table at the end has it; of the base, as it is.

    Args:
        step: at which was measured.
        total: steps of the run.
        measurements: of the tasks.
        numbers: all that was measured, of which the divergences from the base are taken.
    """
    parts = []
    for kind, word in (("learn", "learned"), ("retain", "forgotten")):
        texts = []
        for m in measurements:
            metric, base, now, change = cells(m)
            if m.kind == kind:
                texts.append(f"{m.name} {metric} {base}" if step == 0 else f"{m.name} {metric} {m.now:.4f} ({change})")
        if texts:
            parts.append(f"{'' if step == 0 else f'{word} '}{', '.join(texts)}")
    if step > 0:
        of_kind = {"kl_to_base": "on what is learned", "kl_to_base_retained": "on what is retained"}
        known = [f"{numbers[name]:.4g} nats {where}" for name, where in of_kind.items() if name in numbers]
        parts += [f"KL to the base {', '.join(known)}"] if known else []
    return f"step {step}/{total}{', the base' if step == 0 else ''}: {'; '.join(parts) or 'nothing is watched'}"
