"""Results on disk: read as they were written, and not read where they are not whole."""

from __future__ import annotations

import math
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from lit_consistency.records.results import Result, check_items, read_items, read_result, read_results, write_result

NUMBERS = {"value": 0.25, "stderr": 0.1, "low": math.nan, "high": math.nan}
RESULT = Result(
    "rte", "choice", "default", 2, 2, {"accuracy": NUMBERS}, {"chance": 0.5}, {}, [("labels", "of one class")], 0, "ab"
)
ITEMS = [{"id": "a", "score": 1.0}, {"id": "b", "score": math.nan}]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_result_is_read_as_it_was_written(form: str, tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS, form)
    (read,) = read_results(tmp_path)
    assert repr(replace(read, n_items=0, items_sha256="")) == repr(RESULT), "NaN, which JSON has not, among it"
    assert read.n_items == 2
    check_items(tmp_path, read)
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
    with pytest.raises(ValueError, match=r"torn.json: damaged, or no result of this version"):
        read_result(tmp_path / "torn.json")


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_items_that_were_edited_cut_or_lost_are_refused(form: str, tmp_path: Path) -> None:
    for records in ([{**ITEMS[0], "score": 0.0}, ITEMS[1]], ITEMS[:1]):
        write_result(tmp_path / "other", RESULT, records, form)
        write_result(tmp_path, RESULT, ITEMS, form)
        (read,) = read_results(tmp_path)
        shutil.copy(tmp_path / "other" / "items" / f"{RESULT.key}.{form}", tmp_path / "items")
        with pytest.raises(ValueError, match=rf"{form}: not what was written .*, 2 items \({len(records)} items now\)"):
            check_items(tmp_path, read)
    (tmp_path / "items" / f"{RESULT.key}.{form}").unlink()
    with pytest.raises(FileNotFoundError, match="expected the items of every result"):
        check_items(tmp_path, read)


def test_a_damaged_line_of_items_is_named(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS)
    file = tmp_path / "items" / f"{RESULT.key}.jsonl"
    for line in ('{"id": "b"', "[1]", '{"id": "b"}'):
        file.write_text('{"id": "a", "score": 1.0}\n' + line + "\n")
        with pytest.raises(ValueError, match=rf"{file}, line 2: damaged"):
            read_items(tmp_path, RESULT.key)


def test_a_write_that_was_killed_leaves_nothing_that_is_read(tmp_path: Path) -> None:
    write_result(tmp_path, RESULT, ITEMS)
    (tmp_path / "results" / ".piqa.default.0shot.json.unfinished").write_text('{"task": "pi')
    assert [result.task for result in read_results(tmp_path)] == ["rte"]
