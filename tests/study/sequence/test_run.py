"""A sequence of tasks through the real commands, in this process; test_runs.py starts real ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_consistency.cli.sequence import parser, plan_of
from lit_consistency.records.results import read_results
from lit_consistency.stats.transfer import backward_transfer, overall_performance
from lit_consistency.study.execute.local import ProcessFailed
from lit_consistency.study.sequence import run as sequence
from lit_consistency.study.sequence.matrix import read_matrices
from lit_consistency.study.sequence.plan import SequencePlan, check_plan
from lit_consistency.tasks.yaml_file import load_tasks
from tests.runs import ROOT, equal, weights
from tests.study.sequence.sequences import Started, commands, configs, run
from tests.tasks.tiny import NLI, nli_rows, write_task


def test_the_matrix_holds_what_every_stage_scores(
    plan: dict[str, Any], started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(plan)
    assert commands(started) == ["evaluate", "fit", "evaluate", "fit", "evaluate"]
    out = Path(plan["output"])
    matrix = read_matrices(out)["default/0"]
    assert (matrix.stages, matrix.tasks) == (["first", "second"], ["first", "second", "prose"])
    assert matrix.metrics == ["accuracy", "accuracy", "-bits_per_byte"]
    runs = ["base", *sorted(path.name for path in (out / "runs").glob("[!.]*"))]
    for row, name in zip(matrix.scores[0], runs, strict=True):
        results = {result.task: result.value for result in read_results(out / "evaluations" / name)}
        assert row == [results["first"], results["second"], -results["prose"]]
    scores = torch.tensor(matrix.scores[0], dtype=torch.float64)
    numbers = found["matrices"]["default/0"]["per_seed"]["0"]
    assert numbers["overall_performance"] == overall_performance(scores)
    assert numbers["backward_transfer"] == backward_transfer(scores)
    assert found["finished"] is True
    assert len((out / "scores.jsonl").read_text().splitlines()) == 9
    shown = capsys.readouterr().out
    for part in ("seed 0, stage 1 of 2, first:", "seed 0, stage 2 of 2, second:", "BWT", "OP (overall performance)"):
        assert part in shown
    assert (out / "matrix.default.0.png").is_file()
    check_stages(plan)


def check_stages(plan: dict[str, Any]) -> None:
    """A stage starts from the one before, and trains on its own task as it was told to."""
    first, second = sorted((Path(plan["output"]) / "runs").glob("[!.]*"))
    records = [json.loads((path / "run.json").read_text()) for path in (first, second)]
    assert [record["base"] for record in records] == [plan["base"], str(first / "model")]
    configs = [yaml.safe_load((path / "config.yaml").read_text()) for path in (first, second)]
    tasks = [config["data"]["init_args"]["rows"]["init_args"]["task"] for config in configs]
    assert tasks == [stage["task"] for stage in plan["stages"]]
    assert configs[0]["model"]["optimizer"]["init_args"]["lr"] == 0.01
    assert not equal(weights(first / "model"), weights(second / "model"))


def test_files_of_fit_cannot_change_what_is_trained_on(plan: dict[str, Any], started: Started, tmp_path: Path) -> None:
    rows = {"class_path": "lit_consistency.data.RowFiles", "init_args": {"path": "elsewhere.jsonl"}}
    world = {"class_path": "lit_consistency.data.worlds.MarkovChains", "init_args": {}}
    others = {"class_path": "lit_consistency.data.worlds.WorldRows"}
    others["init_args"] = {"world": world, "task": "new_chain", "split": "train"}
    for number, other in enumerate((rows, others)):
        data = {"class_path": "lit_consistency.data.SFTData", "init_args": {"rows": other, "packing": False}}
        file = tmp_path / f"{number}.yaml"
        file.write_text(yaml.safe_dump({"data": data}))
        plan["fit"]["config"].append(str(file))
    plan["stages"] = plan["stages"][:1]
    run(plan, "--fit.options.trainer.max_steps=1")
    (folder,) = (Path(plan["output"]) / "runs").glob("[!.]*")
    used = yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"]
    assert used["packing"] is False, "other options of the file count"
    assert used["rows"]["class_path"] == "lit_consistency.tasks.TaskRows"
    assert (used["rows"]["init_args"]["task"], used["rows"]["init_args"]["split"]) == (
        plan["stages"][0]["task"],
        "few_shot",
    )


@pytest.mark.slow
def test_what_is_finished_is_not_run_again(plan: dict[str, Any], pretended: Started) -> None:
    before = run(plan)
    pretended.clear()
    assert run(plan) == before
    assert pretended == []
    plan["stages"][1]["fit"] = {"trainer.max_steps": 2}
    after = run(plan)
    assert commands(pretended) == ["fit", "evaluate"], "the first stage is as before"
    scores = [content["matrices"]["default/0"]["scores"]["0"] for content in (before, after)]
    assert scores[0][:2] == scores[1][:2]
    assert len(list((Path(plan["output"]) / "runs").glob("[!.]*"))) == 3, "nothing is written over"
    pretended.clear()
    write_task(Path(plan["stages"][0]["task"]), **NLI, data=nli_rows(12), few_shot=nli_rows(15, start=50))
    run(plan)
    assert commands(pretended) == ["evaluate", "fit", "evaluate", "fit", "evaluate"], "other data"


@pytest.mark.slow
def test_an_interrupted_stage_goes_on_and_ends_the_same(
    plan: dict[str, Any], started: Started, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan["fit"]["options"]["checkpoint.every_n_steps"] = 1
    plan["replay"] = {"earlier_tasks": 0.3}
    run({**plan, "output": str(tmp_path / "whole")})
    run_command: Callable[..., None] = sequence.run_command

    def dying(arguments: Sequence[str], log: Path) -> None:
        run_command(arguments, log)
        if arguments[0] == "fit" and "second" in log.name:
            _as_if_killed(tmp_path / "out" / "runs" / log.stem)
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(sequence, "run_command", dying)
        with pytest.raises(KeyboardInterrupt):
            run(plan)
    assert json.loads((tmp_path / "out" / "matrix.json").read_text())["finished"] is False
    started.clear()
    run(plan)
    assert commands(started) == ["fit", "evaluate"]
    whole, resumed = (sorted((tmp_path / name / "runs").glob("[!.]*"))[1] for name in ("whole", "out"))
    record = json.loads((resumed / "run.json").read_text())
    assert record["resumed_from"], "not from the beginning"
    assert record["data_stats"]["train"]["n_replayed"] > 0
    assert equal(weights(whole / "model"), weights(resumed / "model"))


def _as_if_killed(run: Path) -> None:
    """The run before its last step's model was written."""
    record = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**record, "status": "running"}))
    shutil.rmtree(run / "model")


