from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lit_consistency.inference.load import load_model
from lit_consistency.tasks import ask as engine
from lit_consistency.tasks.ask import ask_model
from lit_consistency.tasks.measure import Measured
from lit_consistency.tasks.questions import Questions
from tests.tasks.tiny import NLI, built, nli_rows, task_of

PROGRAM = {"kind": "generation", "metrics": ["pass@1"], "fields": {"": "{p}"}, "references": "{t}", "program": "{p}"}
PROGRAM["generation"] = {"max_new_tokens": 4, "stop": ["\n"]}
# what the model writes stands behind a comment sign, or in the way
PROGRAMS = [{"p": "x = 1  #", "t": "assert x == 1"}, {"p": "x = (", "t": "assert x == 1"}]


def ask(questions: Questions, folder: Path, **options: Any) -> Measured:
    model, tokenizer, device = load_model(folder, "cpu")
    return ask_model(model, questions, tokenizer, batch_tokens=512, device=device, **options)


def test_progress_is_told_chunk_by_chunk(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "CHUNK", 3)
    task = task_of(tmp_path, **NLI, data=nli_rows(8))
    questions = built(task, load_model(tiny_folder, "cpu").tokenizer, block=128).questions
    told: list[int] = []
    in_parts = ask(questions, tiny_folder, advance=told.append)
    assert told == [3, 3, 2]
    monkeypatch.undo()
    assert in_parts.values() == pytest.approx(ask(questions, tiny_folder).values())


@pytest.fixture
def programs(tiny_folder: Path, tmp_path: Path) -> Questions:
    task = task_of(tmp_path, **PROGRAM, data=PROGRAMS)
    return built(task, load_model(tiny_folder, "cpu").tokenizer, block=128).questions


def test_programs_run_with_the_word_of_the_user_only(programs: Questions, tiny_folder: Path) -> None:
    assert ask(programs, tiny_folder, allow_code_execution=True).values() == {"pass@1": 0.5}
    with pytest.raises(ValueError, match="allow_code_execution"):
        ask(programs, tiny_folder)


def test_one_rank_runs_and_the_others_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process plays one rank of two; what the other sends or gets is kept here."""
    result = Measured({}, [], [], [], {})
    sent: list[Any] = []
    rank = 0

    def broadcast(objects: list[Any], src: int) -> None:
        if rank == src:
            sent[:] = objects
        else:
            objects[:] = sent

    distributed = {"is_initialized": lambda: True, "get_world_size": lambda: 2, "get_rank": lambda: rank}
    for name, function in {**distributed, "broadcast_object_list": broadcast}.items():
        monkeypatch.setattr(engine.dist, name, function)
    assert engine._on_first_rank(lambda: result) is result
    rank = 1
    assert engine._on_first_rank(lambda: pytest.fail("programs ran on the second rank")) is result
    rank = 0
    with pytest.raises(OSError, match="no sandbox"):
        engine._on_first_rank(broken)
    rank = 1  # which is told, and does not wait
    with pytest.raises(OSError, match="no sandbox"):
        engine._on_first_rank(broken)


def broken() -> Measured:
    raise OSError("no sandbox")
