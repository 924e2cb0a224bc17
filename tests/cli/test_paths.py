"""A configuration somewhere else, called from a folder with nothing in it: what lies beside it is found."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

import pytest
import yaml

from lit_consistency.__main__ import main as command
from lit_consistency.cli import evaluate, sequence, study
from lit_consistency.cli.fit import build, main
from lit_consistency.study.identity import contents
from lit_consistency.tasks.yaml_file import load_tasks
from tests.data.helpers import write_jsonl

FIT = """\
data:
  class_path: lit_consistency.data.SFTData
  init_args:
    rows: {class_path: lit_consistency.data.RowFiles, init_args: {path: rows.jsonl}}
    validation: null
    replay: null
forgetting:
  learn: {quiz: {task: tasks/quiz.yaml}}
  retain: {}
"""
STUDY = "{title: t, output: out, stages: {a: {kind: fit, base: ./base, config: [fit.yaml, configs/quickstart.yaml]}}}"
SEQUENCE = "{base: ./base, output: out, stages: [{task: tasks/quiz.yaml}], fit: {config: [fit.yaml]}}"
ADAMW = ["--model.optimizer=lit_consistency.optimizers.AdamW", "--model.optimizer.init_args.lr=1e-3"]


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "project"
    for name in ("tasks", "base", "../elsewhere"):
        (folder / name).mkdir(parents=True)
    write_jsonl(folder / "rows.jsonl", [{"prompt": "who ?", "completion": "you ."}] * 4)
    (folder / "tasks/text.txt").write_text("the cat sat .")
    (folder / "tasks/quiz.yaml").write_text("{kind: text, data: {path: text.txt}}")
    (folder / "fit.yaml").write_text(FIT)
    (folder / "study.yaml").write_text(STUDY)
    (folder / "sequence.yaml").write_text(SEQUENCE)
    (folder / "evaluate.yaml").write_text("{model: base, tasks: [tasks/quiz.yaml, piqa], output: out}")
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_every_command_finds_what_lies_beside_its_configuration(project: Path) -> None:
    asked = evaluate.parser().parse_args(["--config", "../project/evaluate.yaml"])
    assert asked.model == project / "base"
    assert asked.tasks == [str(project / "tasks/quiz.yaml"), "piqa"]
    assert str(asked.output) == "out"
    stage = study.parser().parse_args(["--config", "../project/study.yaml"]).stages["a"]
    assert (stage.base, stage.config) == (str(project / "base"), [str(project / "fit.yaml"), "configs/quickstart.yaml"])
    plan = sequence.parser().parse_args(["--config", "../project/sequence.yaml"])
    assert (plan.base, plan.fit.config) == (project / "base", [str(project / "fit.yaml")])
    # a file that is named in it names others, which lie beside that one
    [task] = load_tasks(str(project / "tasks/quiz.yaml"))
    assert task.data.path == str(project / "tasks/text.txt")
    assert str(project / "tasks/text.txt") in contents({"forgetting.learn.quiz.task": str(project / "tasks/quiz.yaml")})


def test_a_recorded_configuration_means_the_same_from_anywhere(
    project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = [
        "--model.name=pythia-14m",
        "--run.root=runs",
        "--trainer.max_steps=1",
        f"--data.init_args.cache_dir={tmp_path}",
    ]
    scratch += ["--model.optimizer=lit_consistency.optimizers.AdamW", "--model.optimizer.init_args.lr=1e-3"]
    recorded = build(["fit", "--config=../project/fit.yaml", *scratch]).dump()
    written = yaml.safe_load(recorded)
    assert written["data"]["init_args"]["rows"]["init_args"]["path"] == str(project / "rows.jsonl")
    assert written["forgetting"]["learn"]["quiz"]["task"] == str(project / "tasks/quiz.yaml")
    assert written["run"]["root"] == "runs"
    (tmp_path / "elsewhere/config.yaml").write_text(recorded)
    monkeypatch.chdir(tmp_path)
    again = yaml.safe_load(build(["fit", "--config=elsewhere/config.yaml"]).dump())
    assert {**again, "config": None} == {**written, "config": None}


def test_a_path_that_is_nowhere_is_refused_with_the_places(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "rows.jsonl").unlink()
    with pytest.raises(SystemExit, match="2"):
        main(["fit", "--config=../project/fit.yaml", "--model.name=pythia-14m", *ADAMW])
    error = capsys.readouterr().err
    assert "path = rows.jsonl: nothing found" in error
    assert f"; looked for in the working directory, beside the file that names it, in {project}\n" in error


def test_a_class_of_the_working_directory_is_found_by_both_spellings_of_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``lit-consistency`` has its own folder first in ``sys.path``, ``python -m`` the working directory."""
    (tmp_path / "own_module_of_a_test.py").write_text("number = 3\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", ["/usr/bin", *sys.path[1:]])
    before = list(sys.path)
    for _ in range(2):
        command(["--version"])
    assert sys.path == [*before, str(tmp_path)]  # last, so that nothing installed is shadowed
    assert import_module("own_module_of_a_test").number == 3
