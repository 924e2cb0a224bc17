"""One number, whoever prints it: a run's last step, ``evaluate`` of the saved model, ``validate``, ``predict``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.callbacks import Forgetting
from lit_consistency.cli.fit import ConsistencyCLI, build
from lit_consistency.evaluation import evaluate as command
from lit_consistency.evaluation.tables import show
from tests.runs import arguments, fit
from tests.tasks.tiny import NLI, PAIRS, WRITTEN, nli_rows, tiny_model, write_lines, write_task

pytestmark = pytest.mark.filterwarnings("ignore:task .*(constant|truncated)", "ignore:.*was pretrained with")
PEOPLE: dict[str, Any] = {"class_path": "lit_consistency.data.worlds.Biographies"}
PEOPLE["init_args"] = {"n_people": 3, "n_new": 1}
SPOKEN = [{"prompt": f"thing {i}:", "completion": f" die Wälder {i}", "id": f"q{i}"} for i in range(12)]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A task of each kind, of files and of a world."""
    folder = tmp_path_factory.mktemp("tasks")
    pairs = [{"good": f"she runs {i}", "bad": f"she run {i}", "part": "ab"[i % 2]} for i in range(8)]
    asked = {"fields": {"": "{prompt}"}, "answer_heading": ""}
    written = {**WRITTEN, "references": "{p}", "generation": {"max_new_tokens": 5}}
    sampled = {**written, "metrics": ["pass@2", "maj@1"]}
    sampled["generation"] = {"max_new_tokens": 5, "n_samples": 2, "temperature": 0.7}
    choice = {**NLI, "metrics": ["accuracy", "accuracy_per_byte", "balanced_accuracy", "nats_per_token", "exact"]}
    tasks: dict[str, dict[str, Any]] = {
        "choice": {**choice, "data": nli_rows(16), "few_shot": nli_rows(9, start=50)},
        "pairs": {**PAIRS, "data": pairs},
        "text": {"kind": "text", "text": "{p} {h}", "data": nli_rows(40)},
        "long": {"kind": "text", "text": "{text}", "data": [{"text": "Über den Fluß " * 40}, {"text": "allein"}]},
        "answers": {"kind": "completion", **asked, "completion": "{completion}", "data": SPOKEN},
        "spoken": {"kind": "completion", "prompt_style": "default", "data": SPOKEN},
        "people": {"kind": "completion", **asked, "completion": "{answer}", "cluster": "{person}"},
        "written": {**written, "data": nli_rows(5)},
        "sampled": {**sampled, "data": nli_rows(4)},
    }
    tasks["people"]["data"] = {"world": PEOPLE, "probes": "base_cloze"}
    return {name: str(write_task(folder / f"{name}.yaml", **keys)) for name, keys in tasks.items()}


