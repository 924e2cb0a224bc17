from __future__ import annotations

import math
from pathlib import Path

import pytest

from lit_consistency.records.analysis_folder import ALL, AnalysisFolder
from lit_consistency.records.tables import read_table, write_table

ROWS = [
    {"layer": 0, "matrix": 'q, "k"\nv', "number": 0.1 + 0.2},
    {"layer": 1, "matrix": "007x", "number": math.nan, "only": 1e-320},
    {"layer": 2, "matrix": "proj", "number": -3.0},
]


def equal(first: list, second: list) -> bool:
    """Bit for bit, NaN like NaN."""
    return [{k: repr(v) for k, v in row.items()} for row in first] == [
        {k: repr(v) for k, v in row.items()} for row in second
    ]


def test_a_table_is_read_back_bit_for_bit(tmp_path: Path) -> None:
    write_table(tmp_path / "t.csv", ROWS)
    assert equal(read_table(tmp_path / "t.csv"), ROWS)
    assert (tmp_path / "t.csv").read_text().splitlines()[0] == "layer,matrix,number,only"


def test_a_part_is_found_by_what_it_depends_on(tmp_path: Path) -> None:
    folder = AnalysisFolder(tmp_path)
    folder.write_part("updates", "a/b", "layer 0", "mark", ROWS)
    found = folder.read_part("updates", "a/b", "layer 0", "mark")
    assert found is not None
    assert equal(found, ROWS)
    for other in (
        ("updates", "a/b", "layer 0", "else"),
        ("updates", "a", "layer 0", "mark"),
        ("kl", "a/b", "layer 0", "mark"),
    ):
        assert folder.read_part(*other) is None
    # what a kill or a disk has damaged is measured again
    for file in (tmp_path / "parts").rglob("*.json"):
        file.write_text(file.read_text()[:-20])
    assert folder.read_part("updates", "a/b", "layer 0", "mark") is None


def test_infinite_numbers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="kl, all: forward is infinite"):
        AnalysisFolder(tmp_path).write_part("kl", "m", "all", "mark", [{"forward": math.inf}])


def test_a_study_reads_the_last_model_and_what_comes_of_all(tmp_path: Path) -> None:
    folder = AnalysisFolder(tmp_path)
    assert folder.numbers() == {}
    folder.write_record({"numbers": {"first": {"a/x": 1.0}, "last": {"a/x": 2.0, "a/y": math.nan}, ALL: {"b/z": 3.0}}})
    numbers = folder.numbers()
    assert (numbers["a/x"], numbers["b/z"]) == (2.0, 3.0)
    assert math.isnan(numbers["a/y"])
