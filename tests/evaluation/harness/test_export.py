"""Our tasks in lm-eval: the same questions, the same scores."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.export import export_tasks, process_results
from lit_consistency.evaluation.harness.model import run_harness
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.tasks import TaskData
from lit_consistency.tasks.formats import load_format
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.task import Asking, EncodedTask, Engine
from lit_consistency.tasks.yaml_file import KINDS
from tests.data.tokens.families import llama3_like
from tests.model.tiny_models import tiny_model, tiny_tokenizer

CPU = torch.device("cpu")
BLOCK = 64
WORDS = ["the", "llama", "eats", "grass", "of", "the", "hill", "and", "salt", "from", "the", "sea"]
ROWS = [
    {
        "q": f"{WORDS[i % 12]} {WORDS[(i * 5) % 12]}",
        "a": [WORDS[(i + j) % 12] + " " + WORDS[(i * j) % 12] for j in range(3)],
        "gold": i % 3,
        "text": " ".join(WORDS[(i * k) % 12] for k in range(20 + 40 * (i % 3))),
    }
    for i in range(12)
]
TASKS: dict[str, dict[str, Any]] = {
    "choice": {
        "kind": "choice",
        "metrics": ("accuracy", "accuracy_per_byte"),
        "fields": {"Question": "{q}"},
        "choices": "{a}",
        "gold": "{gold}",
    },
    "known": {
        "kind": "completion",
        "metrics": ("exact", "nats_per_token"),
        "fields": {"": "{q}"},
        "completion": "{a.0}",
    },
    "endings": {
        "kind": "choice",
        "metrics": ("accuracy",),
        "contexts": "{a}",
        "choices": ("{q}",),
        "gold": "{gold}",
        "answer_heading": "",
    },
    "pairs": {"kind": "pairs", "metrics": ("accuracy",), "choices": ("{a.0}", "{a.1}")},
    "text": {"kind": "text", "metrics": ("bits_per_byte", "word_perplexity"), "text": "{text}"},
    "writing": {
        "kind": "generation",
        "metrics": ("exact_match", "rouge_l"),
        "fields": {"": "{q}"},
        "references": "{a}",
        "generation": GenerationOptions(max_new_tokens=6, stop=(" salt",)),
    },
}


def made(
    folder: Path, name: str, form: str = "default", new_tokenizer: bool = True, **changes: Any
) -> tuple[EncodedTask, Tokenizer]:
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    keys = {**TASKS[name], **changes}
    task = KINDS[keys.pop("kind")](name=name, data=TaskData(path=str(data)), **keys)
    tokenizer = Tokenizer(tiny_tokenizer(folder / "tokenizer") if new_tokenizer else folder / "tokenizer")
    return task.questions(read_task(task), Asking(tokenizer, BLOCK, load_format(form))), tokenizer


def measured(encoded: EncodedTask, tokenizer: Tokenizer) -> dict[str, float]:
    """Our own scores of the questions."""
    model = tiny_model("pythia-14m", vocab_size=320).eval()
    return encoded.task.measure(encoded, Engine(model, tokenizer, 500, CPU)).values()


def theirs(file: Path, tokenizer: Tokenizer) -> dict[str, float]:
    model = tiny_model("pythia-14m", vocab_size=320).eval()
    found = run_harness(model, tokenizer, [file.stem], include_path=file.parent, batch_tokens=500, device=CPU)
    return found["results"][file.stem]


@pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about much that is not ours
@pytest.mark.parametrize("name", TASKS)
def test_lm_eval_finds_our_scores(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
    datasets = pytest.importorskip("datasets", reason="datasets is not installed")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    questions, tokenizer = made(tmp_path, name)
    expected = measured(questions, tokenizer)
    found = theirs(export_tasks(questions, tmp_path / "tasks", tokenizer, BLOCK), tokenizer)
    names = {
        "accuracy": "acc,none",
        "accuracy_per_byte": "acc_bytes,none",
        "exact": "acc,none",
        "bits_per_byte": "bits_per_byte,none",
        "word_perplexity": "word_perplexity,none",
        "exact_match": "exact_match,none",
        "rouge_l": "rouge_l,none",
    }
    compared = {ours: name for ours, name in names.items() if ours in questions.task.metrics}
    assert compared
    for ours, name_of_theirs in compared.items():
        assert found[name_of_theirs] == pytest.approx(expected[ours], rel=1e-6), ours


def test_the_files_hold_what_is_asked(tmp_path: Path) -> None:
    questions, tokenizer = made(tmp_path, "choice")
    file = export_tasks(questions, tmp_path / "tasks", tokenizer, BLOCK)
    content = yaml.safe_load(file.read_text())
    rows = [json.loads(line) for line in file.with_suffix(".jsonl").read_text().splitlines()]
    assert content["task"] == file.stem == "lit_choice"
    assert content["output_type"] == "multiple_choice"
    assert content["dataset_kwargs"]["data_files"]["test"] == str(file.with_suffix(".jsonl").resolve())
    assert [row["id"] for row in rows] == [question.id for question in questions.questions]
    assert [row["gold"] for row in rows] == [row["gold"] for row in ROWS]
    assert rows[1]["contexts"] == [questions.questions[1].prompt] * 3
    assert rows[1]["answers"] == ROWS[1]["a"], "the bytes that lm-eval counts are those of the choice"
    assert content["target_delimiter"] == " "


def test_white_space_at_the_prompts_end_is_scored_with_the_answer(tmp_path: Path) -> None:
    form = {"field": "{heading}: {value}", "between_fields": "\n", "answer": "{heading}: ", "between_examples": "\n\n"}
    (tmp_path / "spaced.yaml").write_text(json.dumps({**form, "delimiter": ""}))
    questions, tokenizer = made(tmp_path, "choice", str(tmp_path / "spaced.yaml"))
    file = export_tasks(questions, tmp_path / "tasks", tokenizer, BLOCK)
    row = json.loads(file.with_suffix(".jsonl").read_text().splitlines()[1])
    assert row["contexts"] == [questions.questions[1].prompt.rstrip()] * 3
    assert row["answers"] == ROWS[1]["a"]
    assert yaml.safe_load(file.read_text())["target_delimiter"] == " "


def test_files_of_a_tokenizer_that_contradict_one_another_are_refused(tmp_path: Path) -> None:
    """The post-processor of tokenizer.json adds BOS, ``add_bos_token`` wants none: transformers and LitGPT differ."""
    llama3_like(tmp_path / "tokenizer", add_bos_token=False)
    questions, without_bos = made(tmp_path, "choice", new_tokenizer=False)
    with pytest.raises(ValueError, match=r"rows.jsonl:1: lm-eval would feed other tokens than are scored here"):
        export_tasks(questions, tmp_path / "tasks", without_bos, BLOCK)
    assert not (tmp_path / "tasks").exists()


def test_conversations_are_refused(tmp_path: Path) -> None:
    """Their end of a turn is learned, and lm-eval has no answer that ends so."""
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "the", "completion": " llama"}))
    task = KINDS["completion"](name="spoken", data=TaskData(path=str(data)), prompt_style="default")  # type: ignore[call-arg]
    tokenizer = Tokenizer(tiny_tokenizer(tmp_path / "tokenizer"))
    encoded = task.questions(read_task(task), Asking(tokenizer, BLOCK, load_format("default")))
    with pytest.raises(ValueError, match="task spoken: prompt_style: lm-eval scores no end of a turn"):
        export_tasks(encoded, tmp_path / "tasks", tokenizer, BLOCK)


def test_several_samples_are_refused(tmp_path: Path) -> None:
    sampled = GenerationOptions(max_new_tokens=6, temperature=1.0, n_samples=4)
    questions, tokenizer = made(tmp_path, "writing", metrics=("pass@2",), generation=sampled)
    with pytest.raises(ValueError, match="task writing: metrics pass@2 of 4 samples: expected exact_match or rouge_l"):
        export_tasks(questions, tmp_path / "tasks", tokenizer, BLOCK)


@pytest.mark.parametrize(
    ("extraction", "numbers", "answer", "right"),
    [
        ("gsm8k", "value", "so #### 1,234.", 1.0),
        ("gsm8k", "value", "1234", 0.0),
        ("last_number", "value", "it is $1234.00", 1.0),
        ("last_number", "string", "it is $1234.00", 0.0),
        ("none", "value", "1234", 0.0),
        ("first_line", "value", "\n so #### 1234\nno", 1.0),
    ],
)
def test_written_answers_are_judged_as_here(extraction: str, numbers: str, answer: str, right: float) -> None:
    doc = {"extraction": extraction, "references": ["so #### 1234"], "metrics": ["exact_match"], "numbers": numbers}
    assert process_results(doc, [answer]) == {"exact_match": right}
