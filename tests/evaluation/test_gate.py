"""Ship or not: bounds on paired differences, and the number of items that it would take."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import NormalDist

import numpy as np
import pytest
from scipy import stats

from lit_consistency.__main__ import main
from lit_consistency.evaluation.gate import read_gate
from lit_consistency.records.results import Result, write_result
from lit_consistency.stats.bounds import Bound, n_to_tell
from lit_consistency.stats.intervals import Estimate


def measured(folder: Path, task: str, nats: np.ndarray, n_clusters: int | None = None) -> None:
    """A text task as ``evaluate`` leaves it; every item of weight 1, in clusters of equal size where there are some."""
    metrics = {"nats_per_token": {"value": float(nats.mean()), "stderr": 0.0, "low": 0.0, "high": 0.0}}
    result = Result(task, "text", "none", 0, len(nats), metrics, {}, {}, [], 0, "")
    records = [
        {"id": f"{i}+0", "group": None, "cluster": f"c{i % n_clusters}" if n_clusters else f"{i}", "score": float(x)}
        | {"weight": 1.0, "gold": 0, "shot_ids": []}
        for i, x in enumerate(nats)
    ]
    write_result(folder, result, records)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Of ``kept`` each of 100 items loses 0.01 nats, and a little noise; of ``lost`` 0.5; ``told`` gains 0.2."""
    noise = np.random.default_rng(0).normal(size=100)
    noise = (noise - noise.mean()) / noise.std(ddof=1)  # so that the mean and its error are known: 0 and 1 / 10
    base = np.linspace(1, 2, 100)
    for task, change, spread in (("kept", 0.01, 0.02), ("lost", 0.5, 0.1), ("told", -0.2, 0.3), ("noisy", 0.01, 0.5)):
        measured(tmp_path / "base", task, base)
        measured(tmp_path / "tuned", task, base + change + spread * noise)
    return tmp_path / "base", tmp_path / "tuned"


def run(folders: tuple[Path, Path], gate: str, *more: str) -> tuple[int, dict[str, list[dict[str, object]]]]:
    file = folders[0].parent / "gate.yaml"
    file.write_text(gate)
    status = 0
    try:
        main(["evaluate", "--compare", *map(str, folders), "--gate", str(file), *more])
    except SystemExit as stop:
        status = int(str(stop.code))
    where = Path(more[more.index("--output") + 1]) if "--output" in more else folders[1]
    return status, json.loads((where / "gate.json").read_text())


