from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.callbacks import Forgetting
from lit_consistency.callbacks.summary_table import Measurement
from lit_consistency.cli.fit import ConsistencyCLI
from tests.runs import WORLD, fit

SETS = json.dumps(
    {
        "old": {
            "class_path": "lit_consistency.tasks.ChainSet",
            "init_args": {"world": json.loads(WORLD), "max_documents": 12},
        }
    }
)
NEW = json.dumps(
    {
        "new": {
            "class_path": "lit_consistency.tasks.RowSet",
            "init_args": {
                "rows": {
                    "class_path": "lit_consistency.data.worlds.WorldRows",
                    "init_args": {"world": json.loads(WORLD), "task": "new_chain", "split": "test"},
                },
                "max_rows": 12,
            },
        }
    }
)


def watched(root: Path, *extra: str, **options: Any) -> ConsistencyCLI:
    return fit(root, f"--forgetting.retain.sets={SETS}", f"--forgetting.learn.sets={NEW}", *extra, **options)


def callback(cli: ConsistencyCLI) -> Forgetting:
    return next(c for c in cli.trainer.callbacks if isinstance(c, Forgetting))


def lines(root: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in found if "retain/old" in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base that has learned the old chains a little, finetuned on a new one."""
    root = tmp_path_factory.mktemp("forgetting")
    longer = ["--trainer.max_steps=60", "--trainer.max_epochs=10", "--model.optimizer.init_args.lr=0.01"]
    fit(root / "base", *longer)
    watched(
        root / "sft",
        "--forgetting.every_n_steps=10",
        "--trainer.max_steps=40",
        "--trainer.max_epochs=40",
        "--model.optimizer.init_args.lr=0.01",
        base=root / "base" / "run" / "model",
        data="SFTData",
    )
    return root / "sft"


def test_measured_at_step_0_and_every_k_steps(trained: Path) -> None:
    assert [line["step"] for line in lines(trained)] == [0, 10, 20, 30, 40]


def test_the_new_task_is_learned_and_the_old_one_forgotten(trained: Path) -> None:
    first, last = lines(trained)[0], lines(trained)[-1]
    assert last["learn/new"] < first["learn/new"]
    assert last["forget/old"] > 0


def test_forgetting_is_the_rise_over_step_0(trained: Path) -> None:
    first = lines(trained)[0]
    assert first["forget/old"] == 0.0
    for line in lines(trained):
        assert line["forget/old"] == pytest.approx(line["retain/old"] - first["retain/old"])


def test_at_step_0_nothing_has_moved(trained: Path) -> None:
    first, last = lines(trained)[0], lines(trained)[-1]
    assert (first["distance/all"], first["moved/all"], first["kl_to_base"]) == (0.0, 0.0, 0.0)
    assert last["distance/all"] > 0
    assert 0 < last["moved/all"] <= 1
    assert last["kl_to_base"] > 0


def test_step_0_equals_the_base_measured_alone(trained: Path, tmp_path: Path) -> None:
    """A run of no consequence on the same base gives the same numbers, also for another number of tokens at once."""
    base = trained.parent / "base" / "run" / "model"
    alone = ["--trainer.max_steps=1", "--forgetting.batch_tokens=64"]
    watched(tmp_path, *alone, base=base, data="SFTData")
    found, expected = lines(tmp_path)[0], lines(trained)[0]
    for key in ("learn/new", "retain/old"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)


def test_the_base_is_that_of_the_first_part_after_a_resume(trained: Path, tmp_path: Path) -> None:
    base = trained.parent / "base" / "run" / "model"
    more = ["--checkpoint.every_n_steps=2", "--trainer.max_steps=4"]
    first = callback(watched(tmp_path, *more, base=base, data="SFTData")).base
    newest = sorted((tmp_path / "run" / "checkpoints").glob("*.ckpt"))[0]
    second = callback(watched(tmp_path, *more, f"--ckpt_path={newest}", base=base, data="SFTData")).base
    assert second == first


@pytest.mark.parametrize(("metric", "now", "worse"), [("loss", 3.0, 1.0), ("accuracy", 1.5, 0.5), ("kl", 1.0, -1.0)])
def test_positive_is_worse(metric: str, now: float, worse: float) -> None:
    assert Measurement("retain", "task", metric, 2.0, now).worse == worse


@pytest.mark.parametrize("option", ["every_n_steps", "batch_tokens", "kl_positions", "time_budget"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} = -1"):
        Forgetting(**{option: -1})
