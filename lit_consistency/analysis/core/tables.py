"""Means over the rows of a table."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lit_consistency.records.tables import Row


def mean_by(rows: Sequence[Row], keys: Sequence[str], number: str) -> dict[tuple[str, ...], float]:
    """Values of the keys -> mean of the numbers that are there, in the order of their first appearance."""
    return {
        key: sum(values) / len(values) if values else math.nan for key, values in grouped(rows, keys, number).items()
    }


def grouped(rows: Sequence[Row], keys: Sequence[str], number: str) -> dict[tuple[str, ...], list[float]]:
    """Values of the keys -> the numbers of these rows that are numbers; a row without the number does not count."""
    found: dict[tuple[str, ...], list[float]] = {}
    for row in rows:
        if number in row:
            values = found.setdefault(tuple(str(row[key]) for key in keys), [])
            value = float(row[number])
            if not math.isnan(value):
                values.append(value)
    return found
