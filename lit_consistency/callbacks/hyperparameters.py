"""What distinguishes a run from others, for loggers: the columns by which TensorBoard's HParams page compares runs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from lit_consistency.callbacks.run_model import headlines
from lit_consistency.loggers.tensorboard import TensorBoardRunLogger
from lit_consistency.module import LitLanguageModel

RECORDED = ("model", "method", "optimizer", "pretraining_optimizer", "seed", "base", "precision")


def hyperparameters(
    trainer: Trainer, module: LitLanguageModel, record: Mapping[str, Any], config_yaml: str
) -> dict[str, str | int | float]:
    """Model, base, data, method and its rank, optimizer, rate, decay, schedule, batch, steps, seed; those that it has.

    Args:
        trainer: whose optimizer is set up.
        module: of the run.
        record: of run.json.
        config_yaml: the complete configuration.
    """
    groups, data = trainer.optimizers[0].param_groups, trainer.datamodule  # type: ignore[attr-defined]
    chosen: dict[str, Any] = {key: record.get(key) for key in RECORDED}
    chosen["base"] = chosen["base"] or "none"  # drawn, not loaded
    chosen |= {
        "lr": float(groups[0]["initial_lr"]),  # not that of the warm-up's first step
        "weight_decay": max(float(group.get("weight_decay") or 0.0) for group in groups),  # norms have none
        "schedule": type(module.schedule).__name__,
        "rank": getattr(module.method, "options", {}).get("lora_r"),
        "batch": data.global_batch_size,
        "steps": module.total_steps(),
        "data": data_name((yaml.safe_load(config_yaml) or {}).get("data") or {}),
    }
    return {key: value for key, value in chosen.items() if value is not None}


def data_name(data: Mapping[str, Any]) -> str:
    """What is trained on, in a word: ``RowFiles rows.jsonl``, or the names of the sets of a mixture.

    Args:
        data: the configuration's ``data``.
    """
    options = data.get("init_args") or {}
    part = options.get("rows") or options.get("source") or {}
    if not isinstance(part, Mapping):  # a class without options
        return str(part).rpartition(".")[2]
    own = part.get("init_args") or {}
    if isinstance(own.get("sets"), Mapping):
        return ", ".join(own["sets"])
    which = own.get("path") or own.get("name") or own.get("task")
    return " ".join([str(part.get("class_path", "")).rpartition(".")[2], *([str(which)] if which else [])])


def log_hyperparameters(trainer: Trainer, chosen: dict[str, Any], measured: Mapping[str, float]) -> None:
    """Tell every logger.

    Args:
        trainer: with the loggers.
        chosen: the hyperparameters.
        measured: the base; a TensorBoard logger of the user's shows only metrics that are named now.
    """
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardRunLogger):
            logger.begin_session(chosen)
        elif isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(chosen, {f"final/{name}": float("nan") for name in sorted(headlines(measured))})
        else:
            logger.log_hyperparams(chosen)


def end_session(trainer: Trainer) -> None:
    """The HParams page says that the run has finished."""
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardRunLogger):
            logger.end_session()
