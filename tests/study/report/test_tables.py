from __future__ import annotations

import csv
import gzip
import math
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from lit_consistency.study.report import tables
from lit_consistency.study.report.tables import write_tables
from tests.study.report.synthetic import FORGETTING, LEARNING, content


def test_tables_hold_every_number_of_every_cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = content(seeds=4)
    assert write_tables(study, tmp_path) == []
    with open(tmp_path / "results.csv", encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    parquet = {row["name"]: row for row in pq.read_table(tmp_path / "results.parquet").to_pylist()}
    assert list(rows) == [c.name for c in sorted(study.cells, key=lambda c: (c.stage, c.name))] == list(parquet)
    for cell in study.cells:
        row, typed = rows[cell.name], parquet[cell.name]
        assert {k[5:]: v for k, v in row.items() if k.startswith("axis.") and v} == cell.coordinates
        assert (row["stage"], row["state"], row["error"]) == (cell.stage, cell.state, cell.error)
        assert typed["axis.base_seed"] == cell.coordinates["base_seed"]
        for metric in (LEARNING, FORGETTING, f"{FORGETTING}.stderr", "val/loss", "train/loss"):
            value = cell.metrics.get(metric, math.nan)
            assert (row[metric] == "") is math.isnan(value) is (typed[metric] is None)
            if not math.isnan(value):
                assert float(row[metric]) == typed[metric] == value  # every digit

    with gzip.open(tmp_path / "steps.csv.gz", "rt", encoding="utf-8", newline="") as file:
        steps = list(csv.DictReader(file))
    assert len(steps) == sum(len(cell.curve) for cell in study.cells)
    first = next(s for s in steps if s["name"] == "finetune-adamw-adamw-lr4e-05-s0")
    cell = next(c for c in study.cells if c.name == first["name"])
    assert (float(first["step"]), float(first[LEARNING])) == (30.0, cell.curve[0][LEARNING])

    # the order in which the cells ran leaves no trace
    write_tables(replace(study, cells=study.cells[::-1]), tmp_path / "again")
    for path in (tmp_path / "again").iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()

    monkeypatch.setattr(tables, "find_spec", lambda name: None)
    assert "no results.parquet: pyarrow is absent" in write_tables(study, tmp_path)[0]
    assert not (tmp_path / "results.parquet").exists()  # an old one would hold other numbers


def test_a_metric_named_as_a_column_is_refused(tmp_path: Path) -> None:
    study = content(seeds=1)
    cell = replace(study.cells[0], metrics={"seconds": 1.0})
    with pytest.raises(ValueError, match=r"metrics: \['seconds'\] are names of columns"):
        write_tables(replace(study, cells=[cell]), tmp_path)
