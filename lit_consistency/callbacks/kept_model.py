"""The model of an earlier step, kept because it is the best within bounds, or the last that kept to the budget.

At a measurement that is better than those before, the model is written whole into ``<run>/kept/step-XXXXXXXX``, with
its items beside it. When the run has ended it becomes ``model/``, its numbers are those of the run, and the model of
the last step stands beside it in ``last/``. Which step is kept is in the checkpoints: a resumed run goes on with it, so
what any of them names stays on disk until they are gone.
Given up: the time and the room of a model at every improvement.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_consistency.callbacks.best_model import KEY, BestRule
from lit_consistency.callbacks.budget import Breach
from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.listeners import MeasurementListener
from lit_consistency.callbacks.run_model import find_callback, headlines, place_model
from lit_consistency.callbacks.run_record import RunRecord
from lit_consistency.callbacks.summary_table import results_table
from lit_consistency.checkpointing.io import checkpoints, step_of
from lit_consistency.methods import LoRA
from lit_consistency.module import language_model
from lit_consistency.stats.intervals import Estimate

DOES = {"warn": "the run goes on", "stop": "the run stops here", "rollback": "the run stops here"}
"""What follows from a breach, in words; a rollback names its step besides."""


class KeptModel(Callback, MeasurementListener):
    """Act on a breach of ``forgetting.budget``; keep the model of the step that ``checkpoint.best`` asks for."""

    def __init__(self) -> None:
        self.rule: BestRule | None = None
        self.step: int | None = None
        self.value = -math.inf
        self.numbers: dict[str, float] = {}
        self.changes: dict[str, Estimate] = {}
        self.breaches: dict[str, list[str]] = {}
        self.stopped_at: int | None = None
        self._judged_by: dict[str, Any] = {}

    # -------------------- before the run

    def begin(self, trainer: Trainer, rule: BestRule | None) -> None:
        """See what there is to keep; the tasks are prepared, and nothing has been written.

        Args:
            trainer: of the run.
            rule: of ``checkpoint.best``.

        Raises:
            ValueError: the rule speaks of what is not measured, or nothing could be kept, or no breach end the run.
        """
        self._forgetting, self._record = find_callback(trainer, Forgetting), find_callback(trainer, RunRecord)
        self._bounds, self.rule = self._forgetting.bounds, rule
        has_budget, every = bool(self._bounds.bounds), self._forgetting.every_n_steps
        self._rolls_back = has_budget and self._bounds.on_breach == "rollback"
        self._record.take_back = lambda: self._take_back(trainer)
        if has_budget and self._bounds.on_breach != "warn":
            for key, least in (("min_steps", trainer.min_steps), ("min_epochs", trainer.min_epochs)):
                if least:
                    raise ValueError(
                        f"trainer.{key} = {least} with forgetting.budget: a breach could not end the run; expected "
                        f"none, or forgetting.on_breach = warn"
                    )
        if rule is not None:
            rule.check(self._forgetting.keys)
            if self._rolls_back:
                raise ValueError(
                    f"{KEY} and forgetting.on_breach = rollback: both choose the model of an earlier step; expected "
                    f"on_breach: stop, and the bounds in {KEY}.while"
                )
        of_budget = "forgetting.on_breach = rollback" if self._rolls_back else "forgetting.budget"
        why = KEY if rule is not None else of_budget
        if self.keeps and not self._record.save_model:
            raise ValueError(f"{why} with run.save_model = false: expected a model to be saved")
        if self.keeps and not every:
            raise ValueError(
                f"{why} with forgetting.every_n_steps = 0: nothing is measured between start and end; expected at "
                "least 1"
            )
        total = language_model(trainer.lightning_module).total_steps()
        if (self.keeps or has_budget) and every >= total:
            rank_zero_warn(
                f"{why} with forgetting.every_n_steps = {every} in a run of {total} steps: nothing is measured between "
                "start and end"
            )
        # that which is kept, and that of the last step beside the run's
        self._record.n_kept = 2 if self.keeps else 0

    @property
    def keeps(self) -> bool:
        """Whether models of earlier steps are kept at all."""
        return self.rule is not None or self._rolls_back

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a resumed run: go on with what was kept and found at its checkpoint, by the bounds of now."""
        record, bounds = self._record, self._bounds
        if self._judged_by != bounds.record():
            self.breaches, self.stopped_at = {}, None
        elif self.stopped_at == trainer.global_step and not record.allow_changes:
            # it was killed between its last step and its end
            rank_zero_info(f"forgetting.budget has stopped this run at step {self.stopped_at}: only its end is left")
            trainer.should_stop = True
        else:
            self.stopped_at = None
        self._judged_by = bounds.record()
        if self.step is not None:
            self._recall(trainer)
        self._note()

    def _recall(self, trainer: Trainer) -> None:
        """Judge what was kept by the rule of now, which may be another; what is not there counts no more."""
        folder, is_kept = self._record.folder.kept_model(self.step or 0), self.keeps
        if not trainer.strategy.broadcast(folder.is_dir()):
            is_kept = False
            if self.keeps:
                rank_zero_warn(f"{folder} is not there: what is kept counts from step {trainer.global_step} on")
        elif self.rule is not None:
            self.value = self.rule.value(self.numbers, self.changes)
            is_kept = self.value > -math.inf
        elif self._rolls_back:
            is_kept = not self._bounds.breaches(self.changes)
        if not is_kept:
            self.step, self.value = None, -math.inf
        if trainer.is_global_zero:  # of steps that are made again
            _remove(path for path in self._record.folder.kept.glob("step-*") if step_of(path) > trainer.global_step)

    # -------------------- during the run

    def on_measurement(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Judge the model that has just been measured, on all ranks as the first one does."""
        if not (self._bounds.bounds or self.keeps):
            return
        forgetting, step = self._forgetting, trainer.global_step
        if step == 0 and (names := self._bounds.without_interval(forgetting.changes)):
            rank_zero_warn(
                f"forgetting.budget: {', '.join(names)}: the change has no interval (too few items, or a perplexity): "
                "its bound never acts"
            )
        found = self._bounds.breaches(forgetting.changes)
        value = self.rule.value(forgetting.latest, forgetting.changes) if self.rule else -math.inf
        # sums on two devices may differ in their last digit, on either side of a bound
        found, value = trainer.strategy.broadcast((found, value))
        if value > self.value or (self._rolls_back and not found):
            self._keep(trainer, value)
        if found:
            self._react(trainer, found)
        self._note()

    def _react(self, trainer: Trainer, found: list[Breach]) -> None:
        """Say what is over its bound, and stop the run unless it is only to be said."""
        reaction, step = self._bounds.on_breach, trainer.global_step
        does = DOES[reaction]
        if reaction == "rollback":
            does += " and takes back step " + str(self.step) if self.step is not None else "; no earlier step is kept"
        rank_zero_warn(f"step {step}: {'; '.join(map(str, found))}: {does}")
        self.breaches[str(step)] = [str(breach) for breach in found]
        if reaction != "warn":
            self.stopped_at = step
            trainer.should_stop = True

    def _keep(self, trainer: Trainer, value: float) -> None:
        """Write the model of this step with its items, then remove what no checkpoint goes on with."""
        record, forgetting = self._record, self._forgetting
        module, folder = language_model(trainer.lightning_module), record.folder.kept_model(trainer.global_step)
        if record.save_model != "adapters":
            record.write_model(trainer, module, folder / "model", at_end=False, overwrite=True)
        if isinstance(module.method, LoRA):
            record.write_model(trainer, module, folder / "adapters", at_end=False, overwrite=True, alone=True)
        self.step, self.value = trainer.global_step, value
        self.numbers, self.changes = dict(forgetting.latest), dict(forgetting.changes)
        if trainer.is_global_zero:
            forgetting.write_items(folder / "measured")
            self._prune(folder)

    def _prune(self, newest: Path) -> None:
        """A checkpoint goes on with the last that was kept before it, or at its step; what none goes on with goes."""
        kept = {step_of(path): path for path in newest.parent.glob("step-*")}
        needed = {newest}
        for step in map(step_of, checkpoints(self._record.folder.checkpoints)):
            for before in ([k for k in kept if k < step], [k for k in kept if k <= step]):
                needed |= {kept[max(before)]} if before else set()
        _remove(path for path in kept.values() if path not in needed)

    def _note(self) -> None:
        """What run.json says of the budget and of the step that is kept."""
        record = self._record.record
        if self._bounds.bounds:
            stopped = {} if self.stopped_at is None else {"stopped_at": self.stopped_at}
            record["budget"] = {**self._bounds.record(), "breaches": self.breaches, **stopped}
        if self.keeps:
            record["kept_model"] = {"step": self.step, "numbers": headlines(self.numbers)}

    # -------------------- the end

    def _take_back(self, trainer: Trainer) -> bool:
        """Make the model that is kept the run's, with its numbers, and write the last beside it; a collective call.

        Returns:
            Whether it has; else the model of the last step is the run's.
        """
        record, forgetting, folder = self._record, self._forgetting, self._record.folder
        is_wanted = self.rule is not None or (self._rolls_back and self.stopped_at is not None)
        if not is_wanted or self.step in (None, trainer.global_step):
            if trainer.is_global_zero:  # of an end that this run has had before
                _remove([folder.last, folder.last_step_measured, *([] if self.keeps else [folder.kept])])
            return False
        rank_zero_info(f"model/ is that of step {self.step}, last/ that of step {trainer.global_step}")
        only = record.save_model == "adapters"
        module = language_model(trainer.lightning_module)
        record.write_model(trainer, module, folder.last, at_end=True, overwrite=True, alone=only)
        record.record["last_metrics"], forgetting.latest = forgetting.latest, dict(self.numbers)
        if trainer.is_global_zero:
            places = {"model": record.model_dir, "adapters": record.adapters_dir, "measured": folder.last_measured}
            place_model(folder.kept_model(self.step or 0), places)
        rank_zero_only(results_table)(forgetting.measurements(), forgetting.latest)
        trainer.strategy.barrier("the model of an earlier step")
        return True

    # -------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The step that is kept, with its numbers, and what the budget has found."""
        return {
            "step": self.step,
            "numbers": self.numbers,
            "changes": {name: list(change) for name, change in self.changes.items()},
            "value": self.value,
            "breaches": self.breaches,
            "stopped_at": self.stopped_at,
            "judged_by": self._judged_by,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self.step, self.numbers, self.value = (state_dict[key] for key in ("step", "numbers", "value"))
        self.changes = {name: Estimate(*change) for name, change in state_dict.get("changes", {}).items()}
        self.breaches, self.stopped_at = state_dict.get("breaches", {}), state_dict.get("stopped_at")
        self._judged_by = state_dict.get("judged_by", {})


def _remove(paths: Any) -> None:
    for path in list(paths):
        shutil.rmtree(path, ignore_errors=True)
