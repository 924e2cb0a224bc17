"""A forgetting budget acts on intervals; the model that a run keeps is the one whose numbers it says it keeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from lit_consistency.callbacks.budget import ForgettingBudget
from lit_consistency.callbacks.changes import changes_since
from lit_consistency.callbacks.kept_model import BestRule
from lit_consistency.callbacks.monitors import check_monitors
from lit_consistency.cli.fit import build
from lit_consistency.inference.load import load_model
from lit_consistency.records.provenance import read_provenance
from lit_consistency.records.results import read_results
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.stats.intervals import Estimate, ratio
from lit_consistency.tasks.measured import Measured
from tests.runs import WORLD, arguments, equal, fit, weights

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--forgetting.budget=older<=0.1"], "forgetting.budget: older<=0.1: no such set; expected one of old"),
        (["--forgetting.budget=old<="], "forgetting.budget = 'old<=': 'old<='"),
        (["--forgetting.budget=old>=0.1"], "old>=0.1: expected NAME<=NUMBER"),
        (["--forgetting.on_breach=warn"], "on_breach = warn: expected forgetting.budget too"),
        (["--forgetting.budget=old<=1", "--forgetting.every_n_steps=0"], "every_n_steps = 0: nothing is measured"),
        (["--checkpoint.best={most: learn/newer}"], "learn/newer: no watched task gives it; expected one of learn/new"),
        (["--checkpoint.best={best: learn/new}"], "checkpoint.best = {'best': 'learn/new'}: expected"),
        (["--checkpoint.best={most: learn/new, while: nothing<=1}"], "checkpoint.best.while: nothing<=1: no such set"),
        (["--checkpoint.best={least: learn/new}", "--run.save_model=false"], "expected a model to be saved"),
        (
            ["--checkpoint.best={least: learn/new}", "--forgetting.budget=old<=1", "--forgetting.on_breach=rollback"],
            "both choose the model of an earlier step",
        ),
    ],
)
def test_what_could_never_act_is_refused_before_training(
    options: list[str], message: str, base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises((ValueError, SystemExit)) as error:
        run(tmp_path, base, *options)
    assert message in str(error.value) + capsys.readouterr().err
    assert not RunFolder(tmp_path / "run").read_metrics()


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


def test_a_breach_ends_the_run_and_another_budget_continues_it(base: Path, plain: RunFolder, tmp_path: Path) -> None:
    folder, record = run(tmp_path, base, "--forgetting.budget=old<=0.25")
    assert (record["status"], record["budget"]["stopped_at"], max(forgotten(folder))) == ("finished", 4, 4)
    assert read_provenance(folder.model).steps == 4  # type: ignore[union-attr]
    # the same budget has nothing left to do, a wider one goes on to the same end
    run(tmp_path, base, "--forgetting.budget=old<=0.25", "--ckpt_path=auto")
    assert max(forgotten(folder)) == 4
    _, record = run(tmp_path, base, "--forgetting.budget=old<=9", "--ckpt_path=auto")
    assert "stopped_at" not in record.get("budget", {})
    assert equal(weights(folder.model), weights(plain.model))
    assert forgotten(folder) == forgotten(plain)


def test_a_rollback_takes_the_last_model_within_the_budget(base: Path, tmp_path: Path) -> None:
    folder, record = run(tmp_path, base, "--forgetting.budget=old<=0.35", "--forgetting.on_breach=rollback")
    assert (record["budget"]["stopped_at"], record["kept_model"]["step"]) == (6, 4)
    assert [read_provenance(path).steps for path in (folder.model, folder.last)] == [4, 6]  # type: ignore[union-attr]
    # the run's model is the one whose numbers stand beside it
    numbers = read_provenance(folder.model).final_metrics  # type: ignore[union-attr]
    (kept,) = (r for r in read_results(folder.model_measured) if r.task == "old")
    assert numbers["forget/old"] == record["kept_model"]["numbers"]["forget/old"] == forgotten(folder)[4]
    assert kept.metrics[kept.metric]["value"] == numbers["retain/old"]
    short = tmp_path / "short"
    fit(short, *OPTIONS, "--trainer.max_steps=4", base=base, data="SFTData")
    assert equal(weights(folder.model), weights(RunFolder(short / "run").model))
    load_model(folder.model, "cpu")


class Die(Callback):
    """Break off behind the checkpoint of step 6, as a kill does."""

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            raise KeyboardInterrupt


@pytest.mark.slow
def test_the_best_step_within_bounds_is_the_model_also_after_a_break(base: Path, tmp_path: Path) -> None:
    best = '--checkpoint.best={most: learned/new, while: "forget/*<=0.4"}'
    folder, record = run(tmp_path / "straight", base, best)
    learned = {line["step"]: line["learned/new"] for line in folder.read_metrics() if "learned/new" in line}
    allowed = {step: value for step, value in learned.items() if forgotten(folder)[step] < 0.4}
    assert record["kept_model"]["step"] == max(allowed, key=allowed.__getitem__) < 8
    cli = build(arguments(tmp_path / "broken", f"--model.checkpoint_dir={base}", *OPTIONS, best, data="SFTData"))
    cli.trainer.callbacks.insert(0, Die())  # type: ignore[attr-defined]
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        cli.execute()
    again, record_again = run(tmp_path / "broken", base, best, "--ckpt_path=auto")
    assert record_again["kept_model"] == record["kept_model"]
    assert equal(weights(again.model), weights(folder.model))
    assert equal(weights(again.last), weights(folder.last))


@pytest.mark.slow
def test_the_base_is_kept_where_every_step_is_worse(base: Path, tmp_path: Path) -> None:
    folder, record = run(tmp_path, base, '--checkpoint.best={least: learn/new, while: "old<=0.0001"}')
    assert record["kept_model"]["step"] == 0
    assert equal(weights(folder.model), weights(base))


def test_a_best_rule_knows_more_from_less() -> None:
    within = Estimate(0.0, 0.01, -0.02, 0.02)
    for key, sign in (("most", 1), ("least", -1)):
        rule = BestRule({key: "learn/new", "while": "old<=0.1"})
        rule.check({"learn/new": ("exact",), "retain/old": ("exact",)})
        assert rule.value({"learn/new": 0.5}, {"retain/old": within}) == sign * 0.5
        assert rule.value({"learn/new": 0.5}, changed(0.2, 0.3)) == float("-inf")
        assert rule.value({"learn/new": float("nan")}, {"retain/old": within}) == float("-inf")


# -------------------- callbacks of Lightning


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


def test_a_monitor_that_nobody_logs_is_refused_before_training(base: Path, tmp_path: Path) -> None:
    stop = "--trainer.callbacks={class_path: EarlyStopping, init_args: {monitor: forget/odl}}"
    with pytest.raises(ValueError, match=r"EarlyStopping monitors 'forget/odl', which nothing logs; .*forget/old"):
        run(tmp_path, base, stop)
    trainer = Trainer(logger=False, enable_checkpointing=False, callbacks=[EarlyStopping("own/number")])
    trainer.callbacks.append(Die())  # type: ignore[attr-defined]
    trainer.datamodule = object()  # type: ignore[attr-defined]
    with pytest.warns(UserWarning, match="or a number of your own callbacks"):
        check_monitors(trainer, {"retain/old": ("exact",)})
