"""Trainer options that would train something else than the configuration says, refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# these cut epochs or batches to pieces: a global batch would be left half done, and the schedule would not know
CUTTING = {"limit_train_batches": (None, 1.0), "overfit_batches": (0.0, 0), "fast_dev_run": (False, 0)}


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """See that a run has an end, and that steps are whole.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    _at_least("max_steps", trainer.get("max_steps"), 1, unless=(-1, None))
    _at_least("max_epochs", trainer.get("max_epochs"), 1, unless=(-1, None))
    _at_least("log_every_n_steps", trainer.get("log_every_n_steps"), 1, unless=(None,))
    _at_least("gradient_clip_val", trainer.get("gradient_clip_val"), 0, unless=(None,))
    if trainer.get("max_steps") in (-1, None) and trainer.get("max_epochs") in (-1, None):
        raise ValueError("trainer.max_steps = -1 and trainer.max_epochs = None: expected one of them")
    for key, allowed in CUTTING.items():
        if trainer.get(key) not in allowed:
            raise ValueError(f"trainer.{key} = {trainer[key]}: expected it unset; trainer.max_steps makes a run short")
    if trainer.get("accumulate_grad_batches") not in (None, 1):
        raise ValueError(
            f"trainer.accumulate_grad_batches = {trainer['accumulate_grad_batches']}: expected it unset; set "
            "data.init_args.global_batch_size and micro_batch_size, from which it follows"
        )


def _at_least(key: str, value: Any, least: float, unless: tuple[Any, ...]) -> None:
    if value not in unless and value < least:
        raise ValueError(f"trainer.{key} = {value}: expected at least {least}")
