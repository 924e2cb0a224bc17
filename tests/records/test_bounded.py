"""Templates and regular expressions of foreign files end, and so do their rows."""

from __future__ import annotations

import json
import re
import resource
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lit_consistency.data.tokens.chat_template import ChatTemplate
from lit_consistency.metrics.generation import extract
from lit_consistency.records import bounded as bounds
from lit_consistency.records.bounded import bounded
from lit_consistency.tasks.reading import read_task
from lit_consistency.tasks.yaml_file import load_tasks
from tests.tasks.tiny import PAIRS, write_task

EXPLODES = r"^(a+)+$"
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
GROWS = "{% set n = namespace(t='aaaaaaaaaaaaaaaa') %}{% for a in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}"


def test_an_expression_that_takes_forever_is_stopped() -> None:
    before, began = signal.getsignal(signal.SIGALRM), time.monotonic()
    with pytest.raises(ValueError, match="the pattern: not done in 0.2 seconds"), bounded("the pattern", 0.2):
        re.search(EXPLODES, "a" * 40 + "b")
    assert time.monotonic() - began < 10
    assert signal.getsignal(signal.SIGALRM) == before
    with bounded("the pattern", 60):
        assert re.search(EXPLODES, "aaa")
    assert signal.getitimer(signal.ITIMER_REAL)[0] == 0


@pytest.mark.parametrize(
    ("source", "words"),
    [(LOOPS, "not done in"), (GROWS, "too much memory"), ("{{ 'a' * 10000000000 }}", "too much memory")],
)
def test_a_chat_template_cannot_hang_or_eat_the_machine(
    source: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounds.bounded.__wrapped__, "__defaults__", (0.5 if "range(9" in source else 30, None))
    limits = resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(ValueError, match=words):
        ChatTemplate(source, {}, []).render([{"role": "user", "content": "a"}])
    assert resource.getrlimit(resource.RLIMIT_AS) == limits


def test_a_template_of_a_megabyte_is_refused() -> None:
    with pytest.raises(ValueError, match="1,048,577 characters; expected at most 1,048,576"):
        ChatTemplate("a" * ((1 << 20) + 1), {}, [])


@pytest.mark.parametrize("use", ["extraction", "extract"])
def test_the_expressions_of_a_task_are_bounded(use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bounds.bounded.__wrapped__, "__defaults__", (0.2, None))
    text = "a" * 40 + "b"
    rows = [{"good": text, "bad": "b"}]
    reads: dict[str, Callable[[], object]] = {
        "extraction": lambda: extract(text, EXPLODES),
        "extract": lambda: read(tmp_path, {"data": rows, "extract": {"good": "(?P<x>^(a+)+$)"}}),
    }
    with pytest.raises(ValueError, match=rf"{use}.* not done in 0.2 seconds"):
        reads[use]()


@pytest.mark.parametrize("value", ["[" * 200_000, "1" * 5000])
def test_rows_without_end_are_named(value: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps({"good": "a", "bad": "b"}) + f'\n{{"good": {value}\n')
    with pytest.raises(ValueError, match=r"rows.jsonl:2: not JSON"):
        read(tmp_path, {"data": {"path": str(tmp_path / "rows.jsonl")}})


def read(folder: Path, keys: dict[str, object]) -> object:
    file = write_task(folder / "task.yaml", **{**PAIRS, **keys})
    return read_task(load_tasks(str(file))[0], with_training=False)
