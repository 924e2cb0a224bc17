"""The numbers of a study as tables for other programs: one row a cell, and one row a measured step.

Rows and columns stand in an order that depends on the study alone, so that two tables of the same numbers are equal
byte for byte, and a difference between two studies is a difference of lines.
"""

from __future__ import annotations

import csv
import gzip
import io
import math
from collections.abc import Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import new_file, write_text
from lit_consistency.study.report.content import Content, ReadingRow
from lit_consistency.study.report.embedded import cell_axes, cell_metrics

FIXED = ("name", "stage", "state", "seconds")
LAST = ("error", "command", "folder")


def write_tables(content: Content, folder: Path) -> list[str]:
    """Write ``results.csv``, ``results.parquet``, ``steps.csv.gz``, and ``readings.csv`` where something was read.

    An axis has a column ``axis.NAME``, a final number ``NAME`` (so that an axis and a number of one name differ). What
    is no number is an empty field in CSV and null in Parquet; infinite ones are written ``inf`` and ``-inf``.

    Args:
        content: with the cells.
        folder: of the report; made if need be.

    Returns:
        What could not be written, in sentences.
    """
    columns, rows = result_rows(content)
    write_text(folder / "results.csv", _csv(columns, rows))
    if content.readings:
        names = [entry.name for entry in fields(ReadingRow)]
        rows_read = [[getattr(row, name) for name in names] for row in content.readings]
        write_text(folder / "readings.csv", _csv(names, rows_read))
    step_columns, step_rows = _step_rows(content)
    with new_file(folder / "steps.csv.gz") as path:
        # the time of writing would make equal tables differ
        path.write_bytes(gzip.compress(_csv(step_columns, step_rows).encode("utf-8"), compresslevel=6, mtime=0))
    # an old file would hold other numbers than the CSV beside it
    if find_spec("pyarrow") is None:
        (folder / "results.parquet").unlink(missing_ok=True)
        return ["no results.parquet: pyarrow is absent; install it by: pip install 'lit_consistency[study]'"]
    _write_parquet(columns, rows, folder / "results.parquet")
    return []


def result_rows(content: Content) -> tuple[list[str], list[list[Any]]]:
    """Columns, and one row a cell in the order of stage and name."""
    axes, metrics = sorted(cell_axes(content)), sorted(cell_metrics(content))
    columns = [*FIXED[:2], *(f"axis.{axis}" for axis in axes), *FIXED[2:], *metrics, *LAST]
    # a second column of one name would hide the first from most readers of tables
    if twice := sorted({name for name in columns if columns.count(name) > 1}):
        raise ValueError(f"metrics: {twice} are names of columns that every table has; expected other names")
    rows = [
        [
            cell.name,
            cell.stage,
            *(cell.coordinates.get(axis) for axis in axes),
            cell.state,
            _known(cell.seconds),
            *(_known(cell.metrics.get(metric, math.nan)) for metric in metrics),
            cell.error or None,
            cell.command,
            "" if str(cell.folder) == "." else str(cell.folder),
        ]
        for cell in sorted(content.cells, key=lambda cell: (cell.stage, cell.name))
    ]
    return columns, rows


def _step_rows(content: Content) -> tuple[list[str], list[list[Any]]]:
    names = sorted({name for cell in content.cells for row in cell.curve for name in row} - {"step"})
    cells = sorted(content.cells, key=lambda cell: (cell.stage, cell.name))
    rows = [
        [cell.name, _known(row.get("step", math.nan)), *(_known(row.get(name, math.nan)) for name in names)]
        for cell in cells
        for row in cell.curve
    ]
    return ["name", "step", *names], rows


def _known(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _csv(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Text with every digit of every number; whole numbers without a point."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([[_text(value) for value in row] for row in rows])
    return buffer.getvalue().encode("utf-8", "replace").decode("utf-8")


def _text(value: Any) -> Any:
    # beyond 2^53 not every whole number is a float, and digits would be made up
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    return value


def _write_parquet(columns: Sequence[str], rows: Sequence[Sequence[Any]], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    texts = {*FIXED[:2], "state", *LAST}
    arrays = []
    for i, name in enumerate(columns):
        is_text = name in texts or name.startswith("axis.")
        values = [row[i] for row in rows]
        # Parquet holds UTF-8 only; half a character, as a broken log leaves it, becomes a question mark
        if is_text:
            values = [None if v is None else v.encode("utf-8", "replace").decode("utf-8") for v in values]
        # the type is fixed: a column without any value would have none of its own
        arrays.append(pa.array(values, pa.string() if is_text else pa.float64()))
    with new_file(path) as temporary:
        pq.write_table(pa.Table.from_arrays(arrays, names=list(columns)), temporary)
