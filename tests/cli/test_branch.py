"""A run that branches off another: with nothing changed it is that run, with a new schedule it anneals from there."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import Callback

from lit_consistency.checkpointing.io import AtomicCheckpointIO
from lit_consistency.cli.fit import build
from lit_consistency.optimizers import Linear, WarmupStableDecay
from lit_consistency.optimizers.schedules import Branched
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import SCRATCH, arguments, equal, fit, weights

SCHEDULES = "--model.schedule=lit_consistency.optimizers."
COSINE = [f"{SCHEDULES}Cosine", "--model.schedule.init_args.warmup=2"]
RISING = [f"{SCHEDULES}Constant", "--model.schedule.init_args.warmup=6"]
LINEAR = [f"{SCHEDULES}Linear", "--trainer.max_steps=7"]
EACH = ["--checkpoint.every_n_steps=1", "--checkpoint.keep=9", "--trainer.max_steps=6"]


@pytest.fixture(scope="module")
def rising(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Six steps of a warm-up of six: after step 3 the next factor is 4/6."""
    root = tmp_path_factory.mktemp("rising")
    fit(root, *EACH, *RISING)
    return RunFolder(root / "run")


def numbers(run: RunFolder) -> list[dict[str, Any]]:
    """Logged numbers without those of the clock."""
    clock = ("speed/", "evaluation/")
    return [line for line in run.read_metrics() if not any(key.startswith(clock) for key in line)]


def rates(run: RunFolder) -> dict[int, float]:
    return {line["step"]: line["lr/hidden"] for line in run.read_metrics() if "lr/hidden" in line}


@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("muon", marks=pytest.mark.slow)])
def test_a_branch_that_changes_nothing_is_the_run_itself(optimizer: str, tmp_path: Path) -> None:
    """In the middle of an epoch, and of a schedule that depends on the length of the run."""
    options = [*EACH, *COSINE, "--trainer.max_epochs=2", "--trainer.max_steps=12", "--forgetting.every_n_steps=2"]
    fit(tmp_path / "straight", *options, optimizer=optimizer)
    run, branch = RunFolder(tmp_path / "straight" / "run"), RunFolder(tmp_path / "branch" / "run")
    fit(tmp_path / "branch", *options, f"--branch_from={run.checkpoints}/step-5", optimizer=optimizer)
    assert equal(weights(run.model), weights(branch.model))
    later = [line for line in numbers(run) if line["step"] > 5]
    assert later
    assert [line for line in numbers(branch) if line["step"] > 5] == later
    assert not [line for line in numbers(branch) if "train/loss" in line and line["step"] <= 5], "not of this run"
    assert branch.read_record()["evaluation"]["made"] < run.read_record()["evaluation"]["made"]
    assert not branch.first_measured.exists()
    provenance, straight = read_provenance(branch.model), read_provenance(run.model)
    assert provenance is not None
    assert straight is not None
    assert provenance.branched_from is not None
    assert [provenance.branched_from[key] for key in ("step", "run", "schedule")] == [5, "run", None]
    assert (provenance.steps, provenance.tokens) == (straight.steps, straight.tokens)
    assert provenance.final_metrics == straight.final_metrics


def test_a_new_schedule_runs_over_the_steps_of_the_branch_from_its_factor(rising: RunFolder, tmp_path: Path) -> None:
    fit(tmp_path, *EACH, *LINEAR, f"--branch_from={rising.checkpoints}/step-00000003.ckpt")
    run = RunFolder(tmp_path / "run")
    falling = {4 + i: 4 / 6 * 3e-4 * (1 - i / 4) for i in range(4)}
    assert rates(run) == pytest.approx(falling)
    assert rates(rising) == pytest.approx({step: 3e-4 * step / 6 for step in range(1, 7)})
    record = run.read_record()
    assert record["branched_from"]["schedule"] == {"begin": 3, "factor": pytest.approx(4 / 6)}
    assert record["branched_from"]["checkpoint"] == f"{rising.checkpoints}/step-00000003.ckpt"
    assert record["resumed_from"] == []
    assert record["steps"] == 7
    assert rising.read_record()["branched_from"] is None
    # a new warm-up begins at the branch as well; its first rate is not the one that the checkpoint holds
    warm = [*LINEAR, "--model.schedule.init_args.warmup=2", f"--branch_from={rising.checkpoints}/step-3"]
    fit(tmp_path / "warm", *EACH, *warm)
    factors = [1 / 2, 1, 1, 1 / 2]
    expected = {4 + i: 4 / 6 * 3e-4 * factor for i, factor in enumerate(factors)}
    assert rates(RunFolder(tmp_path / "warm" / "run")) == pytest.approx(expected)


