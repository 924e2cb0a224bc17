"""The command: from task files to the table, the files, and the comparison of two models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.__main__ import main
from lit_consistency.evaluation import evaluate as command
from lit_consistency.inference.load import load_model
from lit_consistency.records.results import read_items, read_results
from tests.tasks.tiny import NLI, PAIRS, evaluate, nli_rows, tiny_model, write_task


def test_all_kinds_are_measured_and_written(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluate(tiny_folder, "--tasks", *tasks, "--output", out)
    results = {result.task: result for result in read_results(out)}
    assert list(results) == ["known", "nli", "prose", "said", "syntax"]
    assert {r.task: (r.metric, r.n) for r in results.values()} == {
        "known": ("nats_per_token", 6),
        "nli": ("accuracy", 16),
        "prose": ("bits_per_byte", 4),
        "said": ("rouge_l", 3),
        "syntax": ("accuracy", 8),
    }
    baselines = results["nli"].baselines
    assert {name: baselines[name] for name in ("chance", "majority", "balanced_majority")} == dict.fromkeys(
        ("chance", "majority", "balanced_majority"), 0.5
    )
    assert set(results["syntax"].groups) == {"a", "b"}
    table = capsys.readouterr().out
    for shown in ("nli", "balanced_accuracy", "bits_per_byte", "chance", "majority", "95% interval"):
        assert shown in table
    for result in results.values():
        items = read_items(out, result.key)
        total = sum(item["score"] * item["weight"] for item in items)
        assert total / sum(item["weight"] for item in items) == pytest.approx(result.value)
    summary = json.loads((out / "summary.json").read_text())
    assert [entry["task"] for entry in summary["results"]] == ["nli", "syntax", "prose", "said", "known"]
    assert not list(out.rglob("*.unfinished"))


def test_scalars_stand_in_tensorboard_at_the_models_step(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    evaluate(tiny_folder, "--tasks", tasks[0], "--output", tmp_path / "out")
    events = EventAccumulator(str(tmp_path / "out" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("evaluation/nli/default/0/accuracy")] == [7]


def test_what_is_done_is_not_measured_again(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    measured: list[str] = []
    real = command._measure

    def counting(cell: Any, *rest: Any) -> Any:
        measured.append(cell.task.name)
        return real(cell, *rest)

    monkeypatch.setattr(command, "_measure", counting)
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", out)
    evaluate(tiny_folder, "--tasks", *tasks[:3], "--output", out)
    assert measured == ["nli", "syntax", "prose"]
    write_task(Path(tasks[1]), **PAIRS, data=[{"good": "it rains", "bad": "it rain", "part": "a"}])
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", out)
    assert measured[3:] == ["syntax"], "other data"
    write_task(Path(tasks[1]), **PAIRS, data={"path": str(tmp_path / "syntax_data.jsonl"), "member": "*.jsonl"})
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", out)
    assert measured[4:] == ["syntax"], "the same file, read in another way"
    evaluate(tiny_folder, "--tasks", tasks[0], "--output", out, "--limit", 5)
    other = tiny_model(tmp_path / "other", seed=1)
    evaluate(other, "--tasks", tasks[0], "--output", out)
    assert measured[5:] == ["nli", "nli"], "another limit, another model"
    evaluate(tiny_folder, "--tasks", tasks[2], "--output", out, "--item_format", "parquet")
    assert [file.suffix for file in (out / "items").glob("prose*")] == [".parquet"]
    next((out / "items").glob("prose*")).unlink()
    evaluate(tiny_folder, "--tasks", tasks[2], "--output", out, "--item_format", "parquet")
    assert measured[7:] == ["prose", "prose"], "items in the other format, no items"
    config = other / "model_config.yaml"
    config.write_text(config.read_text().replace("norm_eps: 1.0e-05", "norm_eps: 0.5"))
    evaluate(other, "--tasks", tasks[0], "--output", out)
    assert measured[9:] == ["nli"], "the same weights, read in another way"


def test_a_run_that_dies_leaves_whole_results_and_goes_on(
    tasks: list[str],
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    real = command.summarize_result

    def dying(questions: Any, *rest: Any) -> Any:
        if questions.task.name == "syntax":
            raise KeyboardInterrupt
        return real(questions, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(command, "summarize_result", dying)
        with pytest.raises(SystemExit) as stop:
            evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", out)
    assert stop.value.code == 130
    assert capsys.readouterr().err.endswith(f"interrupted; what is finished stands in {out}\n")
    assert [result.task for result in read_results(out)] == ["nli"]
    assert [path.name for path in (out / "items").iterdir()] == ["nli.default.0shot.jsonl"]
    before = (out / "results" / "nli.default.0shot.json").stat().st_mtime_ns
    evaluate(tiny_folder, "--tasks", *tasks[:2], "--output", out)
    assert [result.task for result in read_results(out)] == ["nli", "syntax"]
    assert (out / "results" / "nli.default.0shot.json").stat().st_mtime_ns == before


def test_earlier_numbers_never_stand_beside_items_of_another_call(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    evaluate(tiny_folder, "--tasks", tasks[0], "--output", out, "--limit", 5)

    def dying(path: Path, content: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("lit_consistency.records.results.write_json", dying)
        with pytest.raises(SystemExit):
            evaluate(tiny_folder, "--tasks", tasks[0], "--output", out, "--limit", 9)
    evaluate(tiny_folder, "--tasks", tasks[0], "--output", out, "--limit", 5)
    (found,) = read_results(out)
    assert (found.n, len(read_items(out, found.key))) == (5, 5)


def test_several_formats_give_the_sensitivity(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    evaluate(tiny_folder, "--tasks", tasks[0], "--format", "default", "io", "--shots", 0, 2, "--output", out)
    values: dict[int, list[float]] = {0: [], 2: []}
    for result in read_results(out):
        values[result.shots].append(result.value)
    found = json.loads((out / "summary.json").read_text())["sensitivity_to_format"]
    assert found == {f"nli/{shots}": max(v) - min(v) for shots, v in values.items()}
    assert all(len(v) == 2 for v in values.values())


def test_strict_stops_before_and_after_scoring(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one_class = write_task(tmp_path / "one.yaml", **NLI, data=[{**row, "label": 0} for row in nli_rows(5)])
    constant = [{**row, "p": "same", "h": "same " + "x" * i} for i, row in enumerate(nli_rows(12))]
    same = write_task(tmp_path / "same.yaml", **{**NLI, "fields": {"": "{p}"}}, data=constant)
    evaluate(tiny_folder, "--tasks", one_class, same)
    said = " ".join(capsys.readouterr().out.split())
    assert "warning: one (default, 0 shots): single_class: all 5 gold labels" in said
    assert "warning: same (default, 0 shots): constant: all 12 predictions" in said
    for task, guard in (one_class, "single_class"), (same, "constant"):
        with pytest.raises(SystemExit) as stop:
            evaluate(tiny_folder, "--tasks", task, "--strict", "--output", tmp_path / "out")
        assert stop.value.code == 1
        assert f"error: --strict: task {task.stem}: {guard}" in capsys.readouterr().err
        assert not (tmp_path / "out").exists()


def test_tasks_are_exported_to_lm_eval(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    evaluate(tiny_folder, "--tasks", *tasks, "--limit", 2, "--export_harness", tmp_path / "theirs")
    names = {path.stem for path in (tmp_path / "theirs").rglob("*.yaml")}
    assert names == {"lit_nli", "lit_syntax", "lit_prose", "lit_said", "lit_known"}


def test_options_may_stand_in_a_file(tasks: list[str], tiny_folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "options.yaml"
    file.write_text(json.dumps({"model": str(tiny_folder), "tasks": [tasks[0]], "limit": 3, "device": "cpu"}))
    main(["evaluate", "--config", str(file), "--output", str(tmp_path / "out")])
    assert read_results(tmp_path / "out")[0].n == 3


def test_the_model_is_loaded_as_it_was_saved(tiny_folder: Path) -> None:
    loaded = load_model(tiny_folder, "cpu", "bfloat16")
    assert not loaded.model.training
    assert {str(p.dtype) for p in loaded.model.parameters()} == {"torch.bfloat16"}
    assert {str(p.dtype) for p in load_model(tiny_folder, "cpu").model.parameters()} == {"torch.float32"}
    assert loaded.model.cos.device.type == "cpu"


@pytest.mark.filterwarnings("ignore")
def test_lm_eval_asks_the_exported_task_in_process_with_the_same_accuracy(
    tasks: list[str], tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("lm_eval")
    evaluate(tiny_folder, "--tasks", tasks[0], "--export_harness", tmp_path / "theirs")
    harness = ["--harness", "lit_nli", "--harness_include", tmp_path / "theirs"]
    evaluate(tiny_folder, "--tasks", tasks[0], *harness, "--output", tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["harness"]["results"]["lit_nli"]["acc,none"] == summary["results"][0]["metrics"]["accuracy"]["value"]
    assert "lit_nli: " in capsys.readouterr().out
