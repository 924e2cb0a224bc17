"""A task as a watched set: the numbers of ``evaluate``, whatever the kind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from lit_consistency.evaluation import evaluate as command
from lit_consistency.inference.evaluation_mode import untouched
from lit_consistency.inference.load import Loaded, load_model
from lit_consistency.tasks import TaskSet, prepare
from lit_consistency.tasks.watched_task import PreparedTask
from tests.tasks.tiny import NLI, nli_rows, write_task

WRITTEN: dict[str, Any] = {"kind": "generation", "fields": {"Q": "{h}"}, "references": "{p}"}
PAIRS: dict[str, Any] = {"kind": "pairs", "choices": ["{good}", "{bad}"]}
PAIRED = [{"good": f"she runs {i}", "bad": f"she run {i}"} for i in range(9)]
SAMPLED = {"max_new_tokens": 5, "n_samples": 2, "temperature": 0.7}
TASKS: dict[str, dict[str, Any]] = {
    "choice": {**NLI, "data": nli_rows(16), "few_shot": nli_rows(9, start=50)},
    "pairs": {**PAIRS, "data": PAIRED},
    "text": {"kind": "text", "text": "{p} {h}", "data": nli_rows(40)},
    "written": {**WRITTEN, "metrics": ["rouge_l", "exact_match"], "data": nli_rows(7)},
    "sampled": {**WRITTEN, "metrics": ["pass@2", "maj@1"], "data": nli_rows(4), "generation": SAMPLED},
}
TASKS["written"]["generation"] = {"max_new_tokens": 6}
PROGRAM = {"kind": "generation", "metrics": ["pass@1"], "fields": {"": "{p}"}, "references": "{t}", "program": "{p}"}


pytestmark = pytest.mark.filterwarnings("ignore:task choice. constant")  # the model has learned nothing


@pytest.fixture(scope="module")
def loaded(tiny_folder: Path) -> Loaded:
    return load_model(tiny_folder, "cpu")


def task_file(folder: Path, kind: str, **more: Any) -> str:
    return str(write_task(folder / f"{kind}.yaml", **{**TASKS[kind], **more}))


def measured(watched: TaskSet, loaded: Loaded, batch_tokens: int = 8192) -> dict[str, float]:
    prepared = prepare(watched, loaded.tokenizer, 32, loaded.model.max_seq_length)
    with untouched(loaded.model):
        return prepared.measure(loaded.model, batch_tokens=batch_tokens, device=loaded.device)


@pytest.mark.filterwarnings("ignore:task choice. truncated")
@pytest.mark.parametrize("limit", [0, 5])
@pytest.mark.parametrize(("kind", "shots"), [*((kind, 0) for kind in TASKS), ("choice", 2)])
def test_the_numbers_are_those_of_evaluate(
    kind: str, limit: int, shots: int, loaded: Loaded, tiny_folder: Path, tmp_path: Path
) -> None:
    """The block of the training rows, 32, is no limit: a task is asked in the context of the model."""
    file = task_file(tmp_path, kind)
    options = {"limit": limit, "seed": 3}
    (result,) = command.evaluate(command.Options(tiny_folder, [file], shots=(shots,), device="cpu", **options))
    watched = TaskSet(file, shots=shots, **options)
    assert watched.metric == result.metric
    found = measured(watched, loaded)
    assert found.keys() == result.metrics.keys()
    for name, value in found.items():
        assert value == pytest.approx(result.metrics[name]["value"], rel=1e-6), name


@pytest.mark.parametrize("kind", TASKS)
def test_the_budget_of_tokens_changes_no_number(kind: str, loaded: Loaded, tmp_path: Path) -> None:
    watched = TaskSet(task_file(tmp_path, kind))
    assert measured(watched, loaded, 64) == pytest.approx(measured(watched, loaded), rel=1e-5)


def test_another_metric_may_judge(loaded: Loaded, tmp_path: Path) -> None:
    watched = TaskSet(task_file(tmp_path, "choice"), metric="nats_per_token")
    assert watched.metric == prepare(watched, loaded.tokenizer, 32, 128).metric == "nats_per_token"
    assert list(measured(watched, loaded))[0] == "nats_per_token"


def test_the_items_of_a_written_task_are_prompt_and_reference(loaded: Loaded, tmp_path: Path) -> None:
    (first, *rest) = TaskSet(task_file(tmp_path, "written")).items(loaded.tokenizer, 128)
    assert len(rest) == 6
    (candidate,) = first.candidates
    text = loaded.tokenizer.decode(torch.as_tensor(candidate.tokens))
    answer = loaded.tokenizer.decode(torch.as_tensor(candidate.tokens[candidate.supervised]))
    assert text == "Q: thing 0 has colour\nAnswer: thing 0 is red"
    assert answer.strip() == "thing 0 is red"


def test_the_right_candidates_of_a_choice_are_its_items(loaded: Loaded, tmp_path: Path) -> None:
    items = TaskSet(task_file(tmp_path, "choice")).items(loaded.tokenizer, 128)
    assert [item.gold for item in items] == [0, 1] * 8


def test_chance_is_known_where_choices_are_counted(loaded: Loaded, tmp_path: Path) -> None:
    choice, written = task_file(tmp_path, "choice"), task_file(tmp_path, "written")
    for watched, chance in (
        (TaskSet(choice), 0.5),
        (TaskSet(choice, metric="balanced_accuracy"), 0.5),
        (TaskSet(choice, metric="exact"), 0.0),
        (TaskSet(written), 0.0),
    ):
        assert watched.prepare(loaded.tokenizer, 128).chance == chance


def test_one_of_several_variants_is_named(tmp_path: Path) -> None:
    variants = {"a": {}, "b_a": {"instruction": "Other."}}
    file = str(write_task(tmp_path / "two.yaml", **NLI, data=nli_rows(4), variants=variants))
    assert TaskSet(file, variant="a").task.name == "two_a"
    assert TaskSet(file, variant="b_a").task.instruction == "Other."
    for variant in (None, "c", "b"):
        with pytest.raises(ValueError, match=rf"variant = {variant!r}: task .*: expected one of a, b_a"):
            TaskSet(file, variant=variant)


def test_a_single_task_has_no_variant(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="variant = 'a': .*expected none"):
        TaskSet(task_file(tmp_path, "choice"), variant="a")


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("choice", {"shots": -1}, "shots = -1: expected at least 0"),
        ("choice", {"limit": -1}, "limit = -1: expected at least 0"),
        ("choice", {"metric": "rouge_l"}, "metrics: 'rouge_l': expected one of accuracy"),
        ("choice", {"format": "poem"}, "format = 'poem': expected one of"),
        ("written", {"shots": 1}, "shots = 1: task written has no key `few_shot`"),
        ("pairs", {"shots": 1}, "shots = 1: task pairs is of kind pairs; expected 0"),
        ("written", {"format": "instruct"}, "has no key `instruction`"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_work(
    kind: str, options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        TaskSet(task_file(tmp_path, kind), **options)


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        TaskSet("nowhere.yaml")


def test_programs_need_the_word_of_the_user(tmp_path: Path) -> None:
    file = str(write_task(tmp_path / "code.yaml", **PROGRAM, data=[{"p": "x =", "t": "assert x"}]))
    with pytest.raises(ValueError, match="allow_code_execution = false: task code runs"):
        TaskSet(file)
    assert TaskSet(file, allow_code_execution=True).metric == "pass@1"


def test_what_a_guard_finds_is_warned_of_once(loaded: Loaded, tmp_path: Path) -> None:
    one_class = [{**row, "label": 0} for row in nli_rows(12)]
    watched = TaskSet(task_file(tmp_path, "choice", data=one_class))
    with pytest.warns(UserWarning, match="task choice: single_class: all 12 gold labels"):
        prepared = watched.prepare(loaded.tokenizer, 128)
    assert isinstance(prepared, PreparedTask)
    constant = task_file(tmp_path, "written", extraction="(?:.|\n)*?(x?)$", metrics=["exact_match"], data=nli_rows(12))
    again = TaskSet(constant).prepare(loaded.tokenizer, 128)
    with pytest.warns(UserWarning, match="task written: constant: all 12 predictions"), untouched(loaded.model):
        again.measure(loaded.model, batch_tokens=512, device=loaded.device)
    with untouched(loaded.model):  # a second warning would be an error
        again.measure(loaded.model, batch_tokens=512, device=loaded.device)
