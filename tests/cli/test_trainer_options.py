"""Which strategies the Trainer is given, and which are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import (
    EMAWeightAveraging,
    ModelCheckpoint,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy

from lit_consistency.cli.trainer_options import check_callbacks, check_strategy, check_trainer, sharded_options
from lit_consistency.distributed.strategy import FSDP2Strategy
from tests.runs import fit


@pytest.mark.parametrize("given", ["fsdp2", "lit_consistency.distributed.FSDP2Strategy", FSDP2Strategy()])
def test_a_name_a_path_and_an_object_are_the_same_strategy(given: Any) -> None:
    strategy = sharded_options({"strategy": given, "devices": 2})["strategy"]
    assert type(strategy) is FSDP2Strategy
    assert strategy.replicas == 1


def test_lightnings_strategy_becomes_ours_on_the_same_devices() -> None:
    given = ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False)
    strategy = sharded_options({"strategy": given, "devices": 1, "num_nodes": 2})["strategy"]
    assert type(strategy) is FSDP2Strategy
    assert strategy._save_distributed_checkpoint is False
    strategy.check_devices(2)
    with pytest.raises(ValueError, match=r"data_parallel_size = 2: expected 4"):
        strategy.check_devices(4)


def test_float64_is_given_as_the_plugin_that_it_stands_for() -> None:
    options = sharded_options({"strategy": "fsdp2", "precision": "64-true"})
    assert options["precision"] is None
    assert [type(plugin) for plugin in options["plugins"]] == [DoublePrecision]


@pytest.mark.parametrize("given", [None, "auto", "ddp", "ddp_spawn", DDPStrategy()])
def test_other_strategies_are_left_as_they_are(given: Any) -> None:
    check_strategy(given)
    assert sharded_options({"strategy": given, "precision": "64-true"}) in ({}, {"strategy": given})


@pytest.mark.parametrize("given", ["nowhere.Strategy", "lit_consistency.module.Nothing", "torch.nn.Linear"])
def test_a_path_that_leads_to_no_strategy_is_refused(given: str) -> None:
    with pytest.raises(ValueError, match=rf"trainer\.strategy = {given}"):
        sharded_options({"strategy": given})


@pytest.mark.parametrize(
    "callback",
    [EMAWeightAveraging(), WeightAveraging(), StochasticWeightAveraging(swa_lrs=1e-3), ModelPruning("l1_unstructured")],
    ids=lambda callback: type(callback).__name__,
)
def test_what_is_saved_is_what_is_measured(callback: Any) -> None:
    """An average once went into the model's folder 0.302 from the base, beside numbers of the trained weights."""
    name = type(callback).__name__
    with pytest.raises(ValueError, match=rf"trainer\.callbacks: {name}: .*must be the one that is measured"):
        check_callbacks([ModelCheckpoint(), callback])
    check_callbacks([ModelCheckpoint()])
    check_callbacks(None)


ALLOWED = {"max_steps": 4, "limit_train_batches": None, "overfit_batches": 0.0, "fast_dev_run": False}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "transformer-engine"}, "precision = transformer-engine: expected bf16-mixed.*; float8"),
        ({"limit_train_batches": 3}, "limit_train_batches = 3: expected it unset; trainer.max_steps"),
        ({"gradient_clip_val": -1}, "gradient_clip_val = -1: expected at least 0"),
        ({"log_every_n_steps": 0}, "log_every_n_steps = 0: expected at least 1"),
        ({"max_epochs": 0}, "max_epochs = 0: expected at least 1"),
        ({"max_steps": -1}, "max_steps = -1 and trainer.max_epochs = None: expected one"),
        ({"min_steps": 9}, "min_steps = 9: expected at most trainer.max_steps = 4"),
        ({"devices": -3}, "devices = -3: expected at least 1"),
        ({"devices": "0"}, "devices = 0: expected at least 1"),
        ({"logger": False}, "logger = false: .*metrics.jsonl and TensorBoard stay"),
        ({"strategy": FSDPStrategy()}, "strategy = FSDPStrategy: .*fsdp2"),
        ({"strategy": "lightning.pytorch.strategies.FSDPStrategy"}, "strategy = FSDPStrategy: .*fsdp2"),
    ],
)
def test_what_would_train_something_else_is_refused(options: dict[str, Any], message: str) -> None:
    check_trainer(ALLOWED)
    with pytest.raises(ValueError, match=rf"^trainer\.{message}"):
        check_trainer({**ALLOWED, **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"strategy": ModelParallelStrategy(tensor_parallel_size=2)},
            r"strategy\.init_args\.tensor_parallel_size = 2: expected 1; .*lit_consistency\.distributed\.FSDP2Strategy",
        ),
        (
            {"strategy": "lightning.pytorch.strategies.ModelParallelStrategy"},
            r"strategy\.init_args\.tensor_parallel_size = auto: expected 1",
        ),
        (
            {"strategy": ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1), "devices": 1},
            r"strategy\.init_args\.data_parallel_size = 2: expected 1",
        ),
        ({"strategy": "fsdp2", "precision": "16-mixed"}, "precision = 16-mixed: expected bf16-mixed"),
    ],
)
def test_what_fsdp2_cannot_run_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=rf"^trainer\.{message}"):
        sharded_options(options)


def test_there_is_a_replica() -> None:
    with pytest.raises(ValueError, match=r"^trainer\.strategy\.init_args\.replicas = 0: expected at least 1"):
        FSDP2Strategy(replicas=0)


def test_an_average_is_refused_before_any_work(tmp_path: Path) -> None:
    path = "lightning.pytorch.callbacks.EMAWeightAveraging"
    with pytest.raises(ValueError, match=r"trainer\.callbacks: EMAWeightAveraging"):
        fit(tmp_path, f"--trainer.callbacks={path}")
    assert not list(tmp_path.iterdir())
