"""The record of a run: what was run, on what, and what came out, in the run's folder (records/run_folder.py).

``run.json`` holds the base with its hash and the optimizer that pretrained it, data, versions, the table of parameters,
seeds and final metrics. The final model is written in LitGPT's format with its provenance, so that any result is the
next run's base.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn

from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.hyperparameters import end_session, hyperparameters, log_hyperparameters
from lit_consistency.callbacks.known_bases import KnownBases
from lit_consistency.callbacks.run_model import (
    bytes_of,
    check_saved,
    find_callback,
    headlines,
    litgpt_style,
    losses_now,
    provenance_now,
    train_loss_now,
    write_run_adapters,
    write_run_model,
)
from lit_consistency.callbacks.throughput import Throughput
from lit_consistency.distributed.optimizer_state import FILE
from lit_consistency.loggers.metrics_file import MetricsFile
from lit_consistency.loggers.tensorboard import TensorBoardRunLogger
from lit_consistency.methods import LoRA
from lit_consistency.model import weights_hash, write_model_files
from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.optimizers import format_table
from lit_consistency.records.atomic import check_free, remove_leftovers, replaced_folder, unwritable
from lit_consistency.records.differences import differences
from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.known_hashes import cache_folder
from lit_consistency.records.pretraining import mismatch_line
from lit_consistency.records.provenance import current_versions, read_provenance
from lit_consistency.records.run_folder import FINISHED, RunFolder
from lit_consistency.records.shipped import on_this_machine


class RunRecord(Callback):
    """Name and record the run, and save the final model.

    Args:
        name: of the run's folder; a time stamp when not given.
        root: folder of all runs.
        final_dir: where the final model goes, or the adapters where these alone are saved; ``<run>/model`` or
            ``<run>/adapters`` when not given.
        overwrite: replace ``final_dir`` if it exists. The old folder stays until the new one is complete.
        save_model: ``true`` saves the final model, and of a LoRA run what it has learned, a few MB, in
            ``<run>/adapters``; ``adapters`` saves only the latter, in the series too, merged where a model is asked
            for; ``false`` saves neither.
        save_optimizer_state: write the optimizer's state beside every model that is saved, twice as large as it with
            AdamW, so that a run with ``model.carry_optimizer_state`` can go on with it.
        reuse_base: take what the watched tasks measured of the same base from the user's cache, where an earlier run on
            one device has left it; the numbers and items are the same, bit for bit.
    """

    def __init__(
        self,
        name: str | None = None,
        root: Path = Path("checkpoints/runs"),
        final_dir: Path | None = None,
        overwrite: bool = False,
        save_model: bool | Literal["adapters"] = True,
        save_optimizer_state: bool = False,
        reuse_base: bool = True,
    ) -> None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError(f"name = {name!r}: expected letters, digits, '.', '_' and '-', at most 100, no path")
        # two runs of one second must not share a folder
        self.name = name or f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        self.root = on_this_machine("root", root)
        self.final_dir = on_this_machine("final_dir", final_dir) if final_dir is not None else None
        self.overwrite = overwrite
        self.save_model = save_model
        self.save_optimizer_state = save_optimizer_state
        self.reuse_base = reuse_base
        self.config_yaml = ""
        self.allow_changes = False
        self.resumed_from: str | None = None
        self.branched_from: dict[str, Any] | None = None  # of the command line: where this run has left another
        self.record: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        # what StepCheckpoint sets: steps at which the model is written too, and what comes before the final one
        self.series: list[int] = []
        self.before_model: Callable[[], None] = lambda: None
        # what KeptModel sets: models written besides, what it checks, and whether another than the last is the run's
        self.n_kept = 0
        self.before_start: Callable[[], None] = lambda: None
        self.take_back: Callable[[], bool] = lambda: False
        self.has_taken_back = False
        self.checkpoint_at_end = False
        self._resumed_step = -1
        self._metrics_bytes: int | None = None
        self._train_loss: float | None = None

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        return RunFolder(self.root / self.name)

    @property
    def directory(self) -> Path:
        """Path of the run's folder."""
        return self.folder.path

    def check_free(self, continues: bool) -> None:
        """ValueError when the folder holds another run, or ``final_dir`` something that is no model."""
        if self.final_dir is not None:
            own = continues and self._has_written(self.final_dir)
            if self.final_dir.exists() and not self.overwrite and not own:
                raise ValueError(
                    f"final_dir = {self.final_dir}: exists; name another, or --run.overwrite true replaces it"
                )
            check_free(self.final_dir, self.overwrite or own)
        if not continues and not self.folder.is_empty:
            raise ValueError(
                f"run.name = {self.name!r}: {self.directory} is not empty; choose another name, or continue that "
                "run with --ckpt_path auto"
            )

    def _has_written(self, folder: Path) -> bool:
        """Whether this run has written the model of a folder, and was killed before it could say so."""
        provenance = read_provenance(folder)
        return provenance is not None and provenance.run == self.name

    @property
    def model_dir(self) -> Path:
        """Where the final model goes."""
        return self.final_dir or self.folder.model

    @property
    def adapters_dir(self) -> Path:
        """Where the adapters of a LoRA run go."""
        return (self.final_dir if self.save_model == "adapters" else None) or self.folder.adapters

    # -------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Processes that started a second apart agree on the name of rank 0."""
        self.name = trainer.strategy.broadcast(self.name)
        if stage == "fit":
            check_saved(language_model(pl_module), self.save_model, self.save_optimizer_state)
            if self.reuse_base and trainer.world_size == 1 and (forgetting := find_callback(trainer, Forgetting)):
                forgetting.known = KnownBases(cache_folder() / "measured")

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is set up and nothing has been trained: write what is being run."""
        self.before_start()
        module = language_model(pl_module)
        self._probe(trainer, module)
        self.record = self._describe(trainer, module)
        if line := mismatch_line(self.record["base"], module.pretraining, self.record["optimizer"]):
            (rank_zero_warn if self.record["optimizer_mismatch"] else rank_zero_info)(line)
        self._write_start()
        if not self.resumed_from:
            _keep_until(trainer, MetricsFile, -1)  # numbers of a run of this name that died before its first checkpoint
        # before the first number is logged, which may be that of a measurement when training starts
        _keep_until(trainer, TensorBoardRunLogger, self._resumed_step)
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardRunLogger):
                logger.begin()
        share = f"trained: {self.record['trained_share']:.1%} of the model's parameters"
        rank_zero_info(f"run folder: {self.directory}\n{format_table(module.parameter_table)}\n{share}")

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The step is restored by now: drop the numbers of later steps."""
        if self.resumed_from:
            if self._train_loss is not None:  # of the record, should no further step be made
                trainer.callback_metrics["train/loss"] = torch.tensor(self._train_loss, dtype=torch.float64)
            _keep_until(trainer, MetricsFile, trainer.global_step, self._metrics_bytes)
        forgetting = find_callback(trainer, Forgetting)
        if forgetting and trainer.is_global_zero and forgetting.measured_at == trainer.global_step == 0:
            forgetting.write_items(self.folder.first_measured)
        chosen = hyperparameters(trainer, language_model(pl_module), self.record, self.config_yaml)
        log_hyperparameters(trainer, chosen, forgetting.latest if forgetting else {})

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Write the model of a step of the series; that of the last step waits for what is measured at the end."""
        if (batch_idx + 1) % trainer.accumulate_grad_batches != 0 or trainer.global_step not in self.series:
            return
        module = language_model(pl_module)
        if trainer.global_step < module.total_steps():
            self._save_series(trainer, module, at_end=False)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final model, then the final numbers."""
        interrupted, module = getattr(trainer, "interrupted_by", None), language_model(pl_module)
        if interrupted is None:
            self.before_model()
        if interrupted is None and trainer.global_step in self.series:
            self._save_series(trainer, module, at_end=True)
        if interrupted is None and self.save_model:
            self.has_taken_back = self.take_back()
            if not self.has_taken_back:
                self._save_final(trainer, module)
        self._finish(trainer, "interrupted" if interrupted else FINISHED, module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The record says how the run ended."""
        if self.directory.is_dir() and self.record:
            self.record["error"] = f"{type(exception).__name__}: {exception}"
            self._finish(trainer, "failed", language_model(pl_module))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds the configuration and the inputs that made it: a resume is compared, a base has a past."""
        checkpoint["config"] = self.config_yaml
        checkpoint["metrics_bytes"] = self.folder.metrics_bytes
        checkpoint["train_loss"] = train_loss_now(trainer, language_model(pl_module))
        checkpoint["inputs"] = self.inputs
        checkpoint["branch"] = self.branched_from
        module = language_model(pl_module)
        at_end = trainer.global_step >= module.total_steps()
        provenance = provenance_now(trainer, module, self.record, self.config_yaml, at_end)
        checkpoint["provenance"] = asdict(provenance)
        if trainer.is_global_zero and not self.folder.model_files.exists():
            data = trainer.datamodule  # type: ignore[attr-defined]
            with replaced_folder(self.folder.model_files) as folder:
                write_model_files(folder, module.config, data.tokenizer_folder, litgpt_style(data, module))

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue on other data or another base, before anything is written."""
        self._resumed_step = checkpoint["global_step"]
        self._metrics_bytes = checkpoint.get("metrics_bytes")
        self._train_loss = checkpoint.get("train_loss")
        if self.branched_from is not None and self.resumed_from is None:
            # what measuring has taken in the run that is left is no time of this one
            for state in checkpoint.get("callbacks", {}).values():
                state.pop("budget", None)
        changed = differences(checkpoint.get("inputs", {}), self._inputs(trainer, language_model(pl_module)))
        if trainer.training and changed and not self.allow_changes:
            lines = "\n".join(f"  {text}" for text in changed.values())
            raise ValueError(
                f"the run was begun on other inputs:\n{lines}\nput them back, or pass --allow_changes true"
            )

    # -------------------- content

    def _probe(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """ValueError, on all ranks, unless the end of the run can be written: found out before the first step."""
        problem = None
        if trainer.is_global_zero:
            model, trained = bytes_of(module.gpt)
            state = 2 * trained  # of AdamW, which has the largest
            targets = {}
            if self.save_model == "adapters":
                targets["run.final_dir"] = (self.adapters_dir, trained * (1 + self.n_kept))
            elif self.save_model:
                size = model + state * self.save_optimizer_state
                targets["run.final_dir"] = (self.model_dir, size * (1 + self.n_kept))
            if self.checkpoint_at_end:
                targets["checkpoint.at_end"] = (self.folder.checkpoints, model + state)
            problem = unwritable(targets)
        if problem := trainer.strategy.broadcast(problem):
            raise ValueError(problem)

    def _inputs(self, trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
        """What the run is made from; computed once, on the first rank, because it reads every file."""
        if not self.inputs and trainer.is_global_zero:
            base, data = module.checkpoint_dir, trainer.datamodule  # type: ignore[attr-defined]
            # as JSON gives it back: tuples are lists, keys are strings
            inputs: dict[str, Any] = {"data": data.fingerprint(), "base_hash": weights_hash(base) if base else None}
            if base and module.carry_optimizer_state:
                inputs["optimizer_state_hash"] = sha256(base / FILE)
            self.inputs = json.loads(json.dumps(inputs, default=str))
        self.inputs = trainer.strategy.broadcast(self.inputs)
        return self.inputs

    def _describe(self, trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
        data = trainer.datamodule  # type: ignore[attr-defined]
        inputs = self._inputs(trainer, module)
        before = self.folder.read_record() if self.resumed_from else {}
        return {
            "name": self.name,
            "status": "running",
            "started": before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            "command": " ".join(["python -m lit_consistency", *sys.argv[1:]]),
            "resumed_from": [*before.get("resumed_from", []), *([self.resumed_from] if self.resumed_from else [])],
            "branched_from": self.branched_from,
            "base": str(module.checkpoint_dir) if module.checkpoint_dir is not None else None,
            "base_hash": inputs["base_hash"],
            **module.pretraining.record(now=type(trainer.optimizers[0]).__name__),
            "carried_optimizer_state": inputs.get("optimizer_state_hash"),
            "optimizer_choices": getattr(trainer.optimizers[0], "record", dict)(),
            "method": module.method.name,
            "stage": type(data).__name__.removesuffix("Data").lower(),
            "model": module.config.name,
            "data": inputs["data"],
            "data_stats": data.stats(),
            "parameters": module.parameter_table,
            "trained_share": module.method.trained_share(module.gpt),
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "world_size": trainer.world_size,
            "precision": str(trainer.precision),
            "blocks": module.blocks.record(),
            "total_steps": module.total_steps(),
            "versions": current_versions(),
        }

    @rank_zero_only
    def _write_start(self) -> None:
        remove_leftovers(self.directory)
        remove_leftovers(self.model_dir.parent, self.model_dir.name)
        self.folder.set_damaged_aside()
        self.folder.write_config(self.config_yaml)
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        self.folder.write_record(self.record)

    def _finish(self, trainer: Trainer, status: str, module: LitLanguageModel) -> None:
        forgetting, throughput = find_callback(trainer, Forgetting), find_callback(trainer, Throughput)
        self.record |= {
            "status": status,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "steps": trainer.global_step,
            "empty_steps": trainer.datamodule.empty_steps,  # type: ignore[attr-defined]
            "base_metrics": forgetting.base if forgetting else {},
            "final_metrics": forgetting.latest if forgetting else {},
            "losses": losses_now(trainer),
            "judged_by": forgetting.judges() if forgetting else {},
            "interpolated": forgetting.interpolated if forgetting else {},
            "evaluation": forgetting.budget.record() if forgetting else {},
            "speed": throughput.latest if throughput else {},
        }
        if status == FINISHED and forgetting:
            if trainer.is_global_zero:
                of_run, of_step = self.folder.last_measured, self.folder.last_step_measured
                forgetting.write_items(of_step if self.has_taken_back else of_run)
            module.log_now({f"final/{name}": value for name, value in headlines(forgetting.latest).items()})
            end_session(trainer)
        self._write()  # last: a record that says finished stands for all the rest

    def _save_series(self, trainer: Trainer, module: LitLanguageModel, at_end: bool) -> None:
        """Write the model of this step into the series, unless an earlier part of this run has."""
        path = self.folder.series_model(trainer.global_step)
        if trainer.strategy.broadcast(path.exists()):
            return
        if throughput := find_callback(trainer, Throughput):
            throughput.begin_saving()
        self.write_model(trainer, module, path, at_end=at_end, overwrite=False, alone=self.save_model == "adapters")

    def _save_final(self, trainer: Trainer, module: LitLanguageModel) -> None:
        """Write the model, the adapters beside it, or these alone."""
        overwrite = self.overwrite or self.final_dir is None or self._has_written(self.final_dir)
        if self.save_model != "adapters":
            self.write_model(trainer, module, self.model_dir, at_end=True, overwrite=overwrite)
        if isinstance(module.method, LoRA):
            overwrite = overwrite or self.adapters_dir == self.folder.adapters
            self.write_model(trainer, module, self.adapters_dir, at_end=True, overwrite=overwrite, alone=True)

    def write_model(
        self, trainer: Trainer, module: LitLanguageModel, out_dir: Path, alone: bool = False, **when: Any
    ) -> None:
        """Write the model, or ``alone`` the adapters without their base; ``at_end`` and ``overwrite`` as these say."""
        of_run = (trainer, module, out_dir, self.record, self.config_yaml)
        if alone:
            write_run_adapters(*of_run, **when)
        else:
            write_run_model(*of_run, **when, optimizer_state=self.save_optimizer_state)


def _keep_until(trainer: Trainer, kind: type[MetricsFile] | type[TensorBoardRunLogger], *until: int | None) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, kind):
            logger.keep_until(*until)  # type: ignore[arg-type]