@pytest.fixture(scope="module")
def run(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[ConsistencyCLI, Path]:
    """A finetuning that watches all of them, half to be learned and half to be retained."""
    root = tmp_path_factory.mktemp("run")
    base = tiny_model(root / "base")
    write_lines(root / "rows.jsonl", SPOKEN)
    data = ["--data.init_args.rows=lit_consistency.data.RowFiles", f"--data.init_args.rows.path={root / 'rows.jsonl'}"]
    return fit(root, *watching(files), *data, *SPEED, base=base, data="SFTData"), root


SPEED = ["--model.optimizer.init_args.lr=0.01", "--trainer.max_epochs=20"]
SHOTS = {"choice": 1}
LIMITS = {"choice": 12, "text": 20, "people": 11}


def watching(files: dict[str, str]) -> list[str]:
    sets: dict[str, dict[str, Any]] = {"learn": {}, "retain": {}}
    for i, (name, file) in enumerate(files.items()):
        options = {"task": file, "limit": LIMITS.get(name, 0), "shots": SHOTS.get(name, 0)}
        sets["learn" if i % 2 else "retain"][name] = options
    return [f"--forgetting.{kind}={json.dumps(tasks)}" for kind, tasks in sets.items()]


def watched(cli: ConsistencyCLI) -> Forgetting:
    return next(callback for callback in cli.trainer.callbacks if isinstance(callback, Forgetting))


def numbers_of(name: str, metric: str, numbers: dict[str, float], files: dict[str, str]) -> tuple[float, float]:
    """Value and standard error of a metric; the first of a task is called by the task's name alone."""
    key = f"{'learn' if list(files).index(name) % 2 else 'retain'}/{name}"
    return (
        (numbers[key], numbers[f"{key}.stderr"])
        if f"{key}.{metric}" not in numbers
        else (numbers[f"{key}.{metric}"], numbers[f"{key}.{metric}_stderr"])
    )


NAMES = ["choice", "pairs", "text", "long", "answers", "spoken", "people", "written", "sampled"]


@pytest.mark.parametrize("name", NAMES)
def test_the_last_step_of_a_run_says_what_evaluate_says_of_its_model(
    name: str, files: dict[str, str], run: tuple[ConsistencyCLI, Path]
) -> None:
    cli, root = run
    model = root / "run" / "model"
    options = {"shots": (SHOTS.get(name, 0),), "limit": LIMITS.get(name, 0)}
    (result,) = command.evaluate(command.Options(model, [files[name]], device="cpu", **options))
    latest = watched(cli).latest
    assert set(NAMES) == set(files)
    for metric, expected in result.metrics.items():
        value, stderr = numbers_of(name, metric, latest, files)
        assert show(value) == show(expected["value"]), metric
        assert show(stderr) == show(expected["stderr"]), metric
        assert value == pytest.approx(expected["value"], rel=1e-6, abs=1e-9), metric
        assert stderr == pytest.approx(expected["stderr"], rel=1e-5, abs=1e-9, nan_ok=True), metric
    base = watched(cli).base
    if name in ("text", "spoken"):
        assert numbers_of(name, result.metric, base, files) != numbers_of(name, result.metric, latest, files)


def again(command_name: str, run: tuple[ConsistencyCLI, Path], root: Path, *more: str) -> ConsistencyCLI:
    """``validate`` or ``predict`` with the saved model and the rows of the run."""
    model, rows = run[1] / "run" / "model", run[1] / "rows.jsonl"
    data = [f"--data.init_args.{part}=lit_consistency.data.RowFiles" for part in ("rows", "validation")]
    data += [f"--data.init_args.{part}.path={rows}" for part in ("rows", "validation")]
    call = arguments(root, f"--model.checkpoint_dir={model}", *more, *data, data="SFTData")
    cli = build([command_name, *(option for option in call[1:] if "limit_val_batches" not in option)])
    cli.execute()
    return cli


def test_validate_measures_what_the_last_step_of_the_run_measured(
    files: dict[str, str], run: tuple[ConsistencyCLI, Path], tmp_path: Path
) -> None:
    cli = again("validate", run, tmp_path, *watching(files))
    numbers = {name: value.item() for name, value in cli.trainer.callback_metrics.items()}
    latest = {key: value for key, value in watched(run[0]).latest.items() if key.startswith(("learn/", "retain/"))}
    assert len(latest) > 2 * len(files)
    assert {key: show(numbers[key]) for key in latest} == {key: show(value) for key, value in latest.items()}
    assert {key: numbers[key] for key in latest} == pytest.approx(latest, rel=1e-6, nan_ok=True)
    # the loss of validation is that of the rows as a task
    assert show(numbers["val/loss"]) == show(latest["learn/spoken"])
    assert numbers["val/loss"] == pytest.approx(latest["learn/spoken"], rel=1e-6)


def test_predict_writes_a_line_for_each_row_that_sum_to_what_they_have_as_a_task(
    run: tuple[ConsistencyCLI, Path], tmp_path: Path
) -> None:
    lines = {}
    for packing in ("true", "false"):
        again("predict", run, tmp_path / packing, f"--data.init_args.packing={packing}")
        (file,) = (tmp_path / packing).rglob("predictions.jsonl")
        lines[packing] = [json.loads(line) for line in file.read_text().splitlines()]
    rows, alone = lines["true"], lines["false"]
    assert [row.pop("nll") for row in alone] == pytest.approx([row["nll"] for row in rows], rel=1e-5)
    assert alone == [{key: value for key, value in row.items() if key != "nll"} for row in rows]
    for row, spoken in zip(rows, SPOKEN, strict=True):
        assert (row["id"], row["prompt"], row["answer"]) == (spoken["id"], spoken["prompt"], spoken["completion"])
        assert row["exact"] == (row["first_choice"] == row["answer"]) == (row["greedy"] == row["targets"])
    nats_per_token = sum(row["nll"] for row in rows) / sum(row["n_tokens"] for row in rows)
    latest = watched(run[0]).latest["learn/spoken"]
    assert show(nats_per_token) == show(latest)
    assert nats_per_token == pytest.approx(latest, rel=1e-6)


def test_validate_alone_measures_the_held_out_rows(run: tuple[ConsistencyCLI, Path], tmp_path: Path) -> None:
    """Without a word of what is to be learned it is what the data hold out; here, the rows themselves."""
    cli = again("validate", run, tmp_path)
    numbers = {name: value.item() for name, value in cli.trainer.callback_metrics.items()}
    assert numbers["learn/validation"] == pytest.approx(watched(run[0]).latest["learn/spoken"], rel=1e-6)
    assert {"learn/validation.bits_per_byte", "learn/validation.exact", "learn/validation.stderr"} <= numbers.keys()
    assert not any(name.startswith(("learned/", "forget/", "retained/")) for name in numbers), "no base, no change"
