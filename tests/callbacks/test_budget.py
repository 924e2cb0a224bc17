"""A forgetting budget acts on intervals; the model that a run keeps is the one whose numbers it says it keeps."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint
from safetensors.torch import load_file

from lit_consistency.callbacks.budget import ForgettingBudget
from lit_consistency.callbacks.changes import changes_since
from lit_consistency.cli.fit import build, main
from lit_consistency.inference.load import load_model
from lit_consistency.methods.adapters import TENSORS
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.results import read_results
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.stats.intervals import Estimate, ratio
from lit_consistency.tasks.measured import Measured
from tests.runs import WORLD, arguments, equal, finish, fit, largest_difference, start, weights

pytestmark = pytest.mark.filterwarnings("ignore:step .* is worse by")
OPTIONS = [
    f"--world={WORLD}",
    "--forgetting.retain=[markov/old]",
    "--forgetting.learn=[markov/new]",
    "--forgetting.every_n_steps=2",
    "--checkpoint.every_n_steps=3",
    "--trainer.max_steps=8",
    "--model.optimizer.init_args.lr=0.03",
]
"""Of a run that forgets .23, .31, .37 and .52 nats at steps 2, 4, 6 and 8, each with an error below .01."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("base")
    fit(root, "--trainer.max_steps=30", "--model.optimizer.init_args.lr=0.01")
    return RunFolder(root / "run").model


@pytest.fixture(scope="module")
def plain(base: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    root = tmp_path_factory.mktemp("plain")
    fit(root, *OPTIONS, base=base, data="SFTData")
    return RunFolder(root / "run")


def run(root: Path, base: Path, *extra: str) -> tuple[RunFolder, dict[str, Any]]:
    fit(root, *OPTIONS, *extra, base=base, data="SFTData")
    folder = RunFolder(root / "run")
    return folder, folder.read_record()


def forgotten(folder: RunFolder) -> dict[int, float]:
    return {line["step"]: line["forget/old"] for line in folder.read_metrics() if "forget/old" in line}


# -------------------- what is judged


def changed(low: float, high: float) -> dict[str, Estimate]:
    return {"retain/old": Estimate((low + high) / 2, 0.01, low, high)}


def test_a_bound_is_breached_by_the_whole_interval() -> None:
    budget = ForgettingBudget("forget/o*<=0.1", None, 10)
    budget.check(["old", "text"])
    assert not budget.breaches(changed(0.02, 0.3))
    (breach,) = budget.breaches(changed(0.12, 0.3))
    assert str(breach) == "old is worse by 0.21 (0.12 to 0.3), over o*<=0.1"
    assert budget.used(changed(0.12, 0.3)) == {"budget/old": pytest.approx(2.1)}
    assert not budget.breaches({})


@pytest.mark.parametrize("kind", ["learn", "retain"])
@pytest.mark.parametrize("metric", ["exact", "nats_per_token"])
def test_a_change_has_the_sign_of_its_kind_and_an_interval(kind: str, metric: str) -> None:
    before, now = [0.0, 0.0, 1.0, 0.0, 0.0, 1.0], [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    measured = Measured({metric: ratio(now)}, [], [], [], {})
    numbers, change = changes_since(f"{kind}/a", {metric: ratio(before)}, measured, metric)
    more_is_better = metric == "exact"
    expected = 2 / 6 if more_is_better == (kind == "learn") else -2 / 6
    name = {"learn": "learned/a", "retain": "forget/a"}[kind]
    assert change is not None
    assert numbers[name] == change.value == pytest.approx(expected)
    assert change.low < change.value < change.high
    assert numbers[f"{name}.stderr"] == change.stderr


def test_a_set_that_gives_no_number_any_more_has_been_forgotten() -> None:
    """Its interval is no interval, so that a bound could not be judged by it."""
    before, gone = ratio([1.0, 2.0, 3.0]), Measured({"nats_per_token": ratio([1.0, np.nan, 3.0])}, [], [], [], {})
    numbers, change = changes_since("retain/old", {"nats_per_token": before}, gone, "nats_per_token")
    budget = ForgettingBudget("old<=0.1", None, 1)
    budget.check(["old"])
    assert change is not None
    assert [str(breach) for breach in budget.breaches({"retain/old": change})] == [
        "old gives no number any more, over old<=0.1"
    ]
    assert np.isnan(numbers["forget/old"])
    # what the base gave no number for cannot be judged, and is said at the start
    _, change = changes_since("retain/old", gone.ratios, gone, "nats_per_token")
    assert change is not None
    assert not budget.breaches({"retain/old": change})
    assert budget.without_interval({"retain/old": change}) == budget.without_interval({}) == ["old"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("old<=", None, 2), r"forgetting.budget = 'old<=': 'old<='"),
        (("old<=x", None, 2), r"forgetting.budget = 'old<=x': 'x' of old: expected a number"),
        (("old>=0.1", None, 2), r"old>=0.1: expected NAME<=NUMBER"),
        (("old<=-0.1", None, 2), r"old<=-0.1: expected a number of at least 0"),
        ((None, "warn", 2), r"on_breach = warn: expected forgetting.budget too"),
        (("old<=1", None, 0), r"every_n_steps = 0: nothing is measured between start and end"),
    ],
)
def test_a_budget_that_could_never_act_is_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ForgettingBudget(*arguments)


