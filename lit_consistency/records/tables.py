"""Tables of numbers on disk: rows of named values, as CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from lit_consistency.records.atomic import write_text

Row = dict[str, str | int | float]
"""One row: column -> text, whole number or number; NaN where there is none."""


def write_table(path: Path, rows: Sequence[Row]) -> None:
    """Write rows as CSV, in one step; columns stand in the order of their first appearance.

    Numbers are written so that reading gives them back bit for bit; NaN is written ``nan``, a value that a row lacks
    is an empty field.
    """
    file = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(file, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({key: repr(v) if isinstance(v, float) else v for key, v in row.items()} for row in rows)
    write_text(path, file.getvalue())


def read_table(path: Path) -> list[Row]:
    """The rows of a table; what looks like a whole number or a number is one, an empty field is left out.

    Raises:
        FileNotFoundError: there is no such file.
    """
    with open(path, encoding="utf-8", newline="") as file:
        return [{key: _value(text) for key, text in row.items() if text != ""} for row in csv.DictReader(file)]


def _value(text: str) -> str | int | float:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text
