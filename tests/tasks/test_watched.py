"""Tasks as a run watches them: options, what is refused, what is warned of, and the held-out part of the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lit_consistency.data.worlds import Biographies, ModularArithmetic
from lit_consistency.inference.evaluation_mode import evaluation_mode
from lit_consistency.inference.load import Loaded
from lit_consistency.tasks import CompletionTask, TextTask, WatchedTask
from lit_consistency.tasks.watched import PreparedTask, held_out_task
from tests.data.helpers import ListRows, ListSource
from tests.reference.scores import document
from tests.runs import ROOT
from tests.tasks.tiny import NLI, PAIRS, WRITTEN, nli_rows, write_task

PROGRAM = {"kind": "generation", "metrics": ["pass@1"], "fields": {"": "{p}"}, "references": "{t}", "program": "{p}"}


def nli(folder: Path, **keys: Any) -> str:
    return str(write_task(folder / "nli.yaml", **{**NLI, "data": nli_rows(12), **keys}))


def values(prepared: PreparedTask, loaded: Loaded) -> dict[str, float]:
    with evaluation_mode(loaded.model):
        return prepared.measure(loaded.model, batch_tokens=512, device=loaded.device).values()


def test_the_name_of_a_set_is_its_task_unless_it_says_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    assert WatchedTask().load("biographies/old_people") == WatchedTask("biographies/old_people").load("mine")
    inline = WatchedTask({**NLI, "data": {"path": str(tmp_path / "x.jsonl")}}).load("mine")
    assert (inline.name, inline.kind) == ("mine", "choice")
    with pytest.raises(ValueError, match=r"a file of several; expected biographies/NAME, of old_people, new_people"):
        WatchedTask("biographies").load("mine")
    with pytest.raises(ValueError, match="task mine: golds: no such key"):
        WatchedTask({**NLI, "data": {"path": "x.jsonl"}, "golds": "x"}).load("mine")


def test_another_metric_may_judge_and_another_world_be_asked_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    task = WatchedTask(metric="nats_per_token", world=Biographies(seed=3)).load("biographies/old_people")
    assert task.metrics == ("nats_per_token", "exact")
    assert task.data.world == Biographies(seed=3)
    with pytest.raises(ValueError, match="the run's world is of ModularArithmetic; expected the same class"):
        WatchedTask(world=ModularArithmetic()).load("biographies/old_people")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "rouge_l"}, "metrics: 'rouge_l': expected one of accuracy"),
        ({"format": "poem"}, "format = 'poem': expected one of"),
        ({"shots": 1}, "shots = 1: task nli has no key `few_shot`"),
        ({"shots": -1}, "shots = -1: expected at least 0"),
        ({"limit": -1}, "limit = -1: expected at least 0"),
        ({"seed": -1}, "seed = -1: expected at least 0"),
    ],
)
def test_what_does_not_fit_is_refused_before_any_data_is_read(
    options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = nli(tmp_path, data={"path": "nowhere.jsonl"})
    with pytest.raises(ValueError, match=message):
        WatchedTask(file, **options).load("mine")


@pytest.mark.parametrize(
    ("keys", "options", "message"),
    [
        ({**PAIRS, "data": nli_rows(2)}, {"shots": 1}, "shots = 1: task task is of kind pairs; expected 0"),
        ({**WRITTEN, "references": "{p}", "data": nli_rows(2)}, {"format": "instruct"}, "has no key `instruction`"),
        ({**PROGRAM, "data": nli_rows(2)}, {}, "task task: allow_code_execution = false: this task runs"),
    ],
)
def test_what_does_not_fit_the_kind(
    keys: dict[str, Any], options: dict[str, Any], message: str, tmp_path: Path
) -> None:
    file = str(write_task(tmp_path / "task.yaml", **keys))
    with pytest.raises(ValueError, match=message):
        WatchedTask(file, **options).load("mine")
    if "program" in keys:
        assert WatchedTask(file, allow_code_execution=True, allow_unconfined_code=True).load("mine").metric == "pass@1"


def test_a_task_that_is_not_there_is_refused() -> None:
    with pytest.raises(FileNotFoundError, match="no such file"):
        WatchedTask("nowhere.yaml").load("mine")


def test_a_guard_s_finding_is_warned_of_once(loaded: Loaded, tmp_path: Path) -> None:
    one_class = [{**row, "label": 0} for row in nli_rows(12)]
    with pytest.warns(UserWarning, match="task nli: single_class: all 12 gold labels"):
        WatchedTask(nli(tmp_path, data=one_class)).prepare("mine", loaded.tokenizer, 128)
    keys = {**WRITTEN, "references": "{p}", "metrics": ["exact_match"], "extraction": "(?:.|\n)*?(x?)$"}
    file = str(write_task(tmp_path / "said.yaml", **keys, data=nli_rows(12), generation={"max_new_tokens": 2}))
    again = WatchedTask(file).prepare("mine", loaded.tokenizer, 128)
    with pytest.warns(UserWarning, match="task said: constant: all 12 predictions"):
        values(again, loaded)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        values(again, loaded)
    assert [guard for guard, _ in again.findings] == ["constant"]


def test_the_items_of_the_divergence_are_the_right_answers(loaded: Loaded, tmp_path: Path) -> None:
    prepared = WatchedTask(nli(tmp_path), limit=6, seed=1).prepare("mine", loaded.tokenizer, 128)
    assert len(prepared.items) == len(prepared.encoded.questions) == 6
    decode = loaded.tokenizer.processor.decode
    for item, row in zip(prepared.items, prepared.encoded.rows, strict=True):
        candidate = item.candidates[item.gold]
        assert decode(candidate.tokens[candidate.supervised].tolist()) == f" {row.answer}"


# -------------------- the held-out part of the training data


def test_held_out_text_is_a_text_task(loaded: Loaded) -> None:
    texts = ["the day", "Wälder", "xyz"]
    data: Any = SimpleNamespace(validation=ListSource(texts), stats=dict)
    prepared = held_out_task(data, loaded.tokenizer, 128)
    assert isinstance(prepared.task, TextTask)
    assert prepared.metric == "nats_per_token"
    ids = [loaded.tokenizer.processor.encode(text).ids for text in texts]
    nats = sum(document(loaded.model, loaded.tokenizer.eos_id, tokens, 128) for tokens in ids)
    assert values(prepared, loaded)["nats_per_token"] == pytest.approx(nats / sum(map(len, ids)), rel=1e-6)


@pytest.mark.parametrize("n", [3, 40, 900])
def test_of_a_large_corpus_the_same_is_scored_and_it_is_not_read_again(
    n: int, loaded: Loaded, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = ListSource([f"größer {i} " * (1 + i * 7 % 60) for i in range(n)])
    monkeypatch.setattr("lit_consistency.tasks.watched.HELD_OUT_BYTES", 5000)
    prepared = []
    for n_bytes in (0, 1 << 40, 1 << 40):
        stats = {"train": {"n_bytes": n_bytes}}
        data: Any = SimpleNamespace(validation=source, cache_dir=tmp_path, stats=lambda stats=stats: stats)
        prepared.append(held_out_task(data, loaded.tokenizer, 64))
        if len(prepared) == 2:
            monkeypatch.setattr(source, "documents", None)
    asked = [[(q.id, q.place, q.prompt, q.labels) for q in one.encoded.questions] for one in prepared]
    assert asked[0] == asked[1] == asked[2]
    assert sum(len(q[3][0].encode()) for q in asked[0]) <= 5000


def test_held_out_rows_are_conversations_in_the_style_of_training(loaded: Loaded) -> None:
    pairs = [(f"the day {i}", f"xyz {i}") for i in range(600)]
    data: Any = SimpleNamespace(validation=ListRows(pairs), prompt_style="alpaca", parse_special_tokens=False)
    prepared = held_out_task(data, loaded.tokenizer, 1024)
    assert isinstance(prepared.task, CompletionTask)
    assert len(prepared.encoded.questions) == 500, "of more rows so many are drawn"
    item = prepared.items[0]
    text = loaded.tokenizer.processor.decode(item.candidates[0].tokens.tolist())
    assert text.startswith("Below is an instruction")
