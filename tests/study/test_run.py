from __future__ import annotations

import csv
from pathlib import Path

import pytest

from lit_consistency.distributed.optimizer_state import FILE
from lit_consistency.records.model_folder import OPTIMIZER_STATE
from lit_consistency.study.execute.local import Entry
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.options import Claim, StudyOptions
from lit_consistency.study.run import StudyRun
from tests.study.fakes import FakeParser, crossed_study

ENTRY = Entry("tests.study.fake_fit", ("lit_consistency.records.run_folder",))
CROSSED = {"rows": {"optimizer": ["adamw", "muon"]}, "columns": {"finetuner": ["adamw", "muon"]}}
CLAIM = {"consistency": Claim("Matched pairs forget less.", "interaction", **CROSSED, smallest_effect=0.05)}


@pytest.fixture(autouse=True)
def _code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.study.plan.code_version", lambda cache, kind="fit": "0123456789ab")


def a_run(study: StudyOptions) -> StudyRun:
    return StudyRun(study, ExecutionOptions(workers=3, devices=[]), FakeParser(), ["--config", "study.yaml"], ENTRY)


def table(study: StudyOptions) -> list[dict[str, str]]:
    with (study.output / "report" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_study_runs_what_is_missing_and_reports(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    study = crossed_study(tmp_path, seeds=[0, 1, 2, 3, 4], rates=[0.1, 0.3, 0.4], claims=CLAIM)
    run = a_run(study)
    run.print_plan()  # a study of which nothing has run has no hours yet, not 0.0 of them
    assert (
        "\nleft: 70 cells of stages of which none has run, so that their time is not known\n" in capfd.readouterr().out
    )
    assert run.execute(only="stage=finetune,finetuner=muon,seed=0", head=2) == 0
    states = {cell.name: run.results.of(cell.name).state.value for cell in run.cells()["finetune"]}
    assert list(states.values()).count("finished") == 2
    run.print_plan()
    said = capfd.readouterr().out
    assert "58 missing" in said
    assert "hours of one worker" in said

    assert run.execute() == 1  # a failed cell is said by the status
    run.write_report()
    said = capfd.readouterr().out
    assert "Matched pairs forget less" in said
    rows = table(study)
    assert len(rows) == 10 + 60
    failed = [row for row in rows if row["state"] == "failed"]
    assert {(row["axis.seed"], row["axis.lr"]) for row in failed} == {("1", "0.4"), ("1", "0.8")}
    assert all("this one fails" in row["error"] for row in failed)
    page = (study.output / "report" / "index.html").read_text()
    assert "supported" in page

    # the effect, from the table by hand: at learning .5, which is the rate .2, read between .1 and .3 in log-odds
    again = a_run(study)
    before = {path: path.stat().st_mtime_ns for path in study.cells.glob("*/run.json")}
    assert again.execute() == 1
    assert {path: path.stat().st_mtime_ns for path in study.cells.glob("*/run.json")} == before
    first = (study.output / "report" / "results.csv").read_bytes()
    again.write_report()
    assert (study.output / "report" / "results.csv").read_bytes() == first


def test_weights_that_nobody_needs_are_removed_and_made_again_when_somebody_does(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[0], rates=[0.1, 0.3])
    run = a_run(study)
    assert run.execute() == 0
    bases = run.cells()["pretrain"]
    assert all((study.cells / cell.name / "model").is_dir() for cell in bases)
    run.remove_weights()
    assert not any((study.cells / cell.name / "model").exists() for cell in bases)
    assert a_run(study).execute() == 0  # nothing starts from them
    assert not any((study.cells / cell.name / "model").exists() for cell in bases)
    more = crossed_study(tmp_path, seeds=[0], rates=[0.1, 0.2, 0.3])
    more.stages["finetune"].skip = [{"optimizer": "muon"}]
    assert a_run(more).execute() == 0
    made = {cell.coordinates["optimizer"]: (study.cells / cell.name / "model").exists() for cell in bases}
    assert made == {"adamw": True, "muon": False}
    # what stood there before was not lost
    assert list(study.cells.glob("*/run.without_model.json"))


def test_a_base_without_its_optimizer_state_runs_again_where_one_is_carried(tmp_path: Path) -> None:
    assert OPTIMIZER_STATE == FILE
    study = crossed_study(tmp_path, seeds=[0], rates=[0.1])
    study.stages["pretrain"].options = {"run.save_optimizer_state": True}
    run = a_run(study)
    assert run.execute(only="stage=pretrain") == 0
    bases = run.cells()["pretrain"]
    kept = study.cells / bases[0].name / "model" / OPTIMIZER_STATE
    kept.touch()  # one has it, the other was made before the option was given
    study.stages["finetune"].options = {"model.carry_optimizer_state": True}
    study.stages["finetune"].skip = [
        {"optimizer": "adamw", "finetuner": "muon"},
        {"optimizer": "muon", "finetuner": "adamw"},
    ]
    assert a_run(study).execute() == 0
    again = {cell.coordinates["optimizer"]: len(list((study.cells / cell.name).glob("run.without*"))) for cell in bases}
    assert again == {"adamw": 0, "muon": 1}


def test_the_command_of_a_cell_and_a_folder_of_another_study(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[0])
    run = a_run(study)
    cell = run.cells()["finetune"][0]
    command = run.command_of(cell.name)
    assert command.startswith("python -m lit_consistency fit")
    assert "--run.save_model=false" in command
    assert run.command_of(run.cells()["pretrain"][0].name).count("--run.save_model=true") == 1
    with pytest.raises(ValueError, match="print = nothing: expected the name of one cell"):
        run.command_of("nothing")
    with pytest.raises(ValueError, match="only = finetuner: expected stage=NAME,AXIS=VALUE"):
        run.execute(only="finetuner")
    with pytest.raises(ValueError, match="only = nothing: expected one of stage"):
        run.execute(only="nothing=1")
    run.write_report()
    with pytest.raises(ValueError, match="holds another study, 'crossed'"):
        a_run(crossed_study(tmp_path, title="another"))
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").touch()
    with pytest.raises(ValueError, match="holds something else"):
        a_run(crossed_study(tmp_path, output=other))


@pytest.mark.parametrize(("key", "value"), [("stage", "nothing"), ("panel", ["nothing"]), ("rate", "nothing")])
def test_a_reading_of_what_is_not_there_is_refused(tmp_path: Path, key: str, value: object) -> None:
    study = crossed_study(tmp_path)
    setattr(study.read, key, value)
    with pytest.raises(ValueError, match=f"read.{key} = nothing: expected one of"):
        a_run(study)


def test_a_worker_works_here_whatever_the_engine(tmp_path: Path) -> None:
    study = crossed_study(tmp_path, seeds=[0], rates=[0.1])
    run = StudyRun(study, ExecutionOptions("slurm", workers=2), FakeParser(), [], ENTRY)
    assert run.execute(worker=True, only="stage=pretrain") == 0
    assert all(run.results.of(cell.name).metrics for cell in run.cells()["pretrain"])
    assert not (study.output / "workers").exists()
