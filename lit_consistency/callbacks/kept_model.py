"""The model of an earlier step, kept because it is the best within bounds, or the last that kept to the budget.

At a measurement that is better than those before, the model is written whole into ``<run>/kept/step-XXXXXXXX``, with
its items beside it; what it takes the place of goes then. When the run has ended it becomes ``model/``, and the model
of the last step stands beside it in ``last/``. The rule's state is in the checkpoints: a resumed run goes on with it.
Given up: the time and the room of a model at every improvement.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn

from lit_consistency.callbacks.budget import breaches, retained_bounds
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.listeners import MeasurementListener
from lit_consistency.callbacks.run_model import find_callback, headlines
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.stats.bounds import Bound, bound_names
from lit_consistency.stats.intervals import Estimate

KEY = "checkpoint.best"
EXPECTED = "expected {most: NUMBER, while: BOUNDS} or {least: NUMBER, while: BOUNDS}, as {most: learn/NAME}"


class BestRule:
    """Which step's model is the best.

    Args:
        rule: ``most`` or ``least`` -> a logged number, as ``learn/NAME`` or ``retain/NAME.nats_per_token``; and, if
            wanted, ``while`` -> bounds on what may be forgotten meanwhile, as ``forget/*<=0.05``.

    Raises:
        ValueError: the rule is another, or a bound cannot be read.
    """

    def __init__(self, rule: Mapping[str, Any]) -> None:
        chosen = [key for key in ("most", "least") if key in rule]
        if len(chosen) != 1 or not isinstance(rule[chosen[0]], str) or set(rule) - {*chosen, "while"}:
            raise ValueError(f"{KEY} = {dict(rule)}: {EXPECTED}")
        self.number: str = rule[chosen[0]]
        self.sign = 1.0 if chosen[0] == "most" else -1.0
        self.bounds: list[Bound] = retained_bounds(rule["while"], f"{KEY}.while") if rule.get("while") else []
        self._of_name: dict[str, list[Bound]] = {}

    def check(self, tasks: Mapping[str, Sequence[str]]) -> None:
        """See that what it asks for is measured.

        Args:
            tasks: ``KIND/NAME`` of every watched task -> its metrics.

        Raises:
            ValueError: no task gives the number, or a bound speaks of no retained set.
        """
        task = self.number.replace("learned/", "learn/").replace("forget/", "retain/")
        name, _, metric = task.partition(".")
        if name not in tasks or (metric and metric not in tasks[name]):
            numbers = [f"{key}{end}" for key, of in tasks.items() for end in ("", *(f".{m}" for m in of[1:]))]
            raise ValueError(f"{KEY}: {self.number}: no watched task gives it; expected one of {', '.join(numbers)}")
        retained = [key.removeprefix("retain/") for key in tasks if key.startswith("retain/")]
        self._of_name = bound_names(self.bounds, retained, f"{KEY}.while")

    def value(self, numbers: Mapping[str, float], changes: Mapping[str, Estimate]) -> float:
        """How good a model is, more is better; minus infinity where it breaches a bound or gives no number."""
        value = numbers.get(self.number, math.nan)
        if math.isnan(value) or breaches(self._of_name, changes):
            return -math.inf
        return self.sign * value


class KeptModel(Callback, MeasurementListener):
    """Act on a breach of ``forgetting.budget``; keep the model of the step that ``checkpoint.best`` asks for."""

    def __init__(self) -> None:
        self.rule: BestRule | None = None
        self.step: int | None = None
        self.value = -math.inf
        self.numbers: dict[str, float] = {}
        self._rolls_back = False

    def begin(self, trainer: Trainer, rule: BestRule | None) -> None:
        """See what there is to keep; the tasks are prepared, and nothing has been trained.

        Args:
            trainer: of the run.
            rule: of ``checkpoint.best``.

        Raises:
            ValueError: the rule speaks of what is not measured, or nothing could be kept.
        """
        forgetting, record = find_callback(trainer, Forgetting), find_callback(trainer, RunRecord)
        self.rule = rule
        self._rolls_back = bool(forgetting.bounds.bounds) and forgetting.bounds.on_breach == "rollback"
        if rule is not None:
            rule.check(forgetting.keys)
        if rule is not None and self._rolls_back:
            raise ValueError(
                f"{KEY} and forgetting.on_breach = rollback: both choose the model of an earlier step; expected "
                f"on_breach: stop, and the bounds in {KEY}.while"
            )
        if not self.keeps:
            return
        why = KEY if rule is not None else "forgetting.on_breach = rollback"
        if not record.save_model:
            raise ValueError(f"{why} with run.save_model = false: expected a model to be saved")
        if not forgetting.every_n_steps:
            raise ValueError(
                f"{why} with forgetting.every_n_steps = 0: nothing is measured between start and end; expected at "
                "least 1"
            )
        record.earlier = lambda: self._earlier(trainer, record)

    @property
    def keeps(self) -> bool:
        """Whether models of earlier steps are kept at all."""
        return self.rule is not None or self._rolls_back

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a resumed run: the model that was kept at its checkpoint is still there, or others count from here on."""
        if self.step is None:
            return
        record = find_callback(trainer, RunRecord)
        folder = record.folder.kept(self.step)
        if trainer.strategy.broadcast(folder.is_dir()):
            self._record(record)
        else:
            rank_zero_warn(f"{folder} is not there: what is kept counts from step {trainer.global_step} on")
            self.step, self.value = None, -math.inf

    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Judge the model that has just been measured."""
        forgetting, record = find_callback(trainer, Forgetting), find_callback(trainer, RunRecord)
        found, step = forgetting.bounds.breaches(forgetting.changes), trainer.global_step
        if self.rule is not None:
            value = self.rule.value(forgetting.latest, forgetting.changes)
            if value > self.value:
                self._keep(trainer, language_model(pl_module), value)
        elif self._rolls_back and not found:
            self._keep(trainer, language_model(pl_module), 0.0)
        if not found:
            return
        reaction = forgetting.bounds.on_breach
        does = {"warn": "goes on", "stop": "stops here", "rollback": f"stops, and takes back step {self.step}"}[
            reaction
        ]
        rank_zero_warn(f"step {step}: {'; '.join(map(str, found))}: the run {does}")
        known = record.record.setdefault("budget", {**forgetting.bounds.record(), "breaches": {}})
        known["breaches"][str(step)] = [str(breach) for breach in found]
        if reaction != "warn":
            known["stopped_at"] = step
            trainer.should_stop = True

    def _keep(self, trainer: Trainer, module: LitLanguageModel, value: float) -> None:
        """Write the model of this step, then forget the one before."""
        record, forgetting = find_callback(trainer, RunRecord), find_callback(trainer, Forgetting)
        folder = record.folder.kept(trainer.global_step)
        record.write_kept(trainer, module, folder)
        if trainer.is_global_zero:
            forgetting.write_items(folder / "measured")
            for other in folder.parent.iterdir():
                if other != folder:
                    shutil.rmtree(other, ignore_errors=True)
        self.step, self.value, self.numbers = trainer.global_step, value, headlines(forgetting.latest)
        self._record(record)

    def _record(self, record: RunRecord) -> None:
        record.record["kept_model"] = {"step": self.step, "numbers": self.numbers}

    def _earlier(self, trainer: Trainer, record: RunRecord) -> Path | None:
        """Where the model stands that becomes that of the run; None for the last one."""
        stops = self.rule is not None or "stopped_at" in record.record.get("budget", {})
        if self.step is None or self.step == trainer.global_step or not stops:
            return None
        rank_zero_info(
            f"the model of step {self.step} is the run's, that of step {trainer.global_step} stands beside it"
        )
        return record.folder.kept(self.step)

    def state_dict(self) -> dict[str, Any]:
        """The step that is kept, how good it was, and its numbers."""
        return {"step": self.step, "value": self.value, "numbers": self.numbers}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.step, self.value, self.numbers = (state_dict[key] for key in ("step", "value", "numbers"))
