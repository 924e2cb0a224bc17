"""Our scores equal lm-eval's Hugging Face path on the exported model: local task files, no network."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch

from lit_consistency.data.tokens.tokenizer import Tokenizer
from lit_consistency.evaluation.harness.model import run_harness
from lit_consistency.model import GPT, export_hf
from tests.hugging_face_lm import hugging_face_lm
from tests.model.tiny_models import tiny_checkpoint, tiny_tokenizer

pytest.importorskip("lm_eval", reason="the extra `eval` is not installed")
pytest.importorskip("transformers", reason="transformers is not installed")
pytestmark = pytest.mark.filterwarnings("ignore")  # lm-eval and datasets warn about much that is not ours

WORDS = ["the", "llama", "eats", "grass", "of", "the", "hill", "and", "salt", "from", "the", "sea"]


class Both(NamedTuple):
    """A model, its tokenizer, lm-eval's Hugging Face path on its export, and local tasks."""

    model: GPT
    tokenizer: Tokenizer
    theirs: Any
    tasks: Path


def write_tasks(folder: Path) -> None:
    """Choices, pairs, long text and generation, with data beside them."""
    folder.mkdir()
    texts = [" ".join(WORDS[(i * k) % 12] for i in range(k + 3)) for k in range(1, 25)]
    documents = [
        {
            "question": text,
            "choices": [" ".join(WORDS[j : j + 1 + j % 3]) for j in range(i % 4, i % 4 + 4)],
            "gold": i % 4,
        }
        for i, text in enumerate(texts)
    ]
    long = [{"text": " ".join(texts[: 3 * i])} for i in range(1, 4)]
    for name, rows in (("choice", documents), ("text", long)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shared = {"dataset_path": "json", "validation_split": "validation", "metadata": {"version": 1}}
    choice = {
        "output_type": "multiple_choice",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_target": "gold",
        "doc_to_choice": "choices",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }
    tasks = {
        "our_choice": choice,
        "our_few_shot": {**choice, "fewshot_split": "validation", "num_fewshot": 2},
        "our_pairs": {**choice, "doc_to_text": ""},
        "our_text": {
            "output_type": "loglikelihood_rolling",
            "doc_to_text": "",
            "doc_to_target": "{{text}}",
            "metric_list": [{"metric": "bits_per_byte"}, {"metric": "word_perplexity"}],
        },
        "our_writing": {
            "output_type": "generate_until",
            "doc_to_text": "{{question}}",
            "doc_to_target": "the sea",
            "generation_kwargs": {"until": [" sal", "\n"], "max_gen_toks": 12, "do_sample": False},
            "metric_list": [{"metric": "exact_match"}],
        },
    }
    for name, task in tasks.items():
        data = folder / ("text.jsonl" if name == "our_text" else "choice.jsonl")
        content = {"task": name, **shared, **task, "dataset_kwargs": {"data_files": {"validation": str(data)}}}
        (folder / f"{name}.yaml").write_text(json.dumps(content))


@pytest.fixture(scope="module", params=["pythia-14m", "Llama-3.2-1B"])
def both(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Both:
    root = tmp_path_factory.mktemp("both")
    tokenizer = tiny_tokenizer(root / "tokenizer")
    overrides = {"n_query_groups": 2} if request.param.startswith("Llama") else {}
    model = tiny_checkpoint(root / "lit", request.param, tokenizer, vocab_size=300, block_size=80, **overrides).eval()
    export_hf(root / "lit", root / "hf")
    write_tasks(root / "tasks")
    return Both(model, Tokenizer(root / "lit"), hugging_face_lm(root / "hf", batch_size=8), root / "tasks")


@pytest.fixture(scope="module", autouse=True)
def data_sets_in_a_folder_of_their_own(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What ``datasets`` makes of the JSONL files goes away with the test."""
    import datasets

    folder = tmp_path_factory.mktemp("datasets")
    before, datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE, folder
    yield
    datasets.config.HF_DATASETS_CACHE = before
    shutil.rmtree(folder)


def evaluated(both: Both, task: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Results of the same task, ours and theirs."""
    from lm_eval.evaluator import evaluate
    from lm_eval.tasks import TaskManager

    ours = run_harness(
        both.model, both.tokenizer, [task], include_path=both.tasks, batch_tokens=400, device=torch.device("cpu")
    )
    loaded = TaskManager(include_path=both.tasks, include_defaults=False).load([task])
    for loaded_task in loaded["tasks"].values():
        loaded_task.set_fewshot_seed(seed=1234)
        loaded_task.set_config(key="num_fewshot", value=loaded_task.get_config("num_fewshot") or 0)
    return ours, evaluate(both.theirs, loaded, bootstrap_iters=1000)


def answers(results: dict[str, Any], task: str) -> list[Any]:
    """Of every document in order, what the model said."""
    samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
    return [sample["filtered_resps"] for sample in samples]


@pytest.mark.parametrize("task", ["our_choice", "our_few_shot", "our_pairs"])
def test_accuracies_are_equal_and_log_likelihoods_within_1e_4(both: Both, task: str) -> None:
    ours, theirs = evaluated(both, task)
    assert ours["results"][task]["acc,none"] == theirs["results"][task]["acc,none"]
    assert ours["results"][task]["acc_norm,none"] == theirs["results"][task]["acc_norm,none"]
    pairs = [
        (a, b)
        for mine, other in zip(answers(ours, task), answers(theirs, task), strict=True)
        for a, b in zip(mine, other, strict=True)
    ]
    assert len(pairs) == 24 * 4
    assert max(abs(float(a[0]) - float(b[0])) for a, b in pairs) < 1e-4
    assert [a[1] for a, _ in pairs] == [b[1] for _, b in pairs]


def test_rolling_log_likelihoods_are_within_1e_4(both: Both) -> None:
    ours, theirs = evaluated(both, "our_text")
    found, expected = answers(ours, "our_text"), answers(theirs, "our_text")
    assert len(found) == 3
    values = [float(a[0] if isinstance(a, (list, tuple)) else a) for a in found]
    assert max(len(both.tokenizer.encode(row["doc"]["text"])) for row in ours["samples"]["our_text"]) > 80
    other = [float(b[0] if isinstance(b, (list, tuple)) else b) for b in expected]
    assert values == pytest.approx(other, rel=0, abs=1e-4)
    for metric in ("bits_per_byte,none", "word_perplexity,none"):
        assert ours["results"]["our_text"][metric] == pytest.approx(theirs["results"]["our_text"][metric], rel=1e-5)


def test_texts_are_equal(both: Both) -> None:
    ours, theirs = evaluated(both, "our_writing")
    found = answers(ours, "our_writing")
    assert found == answers(theirs, "our_writing")
    assert len({text for (text,) in found}) > 3


def test_limit_and_few_shot_number_are_handed_on(both: Both) -> None:
    found = run_harness(
        both.model,
        both.tokenizer,
        ["our_few_shot"],
        include_path=both.tasks,
        limit=3,
        num_fewshot=1,
        batch_tokens=400,
        device=torch.device("cpu"),
    )
    assert len(found["samples"]["our_few_shot"]) == 3
    assert found["n-shot"]["our_few_shot"] == 1


def test_only_local_tasks_are_indexed_and_unknown_ones_named(both: Both, monkeypatch: pytest.MonkeyPatch) -> None:
    from lm_eval import tasks

    indexed = []

    class Recorded(tasks.TaskManager):
        def __init__(self, include_path: Any = None, include_defaults: bool = True) -> None:
            indexed.append(include_defaults)
            super().__init__(include_path=include_path, include_defaults=False)

    monkeypatch.setattr(tasks, "TaskManager", Recorded)
    options = {"include_path": both.tasks, "limit": 2, "batch_tokens": 400, "device": torch.device("cpu")}
    run_harness(both.model, both.tokenizer, ["our_pairs"], **options)
    assert indexed == [False]
    with pytest.raises(ValueError, match="harness = nowhere: no such task of lm-eval, nor under"):
        run_harness(both.model, both.tokenizer, ["our_pairs", "nowhere"], **options)
    assert indexed == [False, False, True]


def test_data_that_cannot_be_loaded_are_a_mistake_that_names_the_task(both: Both, tmp_path: Path) -> None:
    (tmp_path / "lost.yaml").write_text(
        "task: lost\ndataset_path: json\ndataset_kwargs: {data_files: nowhere.jsonl}\ntest_split: train\n"
        "output_type: loglikelihood\ndoc_to_text: a\ndoc_to_target: b\n"
    )
    options = {"include_path": tmp_path, "batch_tokens": 400, "device": torch.device("cpu")}
    with pytest.raises(ValueError, match=r"harness = lost: lm-eval could not load it \(.*nowhere\.jsonl"):
        run_harness(both.model, both.tokenizer, ["lost"], **options)
