"""What a callback of Lightning monitors is known before the run; test_budget.py has both in a fit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from lightning.pytorch.utilities.types import LRSchedulerConfig

from lit_consistency.callbacks.monitors import check_monitors


class Own(Callback):
    """Of a user, who may log what we do not know."""


def test_whoever_watches_a_number_is_asked_for_it() -> None:
    tasks = {"retain/old": ("exact", "nats_per_token"), "learn/text": ("word_perplexity",)}
    watched = ["forget/old", "forget/old.nats_per_token", "retain/old.stderr", "learn/text", "train/loss", "moved/all"]
    watched += ["train/penalty", "train/anchor"]
    callbacks: list[Any] = [ModelCheckpoint(".", monitor="step"), *map(EarlyStopping, watched)]
    trainer = Trainer(logger=False, enable_progress_bar=False, callbacks=callbacks)
    trainer.datamodule = object()  # type: ignore[attr-defined]
    check_monitors(trainer, tasks)
    stop = trainer.callbacks[-1]  # type: ignore[attr-defined]
    for name in ("forget/odl", "learned/text", "train/los", "val/loss", "forget/new"):
        stop.monitor = name
        with pytest.raises(ValueError, match=rf"monitors '{name}', which nothing logs; expected one of "):
            check_monitors(trainer, tasks)
    trainer.callbacks.append(Own())  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="or a number of your own callbacks"):
        check_monitors(trainer, tasks)
    stop.monitor = "forget/old"
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
    trainer.strategy.lr_scheduler_configs = [LRSchedulerConfig(plateau, reduce_on_plateau=True, monitor="val_loss")]
    with pytest.warns(UserWarning, match="model.schedule: ReduceLROnPlateau monitors 'val_loss'"):
        check_monitors(trainer, tasks)
