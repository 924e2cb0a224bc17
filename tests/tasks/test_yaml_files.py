"""The task files of the project on real data, or on rows of the shape that the hub gives."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.data.worlds import Biographies, MarkovChains, ModularArithmetic
from lit_consistency.evaluation import evaluate as command
from lit_consistency.tasks import TaskData
from lit_consistency.tasks import rows as table
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.task import Asking
from lit_consistency.tasks.yaml_file import load_tasks
from tests.runs import ROOT
from tests.tasks.tiny import tiny_model

FOLDER = ROOT / "configs" / "evaluation"
WORLDS = ("biographies", "arithmetic", "markov")
LOCAL = sorted({path.stem for path in FOLDER.glob("*.yaml")} - {*WORLDS})
FILES = sorted(FOLDER.rglob("*.yaml"))
HUB = sorted(path.stem for path in (FOLDER / "hub").glob("*.yaml"))
QUESTION = {"id": "7", "question": "Why?", "question_stem": "Fog is", "answerKey": "B"}
QUESTION |= {"choices": {"text": ["this", "that"], "label": ["A", "B"]}}
NLI_ROW = {"sentence1": "It rains.", "sentence2": "It is wet.", "label": 1}
SMALL = {
    "biographies": Biographies(n_people=6, n_new=3),
    "arithmetic": ModularArithmetic(p=7, noise_share=0.2),
    "markov": MarkovChains(n_symbols=5, n_chains=2, length=8),
}
ROWS: dict[str, tuple[dict[str, Any], str]] = {
    "metamathqa": ({"query": "1 + 1?", "response": "Two. #### 2\nThe answer is: 2"}, "Two. #### 2\nThe answer is: 2"),
    "mmlu": ({"question": "Why?", "choices": ["a", "b", "c", "d"], "answer": 3, "subject": "law"}, "D"),
    "hellaswag": ({"activity_label": "Cooking", "ctx": "A man", "endings": ["a", "b", "c", "d"], "label": "2"}, "c"),
    "mnli": ({"premise": "It rains.", "hypothesis": "It is dry.", "label": 2}, "contradiction"),
    "rte": (NLI_ROW, "not_entailment"),
    "qqp": ({"question1": "Why?", "question2": "How?", "label": 1}, "yes"),
    "stsb": ({**NLI_ROW, "label": 3.8}, "3"),
    "sst2": ({"sentence": "fine", "label": 1}, "positive"),
    "paws": ({**NLI_ROW, "id": 5}, "yes"),
    "xsum": ({"document": "Long.", "summary": "Short.", "id": "5"}, "Short."),
    "cnn_dailymail": ({"article": "Long.", "highlights": "Short.", "id": "5"}, "Short."),
    "xlsum": ({"text": "Long.", "summary": "Short.", "id": "5"}, "Short."),
    "social_iqa": (
        {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c", "label": "3"},
        "c",
    ),
    "sciq": (
        {"question": "Q?", "support": "S", "correct_answer": "r", "distractor1": "x", "distractor2": "y"}
        | {"distractor3": "z"},
        "r",
    ),
    "tweet_qa": ({"Tweet": "T", "Question": "Q?", "Answer": ["a", "b"], "qid": "5"}, "a"),
    "arc_easy": (QUESTION, "that"),
    "arc_challenge": (QUESTION, "that"),
    "openbook_qa": (QUESTION, "that"),
    "commonsense_qa": (QUESTION, "that"),
    "boolq": ({"question": "is it", "passage": "It is.", "answer": True}, "yes"),
    "humaneval": (
        {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    return 1\n", "test": "T"}
        | {"entry_point": "f"},
        "    return 1\n",
    ),
    "gsm8k": ({"question": "1 + 1?", "answer": "Two.\n#### 2"}, "Two.\n#### 2"),
}


def test_every_hub_task_has_a_row_here() -> None:
    assert set(ROWS) == set(HUB)


@pytest.mark.parametrize("name", HUB)
def test_a_row_of_the_hub_becomes_a_question(name: str, tiny: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    row, answer = ROWS[name]
    asked_for: list[tuple[str | None, str | None]] = []

    def rows(data: TaskData) -> Iterator[tuple[str, str, Any]]:
        asked_for.append((data.hub, data.split))
        yield "7", f"{data.hub}/{data.split}:7", row

    monkeypatch.setattr(table, "_hub_rows", rows)
    (task,) = load_tasks(str(FOLDER / "hub" / f"{name}.yaml"))
    read = read_task(task)
    assert read.scored[0].answer == answer
    for form in ("default", "io", "instruct"):
        (question,) = task.questions(read, Asking(tiny, 2048, load_format(form))).questions
        assert answer.strip() not in question.prompt.split("\n") or task.kind == "choice"
    if task.few_shot is not None:
        assert (task.few_shot.hub, task.few_shot.config) == (task.data.hub, task.data.config)
        assert task.few_shot.split in ("train", "dev") != task.data.split


@pytest.mark.parametrize("file", FILES, ids=lambda path: path.relative_to(FOLDER).as_posix())
def test_every_task_file_opens_with_a_command_that_names_its_tasks(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    opening = "".join(line for line in file.read_text().splitlines(keepends=True) if line.startswith("#"))
    command_line = re.search(r"# python -m lit_consistency evaluate --model checkpoints/\S+ --tasks (.+)", opening)
    assert command_line is not None
    tasks = load_tasks(str(file))
    assert {task for name in command_line[1].split() for task in map(str, load_tasks(name))} <= {*map(str, tasks)}
    assert all(task.metrics for task in tasks)
    assert all((task.data.hub is None) == ("hub" not in file.parts) for task in tasks)


def test_no_two_task_files_have_a_name_in_common() -> None:
    names = [task.name for file in FILES for task in load_tasks(str(file))]
    assert len(set(names)) == len(names)
    assert all("name" not in yaml.safe_load(file.read_text()) for file in FILES if file.parent == FOLDER)


@pytest.mark.parametrize("name", WORLDS)
def test_a_task_of_a_world_is_asked_of_any_world_of_its_class(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    world = SMALL[name]
    write_tokenizer(world.tokenizer(), tmp_path)
    for task in load_tasks(name, world=world):
        assert task.data.world == world
        encoded = task.questions(read_task(task), Asking(Tokenizer(tmp_path), 128, load_format("default")))
        assert len(encoded.questions) >= 1
        assert len({question.id for question in encoded.questions}) == len(encoded.questions)
        if name == "biographies" and task.name != "biographies_old_text":
            assert len({question.group for question in encoded.questions}) == 6, "a group is an attribute"
            people = {question.cluster for question in encoded.questions}
            assert 1 < len(people) < len(encoded.questions)


@pytest.fixture(scope="module")
def data() -> Path:
    folder = Path(os.environ.get("LIT_CONSISTENCY_TEST_DATA", ""))
    if "LIT_CONSISTENCY_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("LIT_CONSISTENCY_TEST_DATA is not set to a folder")
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "model", block_size=1024)


@pytest.mark.shared
@pytest.mark.parametrize("name", LOCAL)
def test_a_task_runs_on_its_real_data(name: str, data: Path, model: Path, tmp_path: Path) -> None:
    options = command.Options(
        model=model,
        tasks=[str(FOLDER / f"{name}.yaml")],
        limit=5 if name != "gsm8k_samples" else 1,
        data_dir=data,
        device="cpu",
        output=tmp_path / "out",
        allow_code_execution=True,
        allow_unconfined_code=True,
    )
    results = command.evaluate(options)
    assert all(1 <= result.n <= 5 for result in results)
    assert all(result.value == result.value for result in results), "no number is NaN"
    expected = {"texts": 8, "factbook": 5, "superni15": 15, "simple_arithmetic": 2}
    assert len(results) == expected.get(name, 1)
    found = {(result.task, guard) for result in results for guard, _ in result.findings}
    assert {guard for task, guard in found if task == "mnli"} <= {"unlabelled", "truncated"}
    assert ("mnli", "unlabelled") in found or name != "mnli"
    assert not {guard for _, guard in found} & {"single_class", "shot_scored"}


@pytest.mark.shared
def test_examples_of_real_training_splits_are_of_the_same_kind(data: Path, tiny: Tokenizer) -> None:
    for name in ("rte", "mmlu", "gsm8k"):
        (task,) = load_tasks(str(FOLDER / f"{name}.yaml"), data)
        asking = Asking(tiny, 16384, load_format("default"), 4, limit=3)
        encoded = task.questions(read_task(task, with_training=True), asking)
        for question in encoded.questions:
            assert len(question.shot_ids) == 4
            assert question.prompt.count("\nAnswer:") == 5
            assert question.n_truncated == 0
            if name == "mmlu":
                assert all(shot.startswith(f"{question.group}_dev.csv") for shot in question.shot_ids)
