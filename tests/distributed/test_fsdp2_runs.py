"""What a run does beside its steps, on a model in shards: stops, precision, the other commands, who starts it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback

from lit_consistency.checkpointing.io import checkpoints, newest_valid
from lit_consistency.cli.fit import build
from lit_consistency.distributed.dtensors import full_tensor, local_shard
from lit_consistency.module import NonFiniteError
from tests.distributed.test_fsdp2 import HELD_OUT, OPTIONS
from tests.runs import ROOT, SCRATCH, arguments, finish, finished, fit, largest_difference, start, weights

ONE = ["--trainer.strategy=fsdp2", "--trainer.devices=1"]
LIGHTNING = "lightning.pytorch.strategies.ModelParallelStrategy"
TWO = ["--trainer.strategy.init_args.data_parallel_size=2", "--trainer.strategy.init_args.tensor_parallel_size=1"]


class Poison(Callback):
    """Make a number of this rank's shard infinite at a step."""

    def __init__(self, what: str) -> None:
        self.what = what

    def on_train_batch_start(self, trainer: Any, module: Any, *_: Any) -> None:
        if trainer.global_step == 2 and self.what == "loss":
            local_shard(module.gpt.lm_head.weight)[0, 0] = math.nan

    def on_after_backward(self, trainer: Any, module: Any) -> None:
        if trainer.global_step == 2 and self.what == "gradient":
            local_shard(module.gpt.lm_head.weight.grad)[0, 0] = math.inf
        if trainer.global_step == 2:
            self.before = full_tensor(module.gpt.lm_head.weight.detach()).clone()


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_a_number_that_is_not_finite_stops_before_a_shard_moves(what: str, tmp_path: Path) -> None:
    cli = build(arguments(tmp_path, *SCRATCH, *ONE))
    poison = Poison(what)
    cli.trainer.callbacks.insert(0, poison)
    with pytest.raises(NonFiniteError, match="step 2: .*stopped before the optimizer moved"):
        cli.execute()
    torch.testing.assert_close(full_tensor(cli.model.gpt.lm_head.weight), poison.before, rtol=0, atol=0, equal_nan=True)


def test_bfloat16_trains_float32_shards_close_to_float32(tmp_path: Path) -> None:
    losses = {}
    for precision in ("32-true", "bf16-mixed"):
        fit(tmp_path / precision, *ONE, f"--trainer.precision={precision}")
        lines = (tmp_path / precision / "run" / "metrics.jsonl").read_text().splitlines()
        losses[precision] = [line["train/loss"] for line in map(json.loads, lines) if "train/loss" in line]
    assert losses["bf16-mixed"] == pytest.approx(losses["32-true"], rel=5e-3)
    assert losses["bf16-mixed"] != losses["32-true"]
    assert {w.dtype for w in weights(tmp_path / "bf16-mixed" / "run" / "model").values()} == {torch.float32}


@pytest.mark.parametrize("command", [pytest.param("validate", marks=pytest.mark.slow), "predict"])
def test_other_commands_run_on_shards(command: str, tmp_path: Path) -> None:
    base = finished(tmp_path / "base") / "model"
    found = []
    for name, strategy in (("one", []), ("shards", ONE)):
        args = arguments(tmp_path, f"--model.checkpoint_dir={base}", *HELD_OUT, *strategy, f"--run.name={name}")
        cli = build([command, *[a for a in args if "limit_val" not in a][1:]])
        cli.execute()
        file = tmp_path / name / "predictions.jsonl"
        found.append(file.read_text() if file.is_file() else float(cli.trainer.callback_metrics["val/loss"]))
    assert found[0] == found[1]
    assert found[0]


@pytest.mark.slow
def test_lightnings_own_strategy_is_taken_for_ours(tmp_path: Path) -> None:
    process = start(tmp_path / "many", *SCRATCH, *OPTIONS, *TWO, devices=2, strategy=LIGHTNING)
    fit(tmp_path / "one", *OPTIONS)
    finish(process)
    assert largest_difference(*(weights(tmp_path / root / "run" / "model") for root in ("one", "many"))) < 1e-9


@pytest.mark.slow
def test_torchrun_starts_the_same_run(tmp_path: Path) -> None:
    two = ["--trainer.devices=2", "--trainer.strategy=fsdp2", "--data.init_args.micro_batch_size=2"]
    args = arguments(tmp_path / "many", *SCRATCH, *OPTIONS, *two)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    process = subprocess.Popen(
        [*torchrun, "-m", "lit_consistency", *args],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    fit(tmp_path / "one", *OPTIONS)
    finish(process)
    assert largest_difference(*(weights(tmp_path / root / "run" / "model") for root in ("one", "many"))) < 1e-9


@pytest.mark.slow
def test_a_signal_to_one_rank_saves_shards_and_stops_all(tmp_path: Path) -> None:
    endless = ["--trainer.max_steps=100000", "--trainer.max_epochs=10000"]
    process = start(tmp_path, *SCRATCH, *endless, devices=2, strategy="fsdp2")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.2)
    process.send_signal(signal.SIGTERM)
    finish(process, 143)
    (path,) = checkpoints(tmp_path / "run" / "checkpoints")
    assert newest_valid(path.parent) == (path, [])
    assert {file.name for file in path.iterdir()} == {"__0_0.distcp", "__1_0.distcp", ".metadata", "meta.pt"}
