"""The series of a run: models of its steps, each a base, the same whether the run was broken off or not."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback

from lit_consistency.cli.fit import build
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.run_folder import RunFolder
from tests.runs import SCRATCH, arguments, equal, fit, weights

SERIES = ["--checkpoint.series={steps: log, count: 3}", "--trainer.max_steps=6"]  # after steps 1, 2 and 6


def test_a_series_is_models_of_the_run_as_it_was(tmp_path: Path) -> None:
    fit(tmp_path / "with", *SERIES, "--forgetting.every_n_steps=2")
    fit(tmp_path / "without", "--trainer.max_steps=6")
    run = RunFolder(tmp_path / "with" / "run")
    models = run.series_models()
    assert list(models) == [1, 2, 6]
    assert equal(weights(run.model), weights(tmp_path / "without" / "run" / "model"))
    assert equal(weights(models[6]), weights(run.model))
    # step 2 by itself: a run with the same constant rate that ends there
    fit(tmp_path / "short", "--trainer.max_steps=2")
    assert equal(weights(models[2]), weights(tmp_path / "short" / "run" / "model"))
    provenance = [read_provenance(path) for path in models.values()]
    assert [(p.steps, p.planned_steps, p.run, p.stage) for p in provenance if p] == [
        (1, 6, "run", "pretrain"),
        (2, 6, "run", "pretrain"),
        (6, None, "run", "pretrain"),
    ]
    lines = run.read_metrics()
    for p in provenance:
        assert p is not None
        assert p.optimizer == "AdamW"
        assert p.tokens == p.steps * 8 * 32
        logged = {line["step"]: line["train/loss"] for line in lines if "train/loss" in line}
        assert p.final_metrics["train/loss"] == pytest.approx(logged[p.steps], rel=1e-12)
        # of what was measured, only what was measured at this very step
        assert ("distance/all" in p.final_metrics) == (p.steps != 1)
    finetuned = fit(tmp_path / "sft", base=models[2], data="SFTData")
    stages = read_provenance(tmp_path / "sft" / "run" / "model")
    assert stages is not None
    assert [stage["steps"] for stage in stages.stages] == [2, 4]
    assert finetuned.model.checkpoint_dir == models[2]


class Die(Callback):
    """Break off when step 2 has been written and step 4 is due, as a kill does: no hook comes after it."""

    def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == 4:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_a_broken_run_writes_what_is_missing_and_leaves_what_is_there(tmp_path: Path) -> None:
    options = [*SCRATCH, *SERIES, "--checkpoint.every_n_steps=1"]
    cli = build(arguments(tmp_path, *options))
    cli.trainer.callbacks.insert(0, Die())
    with pytest.raises(SystemExit):
        cli.execute()
    run = RunFolder(tmp_path / "run")
    assert list(run.series_models()) == [1, 2]
    half = run.series / ".step-00000006.1234.unfinished"  # what a kill in the middle of writing leaves
    half.mkdir()
    os.utime(run.series_model(1) / "lit_model.pth", ns=(0, 0))
    earlier = run.checkpoints / "step-00000003.ckpt"
    build(arguments(tmp_path, *options, f"--ckpt_path={earlier}")).execute()
    assert list(run.series_models()) == [1, 2, 6]
    assert not half.exists()
    assert (run.series_model(1) / "lit_model.pth").stat().st_mtime_ns == 0, "not written again"
    fit(tmp_path / "straight", *SERIES)
    for step, path in RunFolder(tmp_path / "straight" / "run").series_models().items():
        assert equal(weights(path), weights(run.series_model(step)))


@pytest.mark.slow
def test_other_weights_of_later_steps_are_set_aside(tmp_path: Path) -> None:
    fit(tmp_path, *SERIES, "--checkpoint.every_n_steps=1", "--checkpoint.keep=9")
    run = RunFolder(tmp_path / "run")
    changed = ["--allow_changes=true", "--model.optimizer.init_args.lr=0.5"]
    before = {step: weights(path) for step, path in run.series_models().items()}
    with pytest.warns(UserWarning, match="continuing with what is configured now"):
        fit(tmp_path, *SERIES, *changed, f"--ckpt_path={run.checkpoints}/step-00000001.ckpt")
    now = {step: weights(path) for step, path in run.series_models().items()}
    assert equal(before[1], now[1])
    assert not equal(before[2], now[2])
    (aside,) = run.series.glob("abandoned-*")
    assert sorted(path.name for path in aside.iterdir()) == ["step-00000002", "step-00000006"]


def test_what_does_not_fit_into_the_run_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"checkpoint\.series: 9 lies beyond the end of the run; .* 6 steps"):
        fit(tmp_path, "--checkpoint.series=[2, 9]", "--trainer.max_steps=6")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"checkpoint\.series\.tokens: 99999"):
        fit(tmp_path, f"--checkpoint.series={json.dumps({'tokens': [256, 99999]})}", "--trainer.max_steps=6")