def test_exit_status_says_whether_to_ship(
    folders: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = run(folders, "kept: {not_worse: 0.05}\ntold: {better: 0.1, not_worse: 0}\n")
    assert status == 0
    assert [bound["verdict"] for bound in said["bounds"]] == ["kept"] * 3
    assert "verdict: ship" in capsys.readouterr().out
    status, said = run(folders, "noisy: {not_worse: 0.05}\nlost: {not_worse: 0.05}\n", "--output", str(tmp_path / "ci"))
    assert (status, said["exit_status"]) == (3, 3), "one that is breached is enough, whatever cannot be told"
    assert "do not ship" in capsys.readouterr().out
    status, _ = run(folders, "'*e*': {not_worse: 0.05}\n")
    assert status == 0, "a pattern speaks of kept alone"


def test_what_cannot_be_told_names_the_items_that_it_would_take(
    folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """100 items whose differences have mean 0.01 and deviation 0.5: Student's interval, and Cohen's formula."""
    status, said = run(folders, "noisy: {not_worse: 0.05}\n")
    (bound,) = said["bounds"]
    half = stats.t.ppf(0.975, 99) * 0.5 / 10
    assert status == 4
    change = bound["better_by"]
    assert isinstance(change, dict)
    assert (change["value"], change["low"]) == (pytest.approx(-0.01), pytest.approx(-0.01 - half, rel=0.02))
    spread = (change["high"] - change["low"]) / 2 * 10 / NormalDist().inv_cdf(0.975)
    expected = ((NormalDist().inv_cdf(0.975) + NormalDist().inv_cdf(0.8)) * spread / 0.04) ** 2
    assert (bound["n_needed"], bound["n_needed_of"]) == (pytest.approx(expected, abs=1), "items")
    assert 1230 < expected < 1330  # (2.8016 * 0.5 / 0.04)^2 = 1226 with the normal's interval
    assert f"cannot be told with 100 items; it would take about {bound['n_needed']:,}" in capsys.readouterr().out


def test_the_number_is_the_one_by_hand() -> None:
    """s = 0.02, 0.03 from the bound: 100 (2.80159 * 0.02 / 0.03)^2 = 348.84."""
    change = Estimate(0.01, 0.02, 0.01 - 1.959964 * 0.02, 0.01 + 1.959964 * 0.02)
    assert n_to_tell(Bound("a", ">=", -0.02), change, 100) == 349
    assert n_to_tell(Bound("a", ">=", 0.01), change, 100) is None, "on the bound no number is enough"
    assert n_to_tell(Bound("a", ">=", 0.0), Estimate(0.1, *[float("nan")] * 3), 1) is None


def test_clusters_are_counted_where_items_belong_together(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    measured(tmp_path / "base", "told", np.ones(60), n_clusters=12)
    measured(tmp_path / "tuned", "told", 1 + rng.normal(size=12)[np.arange(60) % 12], n_clusters=12)
    status, said = run((tmp_path / "base", tmp_path / "tuned"), "told: {not_worse: 0.5}\n")
    (bound,) = said["bounds"]
    assert (status, bound["n"], bound["n_clusters"], bound["n_needed_of"]) == (4, 60, 12, "clusters")


WRONG = {
    "other: {not_worse: 0.1}": "gate: other: was not measured; expected one of kept, lost, noisy, told",
    "kept: {not_worse: }": "kept.not_worse = None: expected a number of at least 0",
    "kept: {better: -0.1}": "kept.better = -0.1: expected a number",
    "kept: {not_wrose: 0.1}": "kept.not_wrose: no such key",
    "kept: {metric: nats_per_token}": "kept: no bound",
    "kept: {not_worse: 0.1, metric: sharpness}": "kept.metric 'sharpness': expected one of",
    "kept: {not_worse: 0.1, metric: accuracy}": "metric 'accuracy': its items do not tell it; expected nats_per_token",
    "kept: 0.1": "kept: 0.1: expected TASK",
    "kept: {not_worse: 0.1}\nkept: {better: 0.1}": "kept stands twice, in lines 1 and 2",
    "[kept]": "list: expected TASK",
}


@pytest.mark.parametrize("gate", WRONG)
def test_a_wrong_gate_is_refused_by_name(
    gate: str, folders: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = folders[0].parent / "gate.yaml"
    file.write_text(gate)
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--compare", *map(str, folders), "--gate", str(file)])
    assert stop.value.code == 2
    assert WRONG[gate] in capsys.readouterr().err
    assert not (folders[1] / "gate.json").exists()


def test_a_task_of_one_folder_alone_is_named(folders: tuple[Path, Path], tmp_path: Path) -> None:
    measured(folders[1], "alone", np.ones(5))
    file = tmp_path / "gate.yaml"
    file.write_text("alone: {not_worse: 0.1}")
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", "--compare", *map(str, folders), "--gate", str(file)])
    assert stop.value.code == 2
    assert read_gate(file)[0].bound == Bound("alone", ">=", -0.1)


def test_the_loss_of_answers_is_told_by_their_items(tmp_path: Path) -> None:
    """A task at its ceiling, judged by ``exact``: the loss shows the first forgetting. 20 answers of 1 or 3 tokens."""
    for side, nats in (("base", 0.1), ("tuned", 0.4)):
        numbers = {"value": 1.0, "stderr": 0.0, "low": 0.0, "high": 1.0}
        metrics = {"exact": dict(numbers), "nats_per_token": dict(numbers)}
        result = Result("facts", "completion", "default", 0, 20, metrics, {}, {}, [], 0, "")
        common: dict[str, object] = {
            "group": None,
            "cluster": "",
            "score": 1.0,
            "weight": 1.0,
            "exact": 1.0,
            "shot_ids": [],
        }
        sizes = [1 + 2 * (i % 2) for i in range(20)]
        records = [
            {"id": str(i), **common, "log_likelihoods": [-nats * (1 + i % 3 / 10) * n], "n_tokens": [n]}
            for i, n in enumerate(sizes)
        ]
        write_result(tmp_path / side, result, records)
    folders = tmp_path / "base", tmp_path / "tuned"
    status, said = run(folders, "facts: {not_worse: 0.1, metric: nats_per_token}\n")
    (bound,) = said["bounds"]
    lengths = np.array([1 + 2 * (i % 2) for i in range(20)])
    expected = float((0.3 * (1 + np.arange(20) % 3 / 10) * lengths).sum() / lengths.sum())
    assert status == 3
    assert isinstance(bound["better_by"], dict)
    assert bound["better_by"]["value"] == pytest.approx(-expected)
    assert run(folders, "facts: {not_worse: 0.2}\n")[0] in (0, 4)
