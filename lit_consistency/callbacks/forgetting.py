"""What the run learns and what it forgets, against the base measured by the same code at step 0.

Every k steps: the watched sets, the distance of the weights from the start, the share of coordinates ever moved, and
the KL divergences from the base on the new task, as long as this keeps to its share of the time (time_budget.py). A
run with this callback equals a run without it bit for bit.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from torch import Tensor

from lit_consistency.callbacks.summary_table import Measurement, results_table
from lit_consistency.callbacks.time_budget import TimeBudget
from lit_consistency.callbacks.weight_change import WeightChange
from lit_consistency.distributed.fsdp import weights_of
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.kl import forward_kl, log_probabilities, reverse_kl
from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.optimizers import roles
from lit_consistency.tasks.prepared import prepare
from lit_consistency.tasks.watched import Prepared, RetainData, held_out_set


class Forgetting(Callback):
    """Watch learning and forgetting during ``fit``.

    Args:
        learn: sets of the new task; better is learned. When not given, the held-out rows of the training data.
        retain: sets of what the base can do; worse is forgotten.
        every_n_steps: optimizer steps between measurements; 0 measures at the start and at the end only.
        batch_tokens: padded tokens in one forward of an evaluation.
        kl_positions: supervised positions of the learning sets at which KL(base || model) and KL(model || base) are
            taken; 0 switches them off. Memory: 4 bytes per position and token of the vocabulary.
        time_budget: share of the wall time since the start, in [0, 1], that measurements may take; one that would
            take more is skipped. The first and the last are always made; 1 skips none.
    """

    def __init__(
        self,
        learn: RetainData | None = None,
        retain: RetainData | None = None,
        every_n_steps: int = 0,
        batch_tokens: int = 8192,
        kl_positions: int = 256,
        time_budget: float = 0.05,
    ) -> None:
        for key, value, least in (
            ("every_n_steps", every_n_steps, 0),
            ("batch_tokens", batch_tokens, 1),
            ("kl_positions", kl_positions, 0),
        ):
            if value < least:
                raise ValueError(f"{key} = {value}: expected at least {least}")
        self.learn = learn
        self.retain = retain
        self.every_n_steps = every_n_steps
        self.batch_tokens = batch_tokens
        self.kl_positions = kl_positions
        self.base: dict[str, float] = {}
        self.latest: dict[str, float] = {}
        self.measured_at = -1
        self.budget = TimeBudget(time_budget)
        self._skipped_at = -1
        self._sets: dict[str, Prepared] = {}
        self._change = WeightChange({})
        self._moved: dict[str, Tensor] = {}
        self._base_log_probs: Tensor | None = None

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
        """Tokenize the sets: a bad row is found before anything is written."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        context = language_model(pl_module).config.block_size
        held_out = {"validation": held_out_set(data)} if data.validation is not None else {}
        learn = self.learn.sets if self.learn else held_out
        retain = self.retain.sets if self.retain else {}
        self._sets = {
            f"{kind}/{name}": prepare(watched, data.tokenizer, data.block_size, context)
            for kind, sets in (("learn", learn), ("retain", retain))
            for name, watched in sets.items()
        }

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the base, unless this is the continuation of a run that has done so."""
        module = language_model(pl_module)
        self.budget.begin()
        self._recall_start(trainer, module)
        if not self.base:
            self._measure(trainer, module)

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
        if trainer.global_step != self.measured_at:
            if trainer.global_step == self._skipped_at:
                self.budget.make_up()
            self._measure(trainer, language_model(pl_module))
        if told := self.budget.told():
            rank_zero_info(told)
        rank_zero_only(results_table)(self.measurements(), self.latest)

    # -------------------- measuring

    def _recall_start(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """What the start predicted; a resumed run computes it from the start's weights."""
        self._change = WeightChange(roles(module.gpt))
        self._change.load_state_dict(self._moved)
        if not self.kl_positions:
            return
        began = time.perf_counter()
        with evaluation_mode(module), trainer.precision_plugin.forward_context():
            if trainer.global_step == 0:
                self._base_log_probs = self._log_probs(module, module.device)
            else:
                with weights_of(module.gpt, module.start):
                    self._base_log_probs = self._log_probs(module, module.device)
        self.budget.prepare(time.perf_counter() - began)

    def _log_probs(self, forward: Any, device: torch.device) -> Tensor | None:
        items = [item for key, s in self._sets.items() if key.startswith("learn/") for item in s.items]
        if not self.kl_positions or not items:
            return None
        return log_probabilities(
            forward, items, n_positions=self.kl_positions, batch_tokens=self.batch_tokens, device=device
        )

    def _measure(self, trainer: Trainer, module: LitLanguageModel) -> None:
        if module.device.type == "cuda":
            torch.cuda.synchronize(module.device)  # what training has still to do there is not our time
        began = time.perf_counter()
        numbers: dict[str, float] = {}
        with evaluation_mode(module), trainer.precision_plugin.forward_context():
            for key, prepared in self._sets.items():
                found = prepared.measure(module, batch_tokens=self.batch_tokens, device=module.device)
                numbers[key] = found[prepared.metric]
                numbers |= {f"{key}.{name}": value for name, value in found.items() if name != prepared.metric}
            log_probs = self._log_probs(module, module.device)
            if log_probs is not None and self._base_log_probs is not None:
                numbers["kl_to_base"] = forward_kl(self._base_log_probs, log_probs)
                numbers["reverse_kl_to_base"] = reverse_kl(self._base_log_probs, log_probs)
            numbers |= self._change.measure(module.method.changes(module.gpt, module.start))
        self.base = self.base or dict(numbers)
        retained = [m for m in self._compare(numbers) if m.kind == "retain"]
        numbers |= {f"forget/{m.name}": m.worse for m in retained}
        numbers |= {f"retained/{m.name}": m.share for m in retained if m.share is not None}
        self.latest, self.measured_at = numbers, trainer.global_step
        module.log_now(numbers)
        self.budget.spend(time.perf_counter() - began)
        module.log_now(self.budget.numbers())  # by themselves: no other run, and no other rank, has the same

    def _compare(self, numbers: dict[str, float]) -> list[Measurement]:
        return [
            Measurement(kind, name, prepared.metric, self.base[key], numbers[key], prepared.chance)
            for key, prepared in self._sets.items()
            for kind, name in [key.split("/", 1)]
            if key in self.base
        ]

    def measurements(self) -> list[Measurement]:
        """Base and latest value of every watched set."""
        return self._compare(self.latest)

    # -------------------- state

    def state_dict(self) -> dict[str, Any]:
        """The base's numbers and what has moved: a resumed run compares with the same base."""
        return {
            "base": self.base,
            "latest": self.latest,
            "measured_at": self.measured_at,
            "moved": self._change.state_dict(),
            "skipped_at": self._skipped_at,
            "budget": self.budget.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue with the base of the earlier part of the run."""
        self.base, self.latest = state_dict["base"], state_dict["latest"]
        self.measured_at, self._moved = state_dict["measured_at"], state_dict["moved"]
        self._skipped_at = state_dict.get("skipped_at", -1)
        self.budget.load_state_dict(state_dict.get("budget", {}))
