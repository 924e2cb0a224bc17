from __future__ import annotations

from pathlib import Path

import pytest

from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
from lit_consistency.data.worlds import MarkovChains, WorldText
from lit_consistency.inference.evaluation_mode import untouched
from lit_consistency.inference.load import load_model
from lit_consistency.inference.score import score_items
from lit_consistency.metrics import summarize
from lit_consistency.tasks import ChainSet, PreparedSet, TaskSet, prepare
from lit_consistency.tasks.watched import TextSet, WatchedSet
from lit_consistency.tasks.watched_task import PreparedTask
from tests.tasks.tiny import nli_rows, write_task

WORLD = MarkovChains(n_documents=20, length=16)


def longest(watched: WatchedSet, tokenizer: Tokenizer) -> int:
    """Tokens that are fed for the longest item, prepared for rows of 16 and a context of 64 tokens."""
    items = prepare(watched, tokenizer, 16, 64).items
    return max(len(item.candidates[0].tokens) for item in items) - 1


def test_items_are_as_long_as_training_rows_and_tasks_as_the_context(tiny_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_model(tiny_folder, "cpu").tokenizer
    task = write_task(tmp_path / "prose.yaml", kind="text", text="{p} " * 40, data=nli_rows(2))
    assert longest(TextSet(WorldText(WORLD, "held_out")), tokenizer) == 16
    assert longest(TaskSet(str(task)), tokenizer) == 64


def test_a_set_measures_itself_or_its_items_are_scored(tiny_folder: Path, tmp_path: Path) -> None:
    model, tokenizer, device = load_model(tiny_folder, "cpu")
    task = TaskSet(str(write_task(tmp_path / "prose.yaml", kind="text", text="{p}", data=nli_rows(2))))
    assert isinstance(prepare(task, tokenizer, 16, 64), PreparedTask)
    found = prepare(TextSet(WorldText(WORLD, "held_out")), tokenizer, 16, 64)
    assert isinstance(found, PreparedSet)
    with untouched(model):
        numbers = found.measure(model, batch_tokens=64, device=device)
        expected = summarize(score_items(model, found.items, batch_tokens=64, device=device))
    assert numbers == pytest.approx(expected)
    assert found.metric == "loss"


def test_a_set_that_knows_the_truth_brings_it(tmp_path: Path) -> None:
    write_tokenizer(WORLD.tokenizer(), tmp_path)
    watched = ChainSet(WORLD, max_documents=3)
    found = prepare(watched, Tokenizer(tmp_path), 32, 64)
    assert isinstance(found, PreparedSet)
    assert found.metric == "kl"
    assert found.truth is not None
    assert len(found.truth) == sum(int(item.candidates[0].supervised.sum()) for item in found.items)