def test_replay_takes_earlier_tasks_and_pretraining_by_their_shares(plan: dict[str, Any], pretended: Started) -> None:
    world = {"class_path": "lit_consistency.data.worlds.MarkovChains", "init_args": {"n_documents": 8, "length": 8}}
    source = {"class_path": "lit_consistency.data.worlds.WorldText", "init_args": {"world": world}}
    plan["replay"] = {"earlier_tasks": 0.2, "pretraining": 0.1, "source": source}
    run(plan)
    options = [config["data"]["init_args"]["replay"] for config in configs(plan)]
    assert [entry["init_args"]["share"] for entry in options] == [
        {"pretraining": 0.1},
        {"first": 0.2, "pretraining": 0.1},
    ]
    replayed = options[1]["init_args"]["parts"]["first"]["init_args"]
    assert replayed["task"] == plan["stages"][0]["task"]
    assert options[1]["init_args"]["parts"]["pretraining"]["class_path"] == source["class_path"]


def test_seeds_and_formats_have_their_own_rows(plan: dict[str, Any], pretended: Started) -> None:
    plan["stages"] = plan["stages"][:1]
    plan["evaluation"]["format"] = ["default", "io"]
    found = run(plan, "--seeds=[0,1]", "--fit.options.trainer.max_steps=1")
    assert commands(pretended).count("evaluate") == 3, "the base is the same for both seeds"
    assert set(found["matrices"]) == {"default/0", "io/0"}
    for content in found["matrices"].values():
        assert set(content["scores"]) == {"0", "1"}
        assert content["mean"]["overall_performance"]["n"] == 2
    text = [content["scores"]["0"][1][1] for content in found["matrices"].values()]
    assert text[0] == text[1], "a text has no format"


def test_a_world_needs_no_data(plan: dict[str, Any], tmp_path: Path) -> None:
    world = {"class_path": "lit_consistency.data.worlds.Biographies", "init_args": {"n_people": 4, "n_new": 3}}
    plan["worlds"] = {"people": {"world": world, "probes": "new_cloze", "task": "new_people"}}
    plan["stages"] = [{"task": "people"}]
    opened = sequence.Sequence(_read(plan))
    assert [task.name for task in opened.tasks.columns] == ["people", "prose"]
    assert (tmp_path / "out" / "tasks" / "people.train.jsonl").is_file()


def _read(plan: dict[str, Any]) -> SequencePlan:
    file = Path(plan["output"]).parent / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    return plan_of(parser().parse_args([f"--config={file}"]))


def test_a_run_that_fails_ends_with_status_1(
    plan: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def failing(arguments: Sequence[str], log: Path) -> None:
        raise ProcessFailed("evaluate ended with status 1")

    monkeypatch.setattr(sequence, "run_command", failing)
    with pytest.raises(SystemExit) as stop:
        run(plan)
    assert stop.value.code == 1
    assert capsys.readouterr().err == "error: evaluate ended with status 1\n"


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sequences").glob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_opens_with_its_command_and_is_a_plan(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert f"#   python -m lit_consistency sequence --config configs/sequences/{path.name}" in path.read_text()
    found = plan_of(parser().parse_args([f"--config={path}"]))
    check_plan(found)
    if found.worlds:
        found.output = tmp_path
        assert len(sequence.Sequence(found).tasks.stages) == 3
    else:
        assert all(load_tasks(stage.task) for stage in found.stages)