MISTAKES = [
    (["--forgetting.budget=older<=0.1"], "forgetting.budget: older<=0.1: no such set; expected one of old"),
    (["--forgetting.budget=old<=1", "--trainer.min_steps=5"], "trainer.min_steps = 5 with forgetting.budget"),
    (["--checkpoint.best={most: learn/newer}"], "learn/newer: no watched task gives it; expected one of learn/new"),
    (["--checkpoint.best={least: learn/new}", "--run.save_model=false"], "expected a model to be saved"),
    (
        ["--checkpoint.best={least: learn/new}", "--forgetting.budget=old<=1", "--forgetting.on_breach=rollback"],
        "both choose the model of an earlier step",
    ),
    (
        ["--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: forget/odl}}"],
        "EarlyStopping monitors 'forget/odl', which nothing logs; expected one of forget/old",
    ),
]


@pytest.mark.parametrize(
    ("options", "message"), [MISTAKES[0], *(pytest.param(*mistake, marks=pytest.mark.slow) for mistake in MISTAKES[1:])]
)
def test_a_mistake_ends_before_anything_is_written(
    options: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(arguments(tmp_path, f"--model.checkpoint_dir={base}", *OPTIONS, *options, data="SFTData"))
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists() or RunFolder(tmp_path / "run").is_empty


# -------------------- what it does


def test_a_budget_that_holds_changes_nothing_and_a_breach_can_be_only_told(
    base: Path, plain: RunFolder, tmp_path: Path
) -> None:
    folder, record = run(tmp_path, base, "--forgetting.budget=old<=0.35", "--forgetting.on_breach=warn")
    assert equal(weights(folder.model), weights(plain.model))
    assert list(record["budget"]["breaches"]) == ["6", "8"]
    assert "stopped_at" not in record["budget"]
    used = {line["step"]: line["budget/old"] for line in folder.read_metrics() if "budget/old" in line}
    assert used == {step: pytest.approx(value / 0.35) for step, value in forgotten(plain).items()}


def killed_at_its_end(folder: RunFolder) -> dict[str, Any]:
    """As if the run had been killed when its last checkpoint was written; what its record said."""
    record = folder.read_record()
    folder.write_record({**record, "status": "running"})
    for path in (folder.model, folder.last, folder.last_measured, folder.last_step_measured):
        shutil.rmtree(path, ignore_errors=True)
    return record


def end(folder: RunFolder) -> dict[str, Any]:
    """What must be the same after a break: record, items, lines."""
    record = folder.read_record()
    keys = ("status", "steps", "budget", "kept_model", "final_metrics", "last_metrics", "judged_by")
    items = {path.name: path.read_text() for path in sorted(folder.last_measured.rglob("*.jsonl"))}
    return {**{key: record.get(key) for key in keys}, "items": items, "forgotten": forgotten(folder)}


@pytest.mark.slow
@pytest.mark.slow
def test_a_breach_ends_the_run_and_another_budget_continues_it(base: Path, plain: RunFolder, tmp_path: Path) -> None:
    folder, record = run(tmp_path, base, "--forgetting.budget=old<=0.25")
    assert (record["status"], record["budget"]["stopped_at"], max(forgotten(folder))) == ("finished", 4, 4)
    assert read_provenance(folder.model).steps == 4  # type: ignore[union-attr]
    # the same budget has nothing left to do but an end that was not made
    expected, model = end(folder), weights(folder.model)
    assert expected["items"]
    killed_at_its_end(folder)
    run(tmp_path, base, "--forgetting.budget=old<=0.25", "--ckpt_path=auto")
    assert end(folder) == expected
    assert equal(weights(folder.model), model)
    run(tmp_path, base, "--forgetting.budget=old<=0.25", "--ckpt_path=auto")
    assert max(forgotten(folder)) == 4
    # a wider one goes on to the same end
    _, record = run(tmp_path, base, "--forgetting.budget=old<=9", "--ckpt_path=auto")
    assert record["budget"] == {"bounds": ["old<=9"], "on_breach": "stop", "breaches": {}}
    assert equal(weights(folder.model), weights(plain.model))
    assert forgotten(folder) == forgotten(plain)


def test_a_rollback_takes_the_last_model_within_the_budget(base: Path, tmp_path: Path) -> None:
    rollback = ["--forgetting.on_breach=rollback"]
    folder, record = run(tmp_path, base, "--forgetting.budget=old<=0.35", *rollback)
    assert (record["budget"]["stopped_at"], record["kept_model"]["step"]) == (6, 4)
    assert [read_provenance(path).steps for path in (folder.model, folder.last)] == [4, 6]  # type: ignore[union-attr]
    # the numbers and items of the run are those of its model
    numbers = read_provenance(folder.model).final_metrics  # type: ignore[union-attr]
    (kept,) = (r for r in read_results(folder.last_measured) if r.task == "old")
    assert numbers["forget/old"] == record["final_metrics"]["forget/old"] == forgotten(folder)[4]
    assert record["last_metrics"]["forget/old"] == forgotten(folder)[6]
    assert kept.metrics[kept.metric]["value"] == numbers["retain/old"]
    (last,) = (r for r in read_results(folder.last_step_measured) if r.task == "old")
    assert last.metrics[last.metric]["value"] == record["last_metrics"]["retain/old"]
    load_model(folder.model, "cpu")


@pytest.mark.slow
def test_a_rollback_survives_a_kill_at_its_end_and_goes_when_the_run_goes_on(base: Path, tmp_path: Path) -> None:
    rollback = ["--forgetting.on_breach=rollback"]
    folder, _ = run(tmp_path, base, "--forgetting.budget=old<=0.35", *rollback)
    short = tmp_path / "short"
    fit(short, *OPTIONS, "--trainer.max_steps=4", base=base, data="SFTData")
    assert equal(weights(folder.model), weights(RunFolder(short / "run").model))
    expected, model = end(folder), weights(folder.model)
    killed_at_its_end(folder)
    run(tmp_path, base, "--forgetting.budget=old<=0.35", *rollback, "--ckpt_path=auto")
    assert end(folder) == expected
    assert equal(weights(folder.model), model)
    run(tmp_path, base, "--forgetting.budget=old<=9", *rollback, "--ckpt_path=auto")
    assert read_provenance(folder.model).steps == 8  # type: ignore[union-attr]
    assert not folder.last.exists()
    assert not folder.last_step_measured.exists()


class Die(Callback):
    """Break off in a step, as a kill does."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.step - 1:
            raise KeyboardInterrupt


def broken(root: Path, base: Path, step: int, *extra: str) -> None:
    """A run that is killed in a step."""
    cli = build(arguments(root, f"--model.checkpoint_dir={base}", *OPTIONS, *extra, data="SFTData"))
    cli.trainer.callbacks.insert(0, Die(step))  # type: ignore[attr-defined]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cli.execute()


@pytest.mark.slow
def test_the_best_step_within_bounds_is_the_model_also_after_a_break(base: Path, tmp_path: Path) -> None:
    best = '--checkpoint.best={most: learned/new, while: "forget/*<=0.4"}'
    folder, record = run(tmp_path / "straight", base, best)
    learned = {line["step"]: line["learned/new"] for line in folder.read_metrics() if "learned/new" in line}
    allowed = {step: value for step, value in learned.items() if forgotten(folder)[step] < 0.4}
    assert record["kept_model"]["step"] == max(allowed, key=allowed.__getitem__) < 8
    broken(tmp_path / "broken", base, 8, best)
    again, _ = run(tmp_path / "broken", base, best, "--ckpt_path=auto")
    assert end(again) == end(folder)
    assert equal(weights(again.model), weights(folder.model))
    assert equal(weights(again.last), weights(folder.last))


@pytest.mark.slow
def test_the_best_that_a_checkpoint_knows_is_not_lost_to_one_that_it_does_not(base: Path, tmp_path: Path) -> None:
    """Killed behind step 4, better than step 2; the checkpoint is of step 3, and step 4 is not measured again."""
    best = '--checkpoint.best={most: learned/new, while: "forget/*<=0.4"}'
    broken(tmp_path, base, 6, best)
    assert sorted(path.name for path in RunFolder(tmp_path / "run").kept.iterdir()) == [
        "step-00000002",
        "step-00000004",
    ]
    folder, record = run(tmp_path, base, best, "--forgetting.every_n_steps=7", "--ckpt_path=auto")
    assert record["kept_model"]["step"] == 2 == read_provenance(folder.model).steps  # type: ignore[union-attr]
    short = tmp_path / "short"
    fit(short, *OPTIONS, "--trainer.max_steps=2", base=base, data="SFTData")
    assert equal(weights(folder.model), weights(RunFolder(short / "run").model))


@pytest.mark.slow
def test_breaches_that_are_only_told_are_remembered(base: Path, tmp_path: Path) -> None:
    warn = ["--forgetting.budget=old<=0.25", "--forgetting.on_breach=warn"]
    broken(tmp_path, base, 8, *warn)
    _, record = run(tmp_path, base, *warn, "--ckpt_path=auto")
    assert list(record["budget"]["breaches"]) == ["4", "6", "8"]


@pytest.mark.slow
def test_the_base_is_kept_where_every_step_is_worse(base: Path, tmp_path: Path) -> None:
    folder, record = run(tmp_path, base, '--checkpoint.best={most: learned/new, while: "old<=0.0001"}')
    assert record["kept_model"]["step"] == 0
    assert equal(weights(folder.model), weights(base))


LORA = [
    "--model.method=lit_consistency.methods.LoRA",
    "--model.method.init_args.r=4",
    "--model.optimizer.init_args.lr=0.1",
]


@pytest.mark.slow
def test_adapters_are_rolled_back_too(base: Path, tmp_path: Path) -> None:
    """Of the step that is kept both are, and merging the one gives the other."""
    rollback = ["--forgetting.budget=old<=0.05", "--forgetting.on_breach=rollback"]
    folder, record = run(tmp_path / "both", base, *LORA, *rollback)
    step = record["kept_model"]["step"]
    assert step < record["budget"]["stopped_at"]
    alone, _ = run(tmp_path / "alone", base, *LORA, *rollback, "--run.save_model=adapters")
    assert not alone.model.exists()
    for path in (folder.model, folder.adapters, alone.adapters):
        assert read_provenance(path).steps == step, path  # type: ignore[union-attr]
    a, b = (load_file(run.adapters / TENSORS) for run in (folder, alone))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_two_processes_stop_alike_and_take_back_the_same_model(strategy: str, base: Path, tmp_path: Path) -> None:
    rollback = ["--forgetting.budget=old<=0.35", "--forgetting.on_breach=rollback", "--trainer.precision=64-true"]
    given = [f"--model.checkpoint_dir={base}", *OPTIONS, *rollback]
    process = start(tmp_path / "two", *given, devices=2, strategy=strategy, data="SFTData")
    one, record = run(tmp_path / "one", base, *rollback)
    finish(process)
    two = RunFolder(tmp_path / "two" / "run")
    known = two.read_record()
    assert (known["status"], known["budget"]["stopped_at"], known["kept_model"]["step"]) == ("finished", 6, 4)
    assert [read_provenance(path).steps for path in (two.model, two.last)] == [4, 6]  # type: ignore[union-attr]
    assert largest_difference(weights(two.model), weights(one.model)) < 1e-9
    assert known["final_metrics"]["forget/old"] == pytest.approx(record["final_metrics"]["forget/old"], abs=1e-7)


# -------------------- callbacks of Lightning


@pytest.mark.slow
def test_lightnings_callbacks_stop_and_save_by_what_is_forgotten(base: Path, tmp_path: Path) -> None:
    options = arguments(tmp_path, f"--model.checkpoint_dir={base}", *OPTIONS, data="SFTData")
    held_out = '{"class_path": "lit_consistency.data.worlds.WorldRows", "init_args": {"task": "new_chain"}}'
    options += [f"--data.init_args.validation={held_out}", "--trainer.limit_val_batches=1"]
    cli = build([*options, "--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"])
    saved = ModelCheckpoint(tmp_path / "best", monitor="forget/old", mode="min", save_top_k=1)
    stop = EarlyStopping("forget/old", mode="min", patience=1, check_on_train_epoch_end=False)
    cli.trainer.callbacks += [stop, saved]  # type: ignore[attr-defined]
    cli.execute()
    # validated at steps 1 and 2, which see what was measured at steps 0 and 2
    assert cli.trainer.global_step == 2
    assert float(saved.best_model_score) == forgotten(RunFolder(tmp_path / "run"))[0] == 0  # type: ignore[arg-type]
