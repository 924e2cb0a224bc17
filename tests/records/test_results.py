"""Results on disk: read as they were written, and not read where they are not whole."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_consistency.records.results import Result, read_items, read_result, read_results, write_result

NUMBERS = {"value": 0.25, "stderr": 0.1, "low": math.nan, "high": math.nan}
RESULT = Result(
    "rte", "choice", "default", 2, 2, {"accuracy": NUMBERS}, {"chance": 0.5}, {}, [("labels", "of one class")], 0, "ab"
)
ITEMS = [{"id": "a", "score": 1.0}, {"id": "b", "score": math.nan}]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_result_is_read_as_it_was_written(form: str, tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS, form)
    (read,) = read_results(tmp_path)
    assert repr(read) == repr(RESULT), "NaN, which JSON has not, among it"
    assert repr(read_items(tmp_path, RESULT.key)) == repr(ITEMS)
    assert (
        sorted(path.name for path in tmp_path.rglob("*") if path.is_file())
        == [
            f"rte.default.2shot.{form}" if form == "parquet" else "rte.default.2shot.json",
            "rte.default.2shot.json" if form == "parquet" else "rte.default.2shot.jsonl",
        ][:: -1 if form == "parquet" else 1]
    )


def test_items_of_another_format_do_not_stay(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS, "parquet")
    write_result(tmp_path, RESULT, ITEMS[:1], "jsonl")
    assert [path.name for path in (tmp_path / "items").iterdir()] == ["rte.default.2shot.jsonl"]
    assert len(read_items(tmp_path, RESULT.key)) == 1


def test_what_is_no_result_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="holds no results"):
        read_results(tmp_path)
    (tmp_path / "torn.json").write_text('{"task": "rte"')
    with pytest.raises(ValueError, match=r"torn.json: no result of this version"):
        read_result(tmp_path / "torn.json")


def test_a_write_that_was_killed_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS)
    (tmp_path / "results" / ".piqa.default.0shot.json.unfinished").write_text('{"task": "pi')
    assert [result.task for result in read_results(tmp_path)] == ["rte"]
