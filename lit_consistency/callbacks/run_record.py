"""The record of a run: what was run, on what, and what came out, in the run's folder (records/run_folder.py).

``run.json`` holds the base with its hash and the optimizer that pretrained it, data, versions, the table of parameters,
seeds and final metrics. The final model is written in LitGPT's format with its provenance, so that any result is the
next run's base.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from litgpt.prompts import Default, PromptStyle, prompt_styles

from lit_consistency.callbacks.forgetting import Forgetting
from lit_consistency.callbacks.throughput import Throughput
from lit_consistency.data import SFTData
from lit_consistency.loggers.metrics_file import MetricsFile
from lit_consistency.loggers.tensorboard import TensorBoardRunLogger
from lit_consistency.model import save_model, weights_hash
from lit_consistency.module import LitLanguageModel, language_model
from lit_consistency.optimizers import format_table
from lit_consistency.records.atomic import check_free, remove_leftovers
from lit_consistency.records.differences import differences
from lit_consistency.records.provenance import Provenance, current_versions, family, read_provenance
from lit_consistency.records.run_folder import FINISHED, RunFolder

LOSSES = ("train/loss", "val/loss")


class RunRecord(Callback):
    """Name and record the run, and save the final model.

    Args:
        name: of the run's folder; a time stamp when not given.
        root: folder of all runs.
        final_dir: where the final model goes; ``<run>/model`` when not given.
        overwrite: replace ``final_dir`` if it exists. The old folder stays until the new one is complete.
        save_model: save the final model at all.
    """

    def __init__(
        self,
        name: str | None = None,
        root: Path = Path("checkpoints/runs"),
        final_dir: Path | None = None,
        overwrite: bool = False,
        save_model: bool = True,
    ) -> None:
        if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name):
            raise ValueError(f"name = {name!r}: expected letters, digits, '.', '_' and '-', at most 100, no path")
        # two runs of one second must not share a folder
        self.name = name or f"{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(2).hex()}"
        self.root = Path(root)
        self.final_dir = Path(final_dir) if final_dir is not None else None
        self.overwrite = overwrite
        self.save_model = save_model
        self.config_yaml = ""
        self.allow_changes = False
        self.resumed_from: str | None = None
        self.record: dict[str, Any] = {}
        self.inputs: dict[str, Any] = {}
        self._resumed_step = -1

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
            if self.final_dir.exists() and not self.overwrite:
                raise ValueError(f"final_dir = {self.final_dir}: exists; name another, or set overwrite to replace it")
            check_free(self.final_dir, self.overwrite)
        if not continues and not self.folder.is_empty:
            raise ValueError(
                f"run.name = {self.name!r}: {self.directory} is not empty; choose another name, or continue that "
                "run with --ckpt_path auto"
            )

    # -------------------- hooks

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Processes that started a second apart agree on the name of rank 0."""
        self.name = trainer.strategy.broadcast(self.name)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Everything is set up and nothing has been trained: write what is being run."""
        module = language_model(pl_module)
        self.record = self._describe(trainer, module)
        self._warn_of_mismatch()
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
            _keep_until(trainer, MetricsFile, trainer.global_step)
        forgetting = _find(trainer, Forgetting)
        if forgetting and trainer.is_global_zero and forgetting.measured_at == trainer.global_step == 0:
            forgetting.write_items(self.folder.first_measured)
        self._log_hyperparameters(trainer, forgetting.latest if forgetting else {})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the final model, then the final numbers."""
        interrupted = getattr(trainer, "interrupted_by", None)
        if interrupted is None and self.save_model:
            self._save_model(trainer, language_model(pl_module))
        self._finish(trainer, "interrupted" if interrupted else FINISHED, language_model(pl_module))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """The record says how the run ended."""
        if self.directory.is_dir() and self.record:
            self.record["error"] = f"{type(exception).__name__}: {exception}"
            self._finish(trainer, "failed", language_model(pl_module))

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """A checkpoint holds the configuration and the inputs that made it, so that a resume can be compared."""
        checkpoint["config"] = self.config_yaml
        checkpoint["inputs"] = self.inputs

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Refuse to continue on other data or another base, before anything is written."""
        self._resumed_step = checkpoint["global_step"]
        changed = differences(checkpoint.get("inputs", {}), self._inputs(trainer, language_model(pl_module)))
        if trainer.training and changed and not self.allow_changes:
            lines = "\n".join(f"  {text}" for text in changed.values())
            raise ValueError(
                f"the run was begun on other inputs:\n{lines}\nput them back, or pass --allow_changes true"
            )

    # -------------------- content

    def _inputs(self, trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
        """What the run is made from; computed once, on the first rank, because it reads every file."""
        if not self.inputs and trainer.is_global_zero:
            base, data = module.checkpoint_dir, trainer.datamodule  # type: ignore[attr-defined]
            # as JSON gives it back: tuples are lists, keys are strings
            self.inputs = json.loads(
                json.dumps({"data": data.fingerprint(), "base_hash": weights_hash(base) if base else None}, default=str)
            )
        self.inputs = trainer.strategy.broadcast(self.inputs)
        return self.inputs

    def _describe(self, trainer: Trainer, module: LitLanguageModel) -> dict[str, Any]:
        base = module.checkpoint_dir
        provenance = read_provenance(base) if base is not None else None
        data = trainer.datamodule  # type: ignore[attr-defined]
        inputs = self._inputs(trainer, module)
        before = self.folder.read_record() if self.resumed_from else {}
        return {
            "name": self.name,
            "status": "running",
            "started": before.get("started", time.strftime("%Y-%m-%dT%H:%M:%S%z")),
            "command": " ".join(["python -m lit_consistency", *sys.argv[1:]]),
            "resumed_from": [*before.get("resumed_from", []), *([self.resumed_from] if self.resumed_from else [])],
            "base": str(base) if base is not None else None,
            "base_hash": inputs["base_hash"],
            "pretraining_optimizer": provenance.pretraining_optimizer if provenance else None,
            "optimizer": type(trainer.optimizers[0]).__name__,
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
            "total_steps": module.total_steps(),
            "versions": current_versions(),
        }

    def _warn_of_mismatch(self) -> None:
        before, now = self.record["pretraining_optimizer"], self.record["optimizer"]
        self.record["optimizer_mismatch"] = before is not None and family(before) != family(now)
        if self.record["optimizer_mismatch"]:
            rank_zero_warn(
                f"{self.record['base']} was pretrained with {before} and is now trained with {now}, of another family: "
                "finetuning with the optimizer of pretraining forgets less (arXiv 2605.06654)"
            )

    @rank_zero_only
    def _write_start(self) -> None:
        remove_leftovers(self.directory)
        self.folder.write_config(self.config_yaml)
        self._write()

    @rank_zero_only
    def _write(self) -> None:
        self.folder.write_record(self.record)

    def _finish(self, trainer: Trainer, status: str, module: LitLanguageModel) -> None:
        forgetting, throughput = _find(trainer, Forgetting), _find(trainer, Throughput)
        self.record |= {
            "status": status,
            "ended": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
            "steps": trainer.global_step,
            "base_metrics": forgetting.base if forgetting else {},
            "final_metrics": forgetting.latest if forgetting else {},
            "evaluation": forgetting.budget.record() if forgetting else {},
            "speed": throughput.latest if throughput else {},
        }
        if status == FINISHED and forgetting:
            if trainer.is_global_zero:
                forgetting.write_items(self.folder.last_measured)
            module.log_now({f"final/{name}": value for name, value in _headlines(forgetting.latest).items()})
        self._write()  # last: a record that says finished stands for all the rest

    def _log_hyperparameters(self, trainer: Trainer, measured: dict[str, float]) -> None:
        """The HParams page shows only metrics that the first call names, so the final ones are declared now."""
        names = _headlines(measured)
        chosen = {key: self.record[key] for key in ("model", "method", "optimizer", "pretraining_optimizer", "seed")}
        chosen["lr"] = trainer.optimizers[0].param_groups[0]["initial_lr"]  # not that of the warm-up's first step
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.log_hyperparams(chosen, {f"final/{name}": float("nan") for name in sorted(names)})

    def _save_model(self, trainer: Trainer, module: LitLanguageModel) -> None:
        state = module.merged_state()
        if trainer.is_global_zero:
            out_dir = self.final_dir or self.folder.model
            data = trainer.datamodule  # type: ignore[attr-defined]
            save_model(
                out_dir,
                state,
                module.config,
                data.tokenizer_folder,
                self._provenance(trainer, module),
                prompt_style=_litgpt_style(data),
                overwrite=self.overwrite or self.final_dir is None,
            )
            rank_zero_info(f"final model: {out_dir}")
        trainer.strategy.barrier("final model")

    def _provenance(self, trainer: Trainer, module: LitLanguageModel) -> Provenance:
        throughput = _find(trainer, Throughput)
        stage: dict[str, Any] = {
            "model": module.config.name,
            "optimizer": self.record["optimizer"],
            "method": module.method.name,
            "stage": self.record["stage"],
            "base": self.record["base"],
            "base_hash": self.record["base_hash"],
            "run": self.name,
            "tokens": throughput.total_tokens(trainer.world_size) if throughput else 0,
            "steps": trainer.global_step,
            "seed": self.record["seed"],
            "command": self.record["command"],
            **_configured(self.config_yaml),
            "final_metrics": self._final_metrics(trainer),
        }
        before = read_provenance(module.checkpoint_dir) if module.checkpoint_dir is not None else None
        return before.next_stage(**stage) if before else Provenance(**stage)

    def _final_metrics(self, trainer: Trainer) -> dict[str, float | None]:
        """Losses and what judges the run; what is no number is None."""
        forgetting = _find(trainer, Forgetting)
        losses = {key: float(value) for key, value in trainer.callback_metrics.items() if key in LOSSES}
        numbers = {**losses, **_headlines(forgetting.latest if forgetting else {})}
        return {name: value if math.isfinite(value) else None for name, value in sorted(numbers.items())}


def _configured(config_yaml: str) -> dict[str, Any]:
    """Options of optimizer and schedule, as they stand in the configuration."""
    model = (yaml.safe_load(config_yaml) or {}).get("model", {})
    schedule = model.get("schedule")
    options = (model.get("optimizer") or {}).get("init_args", {})
    return {"optimizer_options": options, "schedule": schedule if isinstance(schedule, Mapping) else None}


def _keep_until(trainer: Trainer, kind: type[MetricsFile] | type[TensorBoardRunLogger], step: int) -> None:
    for logger in trainer.loggers:
        if isinstance(logger, kind):
            logger.keep_until(step)


def _headlines(measured: dict[str, float]) -> dict[str, float]:
    """What judges a run: the metric of every set, what was forgotten, the distance of the whole model."""
    sets = ("learn/", "retain/", "forget/", "retained/")
    judged = (*sets, "kl_to_base", "reverse_kl_to_base", "distance/all", "relative_distance/all", "moved/all")
    return {name: value for name, value in measured.items() if name.startswith(judged) and "." not in name}


def _litgpt_style(data: Any) -> PromptStyle | None:
    """What ``litgpt generate`` is to prompt with; None keeps the base's, as for a tokenizer's own chat template."""
    if not isinstance(data, SFTData) or data.prompt_style == "chat_template":
        return None
    return prompt_styles.get(data.prompt_style, Default)()


def _find(trainer: Trainer, kind: type) -> Any:
    return next((c for c in trainer.callbacks if isinstance(c, kind)), None)  # type: ignore[attr-defined]
