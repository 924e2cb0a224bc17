"""A sequence of tasks through the real commands, in this process; test_sequence_runs.py starts real ones."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_consistency.__main__ import main
from lit_consistency.evaluation.results import read_results
from lit_consistency.evaluation.task_file import load_tasks
from lit_consistency.metrics.transfer import backward_transfer, overall_performance
from lit_consistency.study import sequence
from lit_consistency.study.matrix import read_matrices
from lit_consistency.study.process import ProcessFailed
from lit_consistency.study.sequence_command import parser, plan_of
from lit_consistency.study.sequence_plan import SequencePlan, check_plan
from tests.evaluation.tiny import NLI, nli_rows, tiny_model, write_task
from tests.runs import ROOT, equal, weights

Started = list[list[str]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The commands that were started; they run in this process."""
    found: Started = []

    def run(arguments: Sequence[str], log: Path) -> None:
        found.append(list(arguments))
        main(arguments)

    monkeypatch.setattr(sequence, "run_command", run)
    return found


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> Started:
    """The commands that were started; a fit hands on its base, a little changed, and an evaluation is real."""
    found: Started = []

    def run(arguments: Sequence[str], log: Path) -> None:
        found.append(list(arguments))
        if arguments[0] == "evaluate":
            main(arguments)
            return
        options = dict(argument.lstrip("-").split("=", 1) for argument in arguments[1:])
        folder = Path(options["run.root"]) / options["run.name"]
        shutil.copytree(options["model.checkpoint_dir"], folder / "model")
        state = weights(folder / "model")
        changed = int(hashlib.sha256(options["run.name"].encode()).hexdigest()[:4], 16) / 2**16
        state["lm_head.weight"] += changed * torch.linspace(-1, 1, state["lm_head.weight"].numel()).view_as(
            state["lm_head.weight"]
        )
        torch.save(state, folder / "model" / "lit_model.pth")
        (folder / "run.json").write_text(json.dumps({"status": "finished"}))

    monkeypatch.setattr(sequence, "run_command", run)
    return found


def configs(plan: dict[str, Any]) -> list[dict[str, Any]]:
    """What the runs were given, in their order."""
    files = sorted((Path(plan["output"]) / "configs").glob("*.yaml"))
    return [yaml.safe_load(file.read_text()) for file in files if not file.stem.endswith(".data")]


@pytest.fixture
def plan(tmp_path: Path) -> dict[str, Any]:
    """Two stages with opposite answers, and a text that is never trained on."""
    other = {**NLI, "gold_values": [1, 0]}
    first = write_task(tmp_path / "first.yaml", **NLI, data=nli_rows(12), few_shot=nli_rows(16, start=50))
    second = write_task(tmp_path / "second.yaml", **other, data=nli_rows(12), few_shot=nli_rows(16, start=50))
    prose = write_task(tmp_path / "prose.yaml", kind="text", text="{p}", data=nli_rows(3))
    trainer = {"accelerator": "cpu", "max_steps": 3, "enable_progress_bar": False, "log_every_n_steps": 1}
    return {
        "base": str(tiny_model(tmp_path / "base")),
        "output": str(tmp_path / "out"),
        "stages": [{"task": str(first)}, {"task": str(second)}],
        "fit": {
            "config": [f"{ROOT}/configs/optimizers/adamw.yaml"],
            "options": {
                "trainer": trainer,
                "data.init_args": {"global_batch_size": 4, "micro_batch_size": 4, "block_size": 64},
                "model.optimizer.init_args.lr": 0.01,
            },
        },
        "evaluation": {"general": [str(prose)], "device": "cpu", "limit": 8},
    }


def run(plan: dict[str, Any], *args: str) -> dict[str, Any]:
    """Run the command; what stands in matrix.json."""
    file = Path(plan["output"]).parent / "plan.yaml"
    file.write_text(yaml.safe_dump(plan))
    main(["sequence", f"--config={file}", *args])
    return json.loads((Path(plan["output"]) / "matrix.json").read_text())


def commands(started: Started) -> list[str]:
    return [arguments[0] for arguments in started]


