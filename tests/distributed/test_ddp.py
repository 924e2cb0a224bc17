"""Two gloo processes equal one; a signal to one of them stops both."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path

import pytest

from lit_consistency.checkpointing.io import checkpoints
from tests.runs import OPTIMIZERS, SCRATCH, VALIDATION, finish, fit, largest_difference, start, weights

# of 68 rows the ninth step has four, all of them the first rank's: the other one has nothing to learn in it
DOUBLE = ["--trainer.precision=64-true", "--forgetting.every_n_steps=5", "--trainer.max_steps=10"]
VALIDATED = [
    f"--data.init_args.validation={VALIDATION}",
    "--trainer.limit_val_batches=1.0",
    "--trainer.val_check_interval=4",
]


@pytest.mark.parametrize(
    "optimizer", ["adamw", *(pytest.param(name, marks=pytest.mark.slow) for name in ("muon", "mofo"))]
)
def test_two_processes_equal_one(optimizer: str, tmp_path: Path) -> None:
    assert optimizer in OPTIMIZERS
    process = start(tmp_path / "two", *SCRATCH, *DOUBLE, *VALIDATED, devices=2, strategy="ddp", optimizer=optimizer)
    one = fit(tmp_path / "one", *DOUBLE, *VALIDATED, optimizer=optimizer)
    finish(process)
    found = largest_difference(*(weights(tmp_path / name / "run" / "model") for name in ("one", "two")))
    assert found < 1e-9
    assert one.trainer.accumulate_grad_batches == 2  # 8 rows in micro-batches of 4, and of 2 on 2 ranks
    lines = [(tmp_path / name / "run" / "metrics.jsonl").read_text().splitlines() for name in ("one", "two")]
    assert len(lines[0]) == len(lines[1])
    losses = [[json.loads(line)["val/loss"] for line in each if "val/loss" in line] for each in lines]
    assert losses[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_to_one_rank_saves_and_stops_all(number: int, status: int, tmp_path: Path) -> None:
    endless = ["--trainer.max_steps=100000", "--trainer.max_epochs=10000"]
    process = start(tmp_path, *SCRATCH, *endless, devices=2, strategy="ddp")
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.is_file() and len(metrics.read_text().splitlines()) > 5):
        assert time.monotonic() < deadline, "the run did not start"
        time.sleep(0.2)
    process.send_signal(number)
    finish(process, status)
    assert len(checkpoints(tmp_path / "run" / "checkpoints")) == 1
