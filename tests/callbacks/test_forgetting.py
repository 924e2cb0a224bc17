"""What was learned and forgotten in a run: against step 0, with errors, the same after a resume."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lit_consistency.callbacks import Forgetting
from lit_consistency.callbacks.summary_table import Measurement
from lit_consistency.cli.fit import ConsistencyCLI
from lit_consistency.data.worlds import MarkovChains
from lit_consistency.evaluation.compare import compare_folders
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import load_model
from lit_consistency.records.results import higher_is_better, read_items, read_results
from lit_consistency.stats.intervals import paired_difference, ratio
from lit_consistency.tasks import WatchedTask
from tests.reference.scores import chain_kl
from tests.runs import ROOT, WORLD, equal, fit, weights
from tests.tasks.tiny import NLI, nli_rows, write_lines, write_task

CHAINS = f"{ROOT}/configs/evaluation/markov.yaml"
ASKED = {"world": json.loads(WORLD), "limit": 12}
OLD = {"old": {"task": f"{CHAINS}/old", **ASKED}, "next": {**ASKED, "task": None}}
OLD["next"]["task"] = {
    "kind": "completion",
    "metrics": ["nats_per_token", "exact"],
    "data": {"world": json.loads(WORLD), "probes": "old"},
    "fields": {"": "{prompt}"},
    "answer_heading": "",
    "completion": "{answer}",
    "cluster": "{chain}",
}
SETS = [f"--forgetting.retain={json.dumps(OLD)}"]
SETS += [f"--forgetting.learn={json.dumps({'new': {'task': f'{CHAINS}/new', **ASKED}})}"]


def callback(cli: ConsistencyCLI) -> Forgetting:
    return next(c for c in cli.trainer.callbacks if isinstance(c, Forgetting))


def lines(root: Path) -> list[dict[str, Any]]:
    every = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    return [line for line in every if "retain/old" in line]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Forgetting]:
    """A base that has learned the old chains a little, finetuned on a new one."""
    root = tmp_path_factory.mktemp("forgetting")
    longer = ["--trainer.max_steps=40", "--trainer.max_epochs=10", "--model.optimizer.init_args.lr=0.01"]
    fit(root / "base", *longer)
    cli = fit(
        root / "sft",
        *SETS,
        "--forgetting.every_n_steps=10",
        "--trainer.max_steps=20",
        "--trainer.max_epochs=40",
        "--model.optimizer.init_args.lr=0.01",
        base=root / "base" / "run" / "model",
        data="SFTData",
    )
    return root / "sft", callback(cli)


def test_every_metric_has_its_number_its_error_and_its_change(trained: tuple[Path, Forgetting]) -> None:
    first, last = lines(trained[0])[0], lines(trained[0])[-1]
    assert [line["step"] for line in lines(trained[0])] == [0, 10, 20]
    for key, change, metrics in (
        ("learn/new", "learned/new", ["kl", "nats_per_token"]),
        ("retain/old", "forget/old", ["kl", "nats_per_token"]),
        ("retain/next", "forget/next", ["nats_per_token", "exact"]),
    ):
        for metric in metrics:
            value, error = ("", ".stderr") if metric == metrics[0] else (f".{metric}", f".{metric}_stderr")
            assert last[key + error] > 0 or metric == "exact"
            worse = last[key + value] - first[key + value]
            gained = worse if higher_is_better(metric) else -worse
            assert last[change + value] == pytest.approx(gained if change.startswith("learned") else -gained), metric
            assert last[change + error] > 0 or metric == "exact"
            assert (first[change + value], first[change + error]) == (0.0, 0.0)
    assert last["learned/new"] > 0
    assert last["forget/old"] > 0
    assert not any(name.startswith("retained/") for name in last), "a share of a loss says nothing"


def test_the_divergence_of_the_old_chains_is_that_of_one_symbol_after_the_other(
    trained: tuple[Path, Forgetting],
) -> None:
    model = load_model(trained[0] / "run" / "model", "cpu").model
    encoded = trained[1]._tasks["retain/old"].encoded
    texts = [question.labels[0] for question in encoded.questions]
    with evaluation_mode(model):
        expected = chain_kl(model, MarkovChains(**json.loads(WORLD)["init_args"]), texts)
    assert lines(trained[0])[-1]["retain/old"] == pytest.approx(expected, rel=1e-5)


def test_at_step_0_nothing_has_moved(trained: tuple[Path, Forgetting]) -> None:
    first, last = lines(trained[0])[0], lines(trained[0])[-1]
    assert (first["distance/all"], first["moved/all"], first["kl_to_base"]) == (0.0, 0.0, 0.0)
    assert last["distance/all"] > 0
    assert 0 < last["moved/all"] <= 1
    assert last["kl_to_base"] > 0
    assert last["reverse_kl_to_base"] > 0


def test_step_0_equals_the_base_measured_alone(trained: tuple[Path, Forgetting], tmp_path: Path) -> None:
    """A run of no consequence on the same base gives the same numbers, also for another number of tokens at once."""
    base = trained[0].parent / "base" / "run" / "model"
    fit(tmp_path, *SETS, "--trainer.max_steps=1", "--forgetting.batch_tokens=64", base=base, data="SFTData")
    found, expected = lines(tmp_path)[0], lines(trained[0])[0]
    for key in ("learn/new", "retain/old", "retain/next", "retain/old.stderr"):
        assert found[key] == pytest.approx(expected[key], rel=1e-6)


def test_a_resume_compares_with_the_same_base_item_by_item(trained: tuple[Path, Forgetting], tmp_path: Path) -> None:
    base = trained[0].parent / "base" / "run" / "model"
    more = [*SETS, "--checkpoint.every_n_steps=2", "--trainer.max_steps=4"]
    whole = callback(fit(tmp_path / "whole", *more, base=base, data="SFTData"))
    fit(tmp_path / "part", *more, base=base, data="SFTData")
    first_checkpoint = sorted((tmp_path / "part" / "run" / "checkpoints").glob("*.ckpt"))[0]
    assert first_checkpoint.stem.endswith("2")
    resumed = callback(fit(tmp_path / "part", *more, f"--ckpt_path={first_checkpoint}", base=base, data="SFTData"))
    assert resumed.base == whole.base
    assert resumed.latest == pytest.approx(whole.latest, rel=1e-9, abs=1e-12)


def test_a_run_that_watches_equals_one_that_does_not(trained: tuple[Path, Forgetting], tmp_path: Path) -> None:
    base = trained[0].parent / "base" / "run" / "model"
    fit(tmp_path / "with", *SETS, "--forgetting.every_n_steps=1", base=base, data="SFTData")
    fit(tmp_path / "without", base=base, data="SFTData")
    assert equal(*(weights(tmp_path / name / "run" / "model") for name in ("with", "without")))


def test_tensorboard_has_the_numbers_by_group_and_at_the_end(trained: tuple[Path, Forgetting]) -> None:
    events = EventAccumulator(str(trained[0] / "run"))
    events.Reload()
    tags = set(events.Tags()["scalars"])
    assert {"learn/new", "learned/new", "retain/old", "retain/next.exact", "forget/old"} <= tags
    assert {"evaluation/seconds", "final/retain/old", "final/forget/old", "final/reverse_kl_to_base"} <= tags


def test_the_items_of_two_measurements_can_be_compared(trained: tuple[Path, Forgetting], tmp_path: Path) -> None:
    """``write_items`` writes what ``evaluate --compare`` reads; the difference is the ``forget`` of the run."""
    watched = trained[1]
    watched.write_items(tmp_path / "last")
    latest, measured, numbers = watched.latest, dict(watched._measured), lines(trained[0])
    results = {result.task: result for result in read_results(tmp_path / "last")}
    assert results.keys() == {"new", "old", "next"}
    assert results["next"].metrics["nats_per_token"]["value"] == latest["retain/next"]
    for key, ratios in watched._base_items.items():
        watched._measured[key] = measured[key]._replace(ratios=ratios, records=_rescored(measured[key].records, ratios))
    try:
        watched.write_items(tmp_path / "first")
    finally:
        watched._measured.update(measured)
    items = read_items(tmp_path / "last", results["next"].key)
    now = ratio([item["score"] * item["weight"] for item in items], [item["weight"] for item in items])
    base = watched._base_items["retain/next"]["nats_per_token"]
    expected = paired_difference(base, now, [item["cluster"] for item in items])
    assert numbers[-1]["forget/next"] == pytest.approx(expected.value)
    assert numbers[-1]["forget/next.stderr"] == pytest.approx(expected.stderr)
    comparisons, _ = compare_folders(tmp_path / "first", tmp_path / "last", 0)
    differences = {comparison.task: comparison.difference.value for comparison in comparisons}
    assert differences["next"] == pytest.approx(expected.value)
    assert differences["old"] == pytest.approx(numbers[-1]["forget/old"])


def _rescored(records: list[dict[str, Any]], ratios: dict[str, Any]) -> list[dict[str, Any]]:
    judged = next(iter(ratios.values()))
    scores = (judged.numerator.sum(1) / judged.denominator.sum(1)).tolist()
    return [{**record, "score": score} for record, score in zip(records, scores, strict=True)]


# -------------------- options and baselines


@pytest.mark.parametrize(
    ("metric", "now", "worse"), [("nats_per_token", 3.0, 1.0), ("accuracy", 1.5, 0.5), ("kl", 1.0, -1.0)]
)
def test_positive_is_worse(metric: str, now: float, worse: float) -> None:
    assert Measurement("retain", "task", metric, 2.0, now).worse == worse


@pytest.mark.parametrize("option", ["every_n_steps", "batch_tokens", "kl_positions", "time_budget"])
def test_options_out_of_range_are_refused(option: str) -> None:
    with pytest.raises(ValueError, match=f"{option} = -1"):
        Forgetting(**{option: -1})


def test_what_is_wrong_with_a_watched_task_names_its_key(tmp_path: Path) -> None:
    data = str(write_lines(tmp_path / "x.jsonl", nli_rows(2)))
    task = {**NLI, "data": {"path": data}}
    with pytest.raises(ValueError, match=r"forgetting\.retain\.mine: task mine: golds: no such key"):
        Forgetting(retain={"mine": WatchedTask({**task, "golds": "x"})})
    with pytest.raises(FileNotFoundError, match=r"forgetting\.learn\.mine: .*no such file"):
        Forgetting(learn={"mine": WatchedTask("nowhere.yaml")})
    for name in ("", "a/b", "a.b", "a b"):
        with pytest.raises(ValueError, match=r"forgetting\.retain: name"):
            Forgetting(retain={name: WatchedTask(task)})
    with pytest.raises(ValueError, match="mine stands in learn and in retain"):
        Forgetting(learn={"mine": WatchedTask(task)}, retain={"mine": WatchedTask(task)})


def test_a_share_is_given_where_the_base_is_above_all_that_know_nothing(tmp_path: Path) -> None:
    """Of two answers the right one is always the shorter: an untrained model is right, and nothing can be retained."""
    rows = [{"q": f"thing {i}", "a": ["x", "zyxwvu"], "gold": 0} for i in range(12)]
    keys = {"kind": "choice", "fields": {"Q": "{q}"}, "choices": "{a}", "gold": "{gold}"}
    short = {"task": str(write_task(tmp_path / "short.yaml", **keys, data=rows))}
    long = {"task": str(write_task(tmp_path / "long.yaml", **keys, data=[{**row, "gold": 1} for row in rows]))}
    sets = {"short": short, "long": long}
    options = ["--trainer.max_steps=1", f"--forgetting.retain={json.dumps(sets)}"]
    with pytest.warns(UserWarning, match="single_class"):
        watched = callback(fit(tmp_path, *options))
    assert {m.name: m.chance for m in watched.measurements()} == {"short": 1.0, "long": 1.0}, "of the majority"
    assert not any(name.startswith("retained/") for name in watched.latest)
