"""The tables on terminals of many widths: every name and every number can be read."""

from __future__ import annotations

import re

import pytest

from lit_consistency.evaluation.compare import Comparison
from lit_consistency.evaluation.tables import print_comparison, print_results
from lit_consistency.records.results import Result
from lit_consistency.stats.intervals import Estimate

TASK = "task073_commonsenseqa_answer_generation"
NUMBERS = {"value": 0.5335, "stderr": 0.0182, "low": 0.4997, "high": 0.5701}


def shown(capsys: pytest.CaptureFixture[str]) -> list[str]:
    text = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().out)
    return [line.rstrip() for line in text.splitlines()]


@pytest.fixture(params=[200, 100])
def width(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Of a terminal."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(request.param))
    return int(request.param)


def test_a_comparison_names_its_tasks_on_any_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    difference = Estimate(0.0070, 0.0182, -0.0300, 0.0420)
    rows = [
        Comparison(
            name, "default", 4, "balanced_accuracy", 67000, 0.5, 0.507, difference, 0.4847, "second", note, 0.25, 0.3
        )
        for name, note in (("blimp", "cannot be told with 4 groups"), (TASK, ""))
    ]
    print_comparison(rows, [], ("first/folder", "second/folder"))
    lines = shown(capsys)
    assert max(map(len, lines)) <= width
    text = "\n".join(lines)
    for name in ("blimp", "balanced_accuracy", "default", "0.0070 ± 0.0182", "-0.0300 .. 0.0420", "0.4847", "second"):
        assert name in text
    for name in ("67000", "chance", "0.2500", "majority", "0.3000", "better"):
        assert name in text
    assert lines[-1] == "blimp (default, 4 shots): which is better cannot be told with 4 groups"
    assert TASK in "".join(line[:23].strip() for line in lines) or TASK in text, "folded, not cut"


def test_results_keep_whole_words_on_any_terminal(width: int, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = dict.fromkeys(("accuracy", "accuracy_per_byte", "balanced_accuracy"), NUMBERS)
    baselines = {"chance": 0.25, "majority": 0.3, "balanced_majority": 0.2}
    groups = {"anaphor": {"n": 1000, "value": 0.75}}
    results = [
        Result(name, "choice", form, 0, 67000, metrics, baselines, groups, [("truncated", "5 of 60")], 0, "")
        for name in ("biographies_new", TASK)
        for form in ("default", "io")
    ]
    print_results(results, "the/model")
    lines = shown(capsys)
    table = [line for line in lines if not line.startswith("warning")]
    assert max(map(len, table)) <= width
    text = "\n".join(table)
    for name in (*metrics, "biographies_new", "(io)" if width == 100 else " io ", "anaphor", "0.7500"):
        assert name in text
    for name in ("0.5335 ± 0.0182", "0.4997 .. 0.5701", "0.2000", "67000", "chance", "majority", "formats", "0.0000"):
        assert name in text
    assert sum(line.startswith("warning") for line in lines) == 4


def test_nothing_is_cut_where_even_the_narrow_table_has_no_room(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")
    result = Result("blimp", "pairs", "none", 0, 9, {"accuracy": NUMBERS}, {"chance": 0.5}, {}, [], 0, "")
    print_results([result], "the/model")
    text = "\n".join(shown(capsys))
    assert all(part in text for part in ("blimp", "0.4997 .. 0.5701", "0.5000", "formats")), text
    assert "…" not in text


def test_what_the_shortest_answers_reach_is_shown_where_it_is_not_chance(capsys: pytest.CaptureFixture[str]) -> None:
    for shortest, is_shown in ((0.25, False), (0.404, True)):
        baselines = {"chance": 0.25, "shortest": shortest}
        result = Result("piqa", "choice", "default", 0, 10, {"accuracy": NUMBERS}, baselines, {}, [], 0, "")
        print_results([result], "the/model")
        text = "\n".join(shown(capsys))
        assert ("shortest" in text, "0.4040" in text) == (is_shown, is_shown)
