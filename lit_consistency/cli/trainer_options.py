"""Trainer options that would train something else than the configuration says, refused before any work is done."""

from __future__ import annotations

import re
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from lightning.pytorch.callbacks import ModelPruning, StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy, Strategy

from lit_consistency.cli.moved import MOVED, refuse_moved
from lit_consistency.distributed.strategy import FSDP2Strategy, fsdp2_of

# these cut epochs or batches to pieces: a global batch would be left half done, and the schedule would not know
CUTTING = {"limit_train_batches": (None, 1.0), "overfit_batches": (0.0, 0), "fast_dev_run": (False, 0)}

# these change weights behind the optimizer's back: what is saved would not be what was measured
SWAPPING = (WeightAveraging, StochasticWeightAveraging, ModelPruning)


def check_trainer(trainer: Mapping[str, Any]) -> None:
    """See that a run has an end, steps are whole, and nobody but the optimizer, on whole tensors, changes the weights.

    Raises:
        ValueError: naming the option, its value and what is allowed.
    """
    _at_least("max_steps", trainer.get("max_steps"), 1, unless=(-1, None))
    _at_least("max_epochs", trainer.get("max_epochs"), 1, unless=(-1, None))
    _at_least("log_every_n_steps", trainer.get("log_every_n_steps"), 1, unless=(None,))
    _at_least("gradient_clip_val", trainer.get("gradient_clip_val"), 0, unless=(None,))
    for unit in ("steps", "epochs"):
        least, most = trainer.get(f"min_{unit}"), trainer.get(f"max_{unit}")
        _at_least(f"min_{unit}", least, 0, unless=(None,))
        if least and most not in (-1, None) and least > most:
            raise ValueError(f"trainer.min_{unit} = {least}: expected at most trainer.max_{unit} = {most}")
    if re.fullmatch(r"-?\d+", str(trainer.get("devices"))):
        _at_least("devices", int(str(trainer["devices"])), 1, unless=(-1,))
    if trainer.get("logger") is False:
        raise ValueError(
            "trainer.logger = false: expected loggers to add, or it unset; metrics.jsonl and TensorBoard stay, since "
            "resuming, reports and claims read them"
        )
    if str(precision := trainer.get("precision")).startswith("transformer-engine"):
        raise ValueError(
            f"trainer.precision = {precision}: expected bf16-mixed, bf16-true, 32-true, 64-true, 16-mixed or 16-true; "
            "float8 puts layers in the place of the model's whose weights no optimizer here knows"
        )
    check_strategy(trainer.get("strategy"))
    check_callbacks(trainer.get("callbacks"))
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


def check_callbacks(callbacks: Any) -> None:
    """Refuse callbacks that put other weights in the place of the trained ones.

    Lightning's averages are swapped in for validation and copied over the model when training ends, after the last
    measurement: the saved model, its step checkpoints and the reported numbers would be of different weights.

    Args:
        callbacks: one, several, or None, as the Trainer takes them.

    Raises:
        ValueError: naming the callback.
    """
    for callback in callbacks if isinstance(callbacks, list | tuple) else [callbacks]:
        if isinstance(callback, SWAPPING):
            raise ValueError(
                f"trainer.callbacks: {type(callback).__name__}: expected callbacks that leave the weights to the "
                "optimizer, since the model that is saved must be the one that is measured; two saved models are "
                "averaged by `export --interpolate`"
            )


def check_strategy(strategy: Any) -> None:
    """Refuse strategies that hand the optimizer pieces of flattened parameters, of which it knows no shape.

    Raises:
        ValueError: naming the value and what is allowed.
    """
    strategy = _resolved(strategy)
    name = strategy if isinstance(strategy, str) else type(strategy).__name__
    flat = isinstance(strategy, FSDPStrategy | DeepSpeedStrategy)
    if flat or (isinstance(strategy, str) and strategy.startswith(("fsdp", "deepspeed")) and strategy != "fsdp2"):
        raise ValueError(
            f"trainer.strategy = {name}: expected auto, ddp, fsdp2, or lit_consistency.distributed.FSDP2Strategy with "
            "its options; the optimizers here need the shapes of parameters, which this strategy flattens"
        )


def sharded_options(trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the Trainer that FSDP2 needs otherwise than they were given; none without it.

    ``fsdp2`` and Lightning's own ModelParallelStrategy become ``FSDP2Strategy``; ``64-true``, which Lightning's list of
    precisions for FSDP2 lacks, becomes the plugin that it stands for.

    Raises:
        ValueError: a combination that FSDP2 cannot run, naming the option, its value and what is allowed.
    """
    strategy = _resolved(trainer.get("strategy"))
    if isinstance(strategy, ModelParallelStrategy) and not isinstance(strategy, FSDP2Strategy):
        strategy = fsdp2_of(strategy)
    if not isinstance(strategy, FSDP2Strategy):
        return {"strategy": strategy} if isinstance(strategy, Strategy) else {}
    if str(trainer.get("precision")) in ("16-mixed", "16"):
        raise ValueError(
            "trainer.precision = 16-mixed: expected bf16-mixed, bf16-true, 32-true or 64-true with fsdp2, whose "
            "gradients no scaler checks on all devices"
        )
    devices = trainer.get("devices")
    if str(devices).isdigit():
        strategy.check_devices(int(str(devices)) * int(trainer.get("num_nodes") or 1))
    options: dict[str, Any] = {"strategy": strategy}
    if str(trainer.get("precision")) in ("64-true", "64"):
        options |= {"precision": None, "plugins": [DoublePrecision()]}
    return options


def _resolved(strategy: Any) -> Any:
    """The strategy; jsonargparse takes a class without options for a name, because names are allowed too."""
    if strategy == "fsdp2":
        return FSDP2Strategy()
    if not isinstance(strategy, str) or "." not in strategy:
        return strategy
    if moved := next((refuse_moved(old) for old in MOVED if old in strategy), None):
        raise ValueError(f"trainer.strategy: {moved}")
    module, _, name = strategy.rpartition(".")
    try:
        kind = getattr(import_module(module), name, None)
    except ImportError:
        kind = None
    if not (isinstance(kind, type) and issubclass(kind, Strategy)):
        raise ValueError(f"trainer.strategy = {strategy}: expected a name, as auto, ddp or fsdp2, or a Strategy's path")
    return kind()


def _at_least(key: str, value: Any, least: float, unless: tuple[Any, ...]) -> None:
    if value not in unless and value < least:
        raise ValueError(f"trainer.{key} = {value}: expected at least {least}")