class Die(Callback):
    """Break off in step 6, as a kill does."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 5:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_branch_that_was_broken_off_goes_on_without_the_run_it_left(rising: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(rising.checkpoints, tmp_path / "source" / "checkpoints")
    source = tmp_path / "source" / "checkpoints" / "step-3"
    options = [*SCRATCH, *EACH, *LINEAR, f"--branch_from={source}", "--ckpt_path=auto"]
    build(arguments(tmp_path / "straight", *options)).execute()
    cli = build(arguments(tmp_path / "broken", *options))
    cli.trainer.callbacks.insert(0, Die())
    with pytest.raises(SystemExit):
        cli.execute()
    shutil.rmtree(tmp_path / "source")
    build(arguments(tmp_path / "broken", *options)).execute()
    straight, broken = (RunFolder(tmp_path / name / "run") for name in ("straight", "broken"))
    assert equal(weights(straight.model), weights(broken.model))
    assert numbers(straight) == numbers(broken)
    assert broken.read_record()["branched_from"] == straight.read_record()["branched_from"]
    # a branch of the branch whose schedule goes on keeps where it began
    fit(tmp_path / "twig", *EACH, *LINEAR, f"--branch_from={straight.checkpoints}/step-5")
    assert equal(weights(straight.model), weights(RunFolder(tmp_path / "twig" / "run").model))


@pytest.mark.slow
def test_what_a_branch_may_not_change_is_refused_with_its_keys(rising: RunFolder, tmp_path: Path) -> None:
    branch = f"--branch_from={rising.checkpoints}/step-3"
    for options, message in (
        ([*LINEAR, branch, "--model.optimizer.init_args.lr=0.5"], r"args\.lr: 0\.0003 in the checkpoint, 0\.5 now"),
        ([*RISING, branch, "--trainer.max_steps=3"], r"trainer\.max_steps = 3: expected more than 3, the step of"),
        ([f"--branch_from={rising.series}/step-3"], r"branch_from = .*step-3: a model of a series has no optimizer"),
        ([f"--branch_from={rising.checkpoints}/step-99"], r"step-00000099\.ckpt: no such checkpoint"),
        ([*LINEAR, branch, "--model.schedule.init_args.warmup=5"], r"warmup = 5: expected at most 4"),
    ):
        with pytest.raises(ValueError, match=message):
            fit(tmp_path, *EACH, *options)
    with pytest.raises(ValueError, match=r"run\.name = 'run': .* is not empty"):
        fit(rising.path.parent, *EACH, *LINEAR, branch)
    with pytest.raises(ValueError, match="branch_from = .*: expected it with fit only"):
        build(["validate", *arguments(tmp_path, *SCRATCH, branch)[1:]])
    assert not (tmp_path / "run").exists()
    with pytest.warns(UserWarning, match=r"lr: 0\.0003 in the checkpoint, 0\.5 now"):
        fit(tmp_path, *EACH, *LINEAR, branch, "--model.optimizer.init_args.lr=0.5", "--allow_changes=true")
    assert rates(RunFolder(tmp_path / "run"))[4] == pytest.approx(0.5 * 4 / 6)


def test_an_older_checkpoint_has_none_of_the_options_that_came_later(rising: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(rising.path, tmp_path / "run", ignore=shutil.ignore_patterns("events*"))
    path = tmp_path / "run" / "checkpoints" / "step-00000004.ckpt"
    content = torch.load(path, weights_only=True)
    config = yaml.safe_load(content["config"])
    del config["branch_from"], config["model"]["carry_optimizer_state"], config["checkpoint"]["series"]
    del config["forgetting"]["interpolate"], config["run"]["save_optimizer_state"]
    older = {key: value for key, value in content.items() if key not in ("provenance", "branch")}
    AtomicCheckpointIO().save_checkpoint({**older, "config": yaml.safe_dump(config)}, path)
    fit(tmp_path, *EACH, *RISING, f"--ckpt_path={path}")
    assert equal(weights(rising.model), weights(tmp_path / "run" / "model"))
    assert RunFolder(tmp_path / "run").is_finished


def test_a_rate_that_has_come_down_to_zero_is_no_start(tmp_path: Path) -> None:
    fit(tmp_path, *EACH, f"{SCHEDULES}Linear")
    other = [f"{SCHEDULES}Cosine", "--trainer.max_steps=9"]
    with pytest.raises(ValueError, match="the learning rate has come down to 0 there"):
        fit(tmp_path / "other", *EACH, *other, f"--branch_from={tmp_path}/run/checkpoints/step-6")


def test_before_the_branch_its_schedule_has_the_first_factor() -> None:
    """A scheduler of torch asks for the factor of step 0 when it is made."""
    branched = Branched(WarmupStableDecay(decay=0.5), begin=100, factor=0.25)
    assert branched.factor(0, 110) == branched.factor(104, 110) == 0.25
    assert branched.factor(110, 110) == 0.0
    assert Branched(Linear(), 0, 1.0).factor(3, 7) == Linear().factor(3, 7)
