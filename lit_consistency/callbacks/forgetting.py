"""What the run learns and what it forgets, against the base measured by the same code at step 0.

Every k steps: the watched tasks, the distance of the weights from the start, the share of coordinates ever moved, and
the KL divergences from the base, as long as this keeps to its share of the time (time_budget.py). A run with this
callback equals a run without it bit for bit. ``validate`` measures the same tasks of any model, without training.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor

from lit_consistency.callbacks.budget import ForgettingBudget, Reaction
from lit_consistency.callbacks.changes import CHANGES, changes_since, items_as_tensors, items_of_tensors, tags
from lit_consistency.callbacks.divergence import Divergence, at_start
from lit_consistency.callbacks.interpolation import check_between
from lit_consistency.callbacks.known_bases import KnownBases
from lit_consistency.callbacks.listeners import tell_listeners
from lit_consistency.callbacks.monitors import check_monitors
from lit_consistency.callbacks.retained import RetainedSets
from lit_consistency.callbacks.summary_table import Measurement, metric_beside, results_table, tasks_table
from lit_consistency.callbacks.time_budget import TimeBudget
from lit_consistency.callbacks.weight_change import WeightChange
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.optimizers import roles
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.results import write_result
from lit_consistency.stats.intervals import Estimate, Ratio
from lit_consistency.tasks.measured import Measured
from lit_consistency.tasks.summarize import summarize_result
from lit_consistency.tasks.task import keys_of
from lit_consistency.tasks.watched import PreparedTask, WatchedTask, held_out_task


class Forgetting(Callback):
    """Watch learning and forgetting during ``fit``.

    Args:
        learn: tasks that the run is to learn, by name; better is learned. When not given, the held-out part of the
            training data, as ``validation``.
        retain: tasks that the base can do, by name; worse is forgotten. When not given, a run that starts from a base
            watches the package's suite: text, grammar, facts, arithmetic, JSON, orders, and ``own_samples``, texts that
            the base writes at the start, on which KL(base || model) is measured. ``{}`` watches nothing;
            ``[suite, NAME]`` adds a task to the suite, ``[suite/pairs, suite/own_samples]`` takes some of its sets.
        every_n_steps: optimizer steps between measurements; 0 measures at the start and at the end only.
        batch_tokens: padded tokens in one forward of an evaluation.
        kl_positions: right answers' positions, of the learned tasks and of the retained ones each, at which
            KL(base || model) and KL(model || base) are taken, spread over all items; null: all that fit into memory
            (4 bytes per position and token of the vocabulary, half a GiB for either kind); 0 switches them off.
        time_budget: share of the wall time since the start, in [0, 1], that measurements may take; one that would
            take more is skipped. The first and the last are always made; 1 skips none.
        interpolate: shares a, in [-2, 2] but not 0 and 1: when training has ended, the models start + a (end - start)
            are measured as the end is (WiSE-FT, as ``export --interpolate`` writes them), into ``interpolated`` of
            run.json, and logged as ``interpolated/a/NAME``; 1.5 goes as far again beyond the end.
        budget: bounds on what may be forgotten, as ``blimp<=0.02, own_*<=0.05``, in the unit of ``forget/NAME``. One is
            breached when the whole 95% interval of the change lies beyond it, not by noise.
        on_breach: ``stop`` (when not given), ``warn``, or ``rollback``: stop; ``model/`` is the last within the budget.
    """

    def __init__(
        self,
        learn: dict[str, WatchedTask] | None = None,
        retain: dict[str, WatchedTask] | None = None,
        every_n_steps: int = 0,
        batch_tokens: int = 8192,
        kl_positions: int | None = None,
        time_budget: float = 0.05,
        interpolate: list[float] | None = None,
        budget: str | list[str] | None = None,
        on_breach: Reaction | None = None,
    ) -> None:
        self.bounds = ForgettingBudget(budget, on_breach, every_n_steps)
        check_between(interpolate or [])
        for key, value, least in (
            ("every_n_steps", every_n_steps, 0),
            ("batch_tokens", batch_tokens, 1),
            ("kl_positions", kl_positions, 0),
        ):
            if value is not None and value < least:
                raise ValueError(f"{key} = {value}: expected at least {least}")
        self.learn = learn
        self.retained = RetainedSets(learn or {}, retain)
        self.every_n_steps = every_n_steps
        self.batch_tokens = batch_tokens
        self.kl_positions = kl_positions
        self.base: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.measured_at = -1
        self.budget = TimeBudget(time_budget)
        self.interpolate = interpolate or []
        self.interpolated: dict[str, dict[str, float]] = {}
        self._skipped_at = -1
        self.known: KnownBases | None = None  # RunRecord sets it
        self.changes: dict[str, Estimate] = {}
        self._tasks: dict[str, PreparedTask] = {}
        self._measured: dict[str, Measured] = {}
        self._base_items: dict[str, dict[str, Ratio]] = {}
        self._floors: dict[str, float] = {}
        self._change = WeightChange({})
        self._moved: dict[str, Tensor] = {}
        self._divergence: Divergence | None = None
        self._has_read_base = False

    @property
    def retain(self) -> dict[str, WatchedTask]:
        """The sets that are watched for forgetting, by name."""
        return self.retained.sets

    @property
    def keys(self) -> dict[str, tuple[str, ...]]:
        """``KIND/NAME`` of every task that is watched -> its metrics; known when training starts."""
        tasks = {key: tuple(task.task.metrics) for key, task in self._tasks.items()}
        return tasks | {f"retain/{name}": ("kl",) for name in self.retained.own}

    @property
    def evaluation_seconds(self) -> float:
        """What the measurements have taken so far."""
        return self.budget.seconds

    # -------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Ask the module to keep the weights of the start."""
        if stage == "fit":
            language_model(pl_module).keep_start = True

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read and encode the tasks, and let the base write: what is bad is found before anything is written."""
        module = language_model(pl_module)
        self._prepare(trainer, module)
        if trainer.ckpt_path is None:  # else the texts, or the weights that wrote them, are yet to be restored
            began = time.perf_counter()
            with evaluation_mode(module), trainer.precision_plugin.forward_context():
                self.retained.draw(module, **self._engine(module))
            self.budget.prepare(time.perf_counter() - began)
        self.bounds.check([key.removeprefix("retain/") for key in self.keys if key.startswith("retain/")])
        check_monitors(trainer, self.keys)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the base, unless this is the continuation of a run that has done so."""
        module = language_model(pl_module)
        self.budget.begin()
        self._recall_start(trainer, module)
        if not self.base:
            self._measure(trainer, module)
        else:  # a callback that watches them may ask before this part of the run has measured
            module.show_to_callbacks(self.latest)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measure every k optimizer steps, on all ranks or on none; micro-batches of one step decide once."""
        step = trainer.global_step
        if not self.every_n_steps or step % self.every_n_steps or step in (self.measured_at, self._skipped_at):
            return
        if trainer.strategy.broadcast(self.budget.allows_one_more()):
            self._measure(trainer, language_model(pl_module))
        else:
            self.budget.skip()
            self._skipped_at = step

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure once more and print the table; a run that was interrupted by a signal only saves."""
        if getattr(trainer, "interrupted_by", None) is not None:
            return
        module = language_model(pl_module)
        if trainer.global_step != self.measured_at:
            if trainer.global_step == self._skipped_at:
                self.budget.make_up()
            self._measure(trainer, module)
        elif not self._measured:  # of a run that was killed at its end the numbers are known, the items are not
            self._read_base(trainer, module)
            _, self._measured = self._ask(trainer, module)
        self._measure_between(trainer, module)
        if line := self.budget.summary_line():
            rank_zero_info(line)
        rank_zero_only(results_table)(self.measurements(), self.latest)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of ``validate``: read and encode the tasks."""
        if trainer.state.fn == TrainerFn.VALIDATING:
            self._prepare(trainer, language_model(pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of ``validate``: measure the tasks of the model as it is, and print them."""
        if trainer.state.fn != TrainerFn.VALIDATING or not self._tasks:
            return
        module = language_model(pl_module)
        numbers, self._measured = self._ask(trainer, module)
        self.base, self.latest = numbers, numbers
        module.log_now(numbers)
        rank_zero_only(tasks_table)(self.measurements())

    # -------------------- measuring

    def _prepare(self, trainer: Trainer, module: LitLanguageModel) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        block_size = module.config.block_size
        tokenizer, has_base = data.tokenizer, module.checkpoint_dir is not None
        learned = {name: watched.prepare(name, tokenizer, block_size) for name, watched in (self.learn or {}).items()}
        in_fit = trainer.state.fn == TrainerFn.FITTING
        retained = self.retained.prepare(tokenizer, block_size, has_base=has_base, in_fit=in_fit)
        groups = {"learn": learned, "retain": retained}
        self._tasks = {f"{kind}/{name}": task for kind, tasks in groups.items() for name, task in tasks.items()}
        if self.learn is None and data.validation is not None:
            self._tasks = {"learn/validation": held_out_task(data, data.tokenizer, block_size), **self._tasks}

    def _recall_start(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """What is compared with the start; its texts, where they are in no checkpoint, are of the start's weights."""
        self._change = WeightChange(roles(module.gpt))
        self._change.load_state_dict(self._moved)
        began = time.perf_counter()
        if self.kl_positions != 0:
            self._divergence = Divergence(
                self.retained.compared(self._tasks),
                n_vocab=module.config.padded_vocab_size,
                n_positions=self.kl_positions,
                batch_tokens=self.batch_tokens,
                device=module.device,
            )
        if self.retained.lacks_texts:
            with at_start(trainer, module):
                self.retained.draw(module, **self._engine(module))
        own = self.retained.own_task(n_vocab=module.config.padded_vocab_size, **self._engine(module))
        self._tasks |= {f"retain/{name}": task for name, task in own.items()}
        self.budget.prepare(time.perf_counter() - began)

    def _read_base(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """What the start predicts, once: it is first needed when another model is compared with it."""
        if self._has_read_base or trainer.global_step == 0:
            return
        began = time.perf_counter()
        with at_start(trainer, module):
            if self._divergence is not None:
                self._divergence.read_base(module)
            self.retained.read_base(module)
        self._has_read_base = True
        self.budget.prepare(time.perf_counter() - began)

    def _engine(self, module: LitLanguageModel) -> dict[str, Any]:
        return {"batch_tokens": self.batch_tokens, "device": module.device, "block_size": module.config.block_size}

    def _ask(self, trainer: Trainer, module: LitLanguageModel) -> tuple[dict[str, float], dict[str, Measured]]:
        """Every task's numbers with their errors: ``KIND/NAME`` is that by which it is judged, see ``_tags``."""
        numbers: dict[str, float] = {}
        answers: dict[str, Measured] = {}
        known = self.known.of(trainer, module, self.batch_tokens) if self.known and not self.base else None
        with evaluation_mode(module), trainer.precision_plugin.forward_context():
            for key, task in self._tasks.items():
                measured = task.measure(module, batch_tokens=self.batch_tokens, device=module.device, known=known)
                answers[key] = measured
                self._floors[key] = measured.floor(task.metric)
                for metric, estimate in measured.estimates().items():
                    value, error = tags(key, metric, task.metric)
                    numbers |= {value: estimate.value, error: estimate.stderr}
        return numbers, answers

    def _numbers(
        self, trainer: Trainer, module: LitLanguageModel, change: WeightChange
    ) -> tuple[dict[str, float], dict[str, Measured]]:
        """All numbers of the model as it is now, but those that compare it with the base; and its answers."""
        numbers, answers = self._ask(trainer, module)
        with evaluation_mode(module), trainer.precision_plugin.forward_context():
            if self._divergence is not None:
                numbers |= self._divergence.numbers(module if self._has_read_base else None)
            numbers |= change.measure(module.method.changes(module.gpt, module.start))
        return numbers, answers

    def _against_base(
        self, numbers: dict[str, float], answers: Mapping[str, Measured]
    ) -> tuple[dict[str, float], dict[str, Estimate]]:
        """With how much better or worse every task is than at the base, and the shares retained; and these changes."""
        changes: dict[str, Estimate] = {}
        for key, task in self._tasks.items():
            of_task, judged = changes_since(key, self._base_items.get(key, {}), answers[key], task.metric)
            numbers = numbers | of_task
            changes |= {key: judged} if judged is not None else {}
        shares = {m.name: m.share for m in self._compare(numbers) if m.kind == "retain" and m.share is not None}
        return numbers | {f"retained/{name}": share for name, share in shares.items()}, changes

    def _measure(self, trainer: Trainer, module: LitLanguageModel) -> None:
        module.reports.settle()
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # what training has still to do there is not our time
        self._read_base(trainer, module)
        began = time.perf_counter()
        numbers, self._measured = self._numbers(trainer, module, self._change)
        if not self.base:
            self.base = dict(numbers)
            self._base_items = {key: measured.ratios for key, measured in self._measured.items()}
        self.latest, self.changes = self._against_base(numbers, self._measured)
        self.latest, self.measured_at = self.latest | self.bounds.used(self.changes), trainer.global_step
        module.log_now(self.latest)
        tell_listeners(trainer, module, self.measurements(), self.latest)
        self.budget.spend(time.perf_counter() - began + (self.known.take_saved() if self.known else 0.0))
        module.log_now(self.budget.numbers())  # by themselves: no other run, and no other rank, has the same

    def _measure_between(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """Measure the models between start and end, each with a change of its own; the end is there again after it."""
        if not self.interpolate:
            return
        began = time.perf_counter()
        for share in self.interpolate:
            with module.method.between(module.gpt, module.start, share):
                measured = self._numbers(trainer, module, WeightChange(roles(module.gpt)))
            self.interpolated[f"{share:g}"] = numbers = self._against_base(*measured)[0]
            module.log_now({f"interpolated/{share:g}/{key}": value for key, value in numbers.items()})
        self.budget.prepare(time.perf_counter() - began)

    def _compare(self, numbers: Mapping[str, float]) -> list[Measurement]:
        return [
            self._measurement(
                key, task.metric, numbers, metric_beside(task.metric, task.task.metrics, self.base[key], numbers[key])
            )
            for key, task in self._tasks.items()
            if key in self.base and key in numbers
        ]

    def _measurement(
        self, key: str, metric: str, numbers: Mapping[str, float], beside: str | None = None
    ) -> Measurement:
        """A task's base and latest value by one metric, and below it by another."""
        kind, name = key.split("/", 1)
        judged_by = self._tasks[key].metric
        value, error = tags(key, metric, judged_by)
        change = tags(f"{CHANGES[kind]}/{name}", metric, judged_by)[1]
        return Measurement(
            kind,
            name,
            metric,
            self.base[value],
            numbers[value],
            self._floors.get(key, 0.0) if metric == judged_by else 0.0,
            self.base.get(error),
            numbers.get(error),
            numbers.get(change),
            self._measurement(key, beside, numbers) if beside else None,
            len(self._measured[key].records) if key in self._measured else None,
        )

    def measurements(self) -> list[Measurement]:
        """Base and latest value of every watched task."""
        return self._compare(self.latest)

    def judges(self) -> dict[str, dict[str, Any]]:
        """``KIND/NAME`` of every measured task -> the metric that judges it, and the number of its items."""
        return {
            key: {"metric": task.metric, "items": len(self._measured[key].records)}
            for key, task in self._tasks.items()
            if key in self._measured
        }

    def write_items(self, folder: Path) -> None:
        """Write the latest measurement as ``evaluate`` writes its results, for ``evaluate --compare``.

        Args:
            folder: gets ``results/`` and ``items/``.
        """
        for key, measured in self._measured.items():
            task = self._tasks[key]
            mark = fingerprint_of({"task": keys_of(task.task), "step": self.measured_at})
            result = summarize_result(task.encoded, measured, task.findings, mark, f"step {self.measured_at}")
            write_result(folder, replace(result, task=key.split("/", 1)[1]), measured.records)

    # -------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The base's numbers and items, and what has moved: a resumed run compares with the same base."""
        return {
            "base": self.base,
            "base_items": items_as_tensors(self._base_items),
            "latest": self.latest,
            "measured_at": self.measured_at,
            "moved": self._change.state_dict(),
            "skipped_at": self._skipped_at,
            "budget": self.budget.state_dict(),
            "own_samples": self.retained.texts,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the base of the earlier part of the run."""
        self.base, self.latest = state_dict["base"], state_dict["latest"]
        self._base_items = items_of_tensors(state_dict.get("base_items", {}))
        self.measured_at, self._moved = state_dict["measured_at"], state_dict["moved"]
        self._skipped_at = state_dict.get("skipped_at", -1)
        self.budget.load_state_dict(state_dict.get("budget", {}))
        self.retained.texts = state_dict.get("own_samples")