def test_the_matrix_holds_what_every_stage_scores(
    plan: dict[str, Any], started: Started, capsys: pytest.CaptureFixture[str]
) -> None:
    found = run(plan)
    assert commands(started) == ["evaluate", "fit", "evaluate", "fit", "evaluate"]
    out = Path(plan["output"])
    matrix = read_matrices(out)["default/0"]
    assert (matrix.stages, matrix.tasks) == (["first", "second"], ["first", "second", "prose"])
    assert matrix.metrics == ["accuracy", "accuracy", "-bits_per_byte"]
    runs = ["base", *sorted(path.name for path in (out / "runs").iterdir())]
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
    first, second = sorted((Path(plan["output"]) / "runs").iterdir())
    records = [json.loads((path / "run.json").read_text()) for path in (first, second)]
    assert [record["base"] for record in records] == [plan["base"], str(first / "model")]
    configs = [yaml.safe_load((path / "config.yaml").read_text()) for path in (first, second)]
    tasks = [config["data"]["init_args"]["rows"]["init_args"]["task"] for config in configs]
    assert tasks == [stage["task"] for stage in plan["stages"]]
    assert configs[0]["model"]["optimizer"]["init_args"]["lr"] == 0.01
    assert not equal(weights(first / "model"), weights(second / "model"))


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
    assert len(list((Path(plan["output"]) / "runs").iterdir())) == 3, "nothing is written over"
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
    whole, resumed = (sorted((tmp_path / name / "runs").iterdir())[1] for name in ("whole", "out"))
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


WRONG: dict[str, tuple[dict[str, Any], list[str]]] = {
    "no base": ({"base": "nowhere"}, ["nowhere"]),
    "no stage": ({"stages": []}, ["stages = []", "at least one"]),
    "unknown task": ({"stages": [{"task": "piqqa"}]}, ["'piqqa'", "expected"]),
    "no training split": ({"stages": [{"task": "{prose}"}], "evaluation": {}}, ["prose.yaml", "of kind text"]),
    "a task twice": ({"stages": [{"task": "{first}"}, {"task": "{first}"}]}, ["first.yaml is there twice"]),
    "trained and general": ({"evaluation": {"general": ["{first}"]}}, ["first.yaml is there twice"]),
    "a share of 1": ({"replay": {"earlier_tasks": 1.0}}, ["replay.earlier_tasks = 1.0", "below 1"]),
    "a negative share": ({"replay": {"pretraining": -0.1}}, ["replay.pretraining = -0.1"]),
    "shares of more than all": (
        {"replay": {"earlier_tasks": 0.6, "pretraining": 0.5, "source": {}}},
        ["expected less than 1"],
    ),
    "a share of nothing": ({"replay": {"pretraining": 0.1}}, ["replay.source"]),
    "no such source": (
        {"replay": {"pretraining": 0.1, "source": {"class_path": "lit_consistency.data.Text"}}},
        ["replay.source", "lit_consistency.data.Text"],
    ),
    "unknown format": ({"fit": {"format": "fancy"}}, ["'fancy'"]),
    "no such file": ({"fit": {"config": ["no.yaml"]}}, ["fit.config: no.yaml"]),
    "rows of one's own": (
        {"fit": {"options": {"data": {"init_args": {"rows": {"class_path": "x"}}}}}},
        ["data.init_args.rows.class_path", "the sequence sets it"],
    ),
    "a name of one's own": ({"stages": [{"task": "{first}", "fit": {"run.name": "x"}}]}, ["run.name"]),
    "no seed": ({"seeds": []}, ["seeds = []"]),
    "a negative seed": ({"seeds": [-1]}, ["seeds = -1"]),
    "a seed twice": ({"seeds": [1, 1]}, ["seeds: 1 is there twice"]),
    "no examples": ({"evaluation": {"shots": [4], "general": ["{bare}"]}}, ["shots = 4", "few_shot"]),
    "no such world": (
        {"worlds": {"w": {"world": {"class_path": "lit_consistency.data.worlds.Moon"}, "probes": "x"}}},
        ["worlds.w", "Moon"],
    ),
    "no such key": ({"evaluations": {"limit": 1}}, ["evaluations"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_plan_starts_nothing(
    case: str, plan: dict[str, Any], started: Started, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_task(tmp_path / "bare.yaml", **NLI, data=nli_rows(3))
    changed, parts = WRONG[case]
    for name in ("first", "prose", "bare"):
        changed = json.loads(json.dumps(changed).replace(f"{{{name}}}", str(tmp_path / f"{name}.yaml")))
    with pytest.raises(SystemExit) as stop:
        run({**plan, **changed, "output": plan["output"]})
    assert stop.value.code == 2
    message = " ".join(capsys.readouterr().err.split())
    assert all(part in message for part in parts), message
    assert started == []
    assert not (tmp_path / "out").exists()


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
