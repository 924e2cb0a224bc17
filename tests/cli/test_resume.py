"""N steps straight equal N/2 steps, a stop, and N/2 steps, bit for bit."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_consistency.checkpointing.io import checkpoints
from lit_consistency.cli.fit import build
from lit_consistency.records.provenance import read_provenance
from tests.runs import SCRATCH, arguments, equal, finished, weights

LORA = ["--model.method=lit_consistency.methods.LoRA", "--model.method.init_args.dropout=0.1"]
CASES = {
    "adamw": {"optimizer": "adamw"},
    "muon": {"optimizer": "muon"},
    "mofo": {"optimizer": "mofo"},
    "sgd": {"optimizer": "sgd"},
    "lora": {"optimizer": "adamw", "lora": "yes"},
    "random_filter": {"optimizer": "mofo", "filter": "random"},
}


class Stop(Callback):
    """Send a signal to this process while a given micro-batch is in work."""

    def __init__(self, at: int, number: int = signal.SIGTERM) -> None:
        self.at, self.number = at, number

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.fit_loop.epoch_loop.batch_progress.total.ready - 1 == self.at:
            os.kill(os.getpid(), self.number)


def extra(case: dict[str, str]) -> list[str]:
    options = ["--forgetting.every_n_steps=2"]
    options += LORA if "lora" in case else SCRATCH
    if "filter" in case:
        options.append(f"--model.optimizer.init_args.filter={case['filter']}")
    return options


def run(root: Path, case: dict[str, str], *more: str, stop: Callback | None = None) -> None:
    cli = build(arguments(root, *extra(case), *more, optimizer=case["optimizer"]))
    if stop is not None:
        cli.trainer.callbacks.insert(0, stop)
    cli.execute()


def lines(root: Path) -> list[dict[str, Any]]:
    """Logged numbers without those of the clock."""
    found = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if not any(key.startswith(("speed/", "evaluation/")) for key in line)]


QUICK = ("muon",)  # a state of its own; the others are as many minutes


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in CASES]
)
def test_stopped_in_the_middle_of_an_accumulation_equals_straight(name: str, tmp_path: Path) -> None:
    """Epochs have 9 steps of 2 micro-batches; SIGTERM comes in the first micro-batch of step 12, in the second.

    Step 12 is one at which the watched sets are measured, which must be done once, and before the checkpoint.
    """
    case = dict(CASES[name])
    more = ["--trainer.max_steps=14", "--trainer.max_epochs=3"]
    if "lora" in case:
        base = finished(tmp_path / "base")
        more.append(f"--model.checkpoint_dir={base}/model")
    run(tmp_path / "straight", case, *more)
    run(tmp_path / "broken", case, *more, stop=Stop(at=22))
    assert [p.name for p in checkpoints(tmp_path / "broken" / "run" / "checkpoints")] == ["step-00000012.ckpt"]
    assert not (tmp_path / "broken" / "run" / "model").exists()
    run(tmp_path / "broken", case, *more, "--ckpt_path=auto")
    straight, resumed = (weights(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    assert equal(straight, resumed)
    assert lines(tmp_path / "straight") == lines(tmp_path / "broken")
    one, two = (read_provenance(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    assert one is not None
    assert two is not None
    assert (one.tokens, one.steps) == (two.tokens, two.steps)


@pytest.mark.parametrize("at", [3, pytest.param(8, marks=pytest.mark.slow)])
def test_resumed_from_a_regular_checkpoint_equals_straight(at: int, tmp_path: Path) -> None:
    """In the middle of an epoch, and at its end."""
    case = CASES["adamw"]
    more = ["--trainer.max_epochs=2", "--trainer.max_steps=12"]
    run(tmp_path / "straight", case, *more)
    run(tmp_path / "broken", case, *more, f"--checkpoint.every_n_steps={at}", stop=Stop(at=2 * at + 1))
    path = tmp_path / "broken" / "run" / "checkpoints" / f"step-{at:08d}.ckpt"
    assert path.is_file()
    # the signal came one step later: go back to the regular one, which forgets that step
    run(tmp_path / "broken", case, *more, f"--ckpt_path={path}")
    straight, resumed = (weights(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    assert equal(straight, resumed)


def test_a_half_done_accumulation_is_begun_anew(tmp_path: Path) -> None:
    """Somebody saves between the micro-batches of a step."""

    class SaveHalfway(Callback):
        def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
            if trainer.fit_loop.epoch_loop.batch_progress.total.ready == 5:
                trainer.save_checkpoint(tmp_path / "half" / "step-00000002.ckpt", weights_only=False)

    case = CASES["muon"]
    run(tmp_path / "straight", case, stop=SaveHalfway())
    run(tmp_path / "broken", case, f"--ckpt_path={tmp_path}/half/step-00000002.ckpt")
    straight, resumed = (weights(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    assert equal(straight, resumed)


def test_another_micro_batch_size_continues_at_the_same_place(tmp_path: Path) -> None:
    case = CASES["adamw"]
    more = ["--trainer.max_epochs=2", "--trainer.max_steps=12", "--trainer.precision=64-true"]
    run(tmp_path / "straight", case, *more)
    run(tmp_path / "broken", case, *more, stop=Stop(at=8))
    run(tmp_path / "broken", case, *more, "--ckpt_path=auto", "--data.init_args.micro_batch_size=2")
    straight, resumed = (weights(tmp_path / root / "run" / "model") for root in ("straight", "broken"))
    for name in straight:
        assert (straight[name] - resumed[name]).abs().max() < 1e-12, name


def test_a_run_with_evaluation_equals_a_run_without(tmp_path: Path) -> None:
    case = CASES["lora"]
    base = finished(tmp_path / "base")
    more = [f"--model.checkpoint_dir={base}/model"]
    run(tmp_path / "with", case, *more, "--forgetting.every_n_steps=1", "--trainer.limit_val_batches=1.0")
    run(tmp_path / "without", case, *more, "--forgetting.every_n_steps=0")
    found, expected = (weights(tmp_path / root / "run" / "model") for root in ("with", "without"))
    assert equal(found, expected)
