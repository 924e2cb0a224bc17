"""Mistakes in the call of ``evaluate``: one line that names them, and nothing written."""

from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.__main__ import main
from lit_consistency.evaluation import evaluate as command
from lit_consistency.records.results import read_items, read_results
from lit_consistency.tasks.code import run
from tests.tasks.tiny import NLI, WRITTEN, evaluate, nli_rows, tiny_model, write_task


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    with pytest.raises(SystemExit) as stop:
        main(["evaluate", *map(str, args)])
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "usage:" not in message
    return message


WRONG: dict[str, tuple[list[str], list[str]]] = {
    "no model": (["--model", "nowhere", "--tasks", "x"], ["nowhere", "no such folder"]),
    "no task": (["--model", "{model}"], ["tasks, harness"]),
    "nothing to export": (
        ["--model", "{model}", "--harness", "piqa", "--export_harness", "theirs"],
        ["tasks: expected at least one to export"],
    ),
    "several shots with harness": (
        ["--model", "{model}", "--tasks", "{task}", "--harness", "piqa", "--shots", "0", "2"],
        ["shots = [0, 2]: expected a single number with harness"],
    ),
    "unknown task": (["--model", "{model}", "--tasks", "piqqa"], ["'piqqa'"]),
    "unknown format": (["--model", "{model}", "--tasks", "{task}", "--format", "fancy"], ["'fancy'", "default"]),
    "more shots than examples": (
        ["--model", "{model}", "--tasks", "{task}", "--shots", "10"],
        ["shots = 10", "has 9", "_few_shot.jsonl"],
    ),
    "negative limit": (["--model", "{model}", "--tasks", "{task}", "--limit", "-1"], ["limit = -1", "at least 0"]),
    "no tokens": (["--model", "{model}", "--tasks", "{task}", "--batch_tokens", "0"], ["batch_tokens = 0"]),
    "unknown device": (["--model", "{model}", "--tasks", "{task}", "--device", "cuda:99"], ["device = 'cuda:99'"]),
    "unknown precision": (["--model", "{model}", "--tasks", "{task}", "--precision", "int3"], ["int3", "bfloat16"]),
    "unknown item format": (["--model", "{model}", "--tasks", "{task}", "--item_format", "xml"], ["xml", "parquet"]),
    "a task twice": (["--model", "{model}", "--tasks", "{task}", "{task}"], ["nli is there twice"]),
    "a format twice": (["--model", "{model}", "--tasks", "{task}", "--format", "io", "io"], ["format", "twice"]),
    "training data that are not there": (
        ["--model", "{model}", "--tasks", "{task}", "--train_data", "no.txt"],
        ["no.txt"],
    ),
    "include without harness": (
        ["--model", "{model}", "--tasks", "{task}", "--harness_include", "theirs"],
        ["harness_include = theirs", "expected tasks in harness"],
    ),
    "format of lm-eval's tasks": (["--model", "{model}", "--harness", "piqa", "--format", "io"], ["format: tasks of"]),
    "guards of lm-eval's tasks": (["--model", "{model}", "--harness", "piqa", "--strict"], ["strict: tasks of"]),
    "an export that also runs": (
        ["--model", "{model}", "--tasks", "{task}", "--harness", "piqa", "--export_harness", "theirs"],
        ["export_harness, harness: expected one of the two"],
    ),
    "a comparison that also measures": (
        ["--compare", "{model}", "{model}", "--tasks", "{task}"],
        ["compare, tasks: expected one of the two"],
    ),
    "one folder to compare": (["--compare", "{model}"], ["1 folders; expected two"]),
    "a world that no task asks of": (
        ["--model", "{model}", "--tasks", "{task}", "--world", "{{seed: 1}}"],
        ["world = {'seed': 1}: none of the tasks asks of a world"],
    ),
    "nothing": ([], ["model"]),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_call_writes_nothing(
    case: str, tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args, parts = WRONG[case]
    filled = [arg.format(model=tiny_folder, task=tasks[0]) for arg in args]
    message = refused(capsys, *filled, "--output", tmp_path / "out")
    assert "Traceback" not in message
    assert all(part in message for part in parts), message
    assert not (tmp_path / "out").exists()


def test_weights_that_are_no_numbers_are_called_that(
    tasks: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    broken = tiny_model(tmp_path / "broken", scale=float("nan"))
    message = refused(capsys, "--model", broken, "--tasks", tasks[0], "--output", tmp_path / "out")
    assert "lit_model.pth: transformer" in message or "lit_model.pth: lm_head" in message
    assert "holds NaN; expected finite weights" in message


def test_a_mistake_in_the_last_task_costs_no_scoring(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = write_task(tmp_path / "bad.yaml", **NLI, data=[*nli_rows(2), {"p": "a", "label": 0}])
    message = refused(capsys, "--model", tiny_folder, "--tasks", tasks[0], bad, "--output", tmp_path / "out")
    assert "bad_data.jsonl:3: no field 'h'" in message
    assert not (tmp_path / "out").exists()


def test_code_is_not_run_unasked_and_what_confined_it_is_said(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {**WRITTEN, "metrics": ["pass@1"], "program": "{p}", "references": "assert False"}
    task = write_task(tmp_path / "code.yaml", **keys, data=nli_rows(2), generation={"max_new_tokens": 4})
    assert "--allow_code_execution" in refused(capsys, "--model", tiny_folder, "--tasks", task)
    monkeypatch.setattr(run, "walls", lambda: ("namespaces", (), "not permitted"))
    message = refused(capsys, "--model", tiny_folder, "--tasks", task, "--allow_code_execution")
    assert "task code: allow_code_execution = true" in message
    assert "--allow_unconfined_code" in message
    monkeypatch.undo()
    allowed = ["--allow_code_execution", "--allow_unconfined_code"]
    capsys.readouterr()
    evaluate(tiny_folder, "--tasks", task, *allowed, "--output", tmp_path / "out")
    (result,) = read_results(tmp_path / "out")
    assert result.value == 0.0
    assert result.confined is not None
    assert result.confined.startswith("programs ran ")
    assert result.confined in capsys.readouterr().out
    (first, _) = read_items(tmp_path / "out", result.key)
    assert all(first["confined"])


def test_two_formats_of_one_name_are_refused(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their results would have one name, and the second would take the place of the first."""
    other = tmp_path / "default.yaml"
    other.write_text("{field: '{value}', between_fields: ' ', answer: '', between_examples: ' '}")
    call = ["--model", tiny_folder, "--tasks", tasks[0], "--format", "default", other, "--output", tmp_path / "out"]
    assert "format: two are called default" in refused(capsys, *call)
    assert not (tmp_path / "out").exists()


def test_parquet_without_its_package_is_refused_before_anything_is_read(
    tasks: list[str], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("lit_consistency.records.extras.find_spec", lambda name: None)
    monkeypatch.setattr(command, "load_tasks", lambda *rest: pytest.fail("a task was read"))
    message = refused(capsys, "--model", tiny_folder, "--tasks", tasks[0], "--item_format", "parquet")
    assert "--item_format parquet needs the package pyarrow" in message
