"""The folder of an analysis, written and read here alone: what ``analyze --output FOLDER`` leaves.

``NAME.csv`` is the whole table of an analysis, ``analysis.json`` what was analysed, and its numbers in short (written
last: it says that all tables are complete), ``parts/`` the finished parts of what is not done yet.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import write_json
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.inside import Inside
from lit_consistency.records.tables import Row, read_table, write_table

ALL = "all models"
"""In place of a model's name, for numbers that come of all of them together."""


class AnalysisFolder:
    """Paths and contents; nothing is made before it is written.

    Args:
        path: the folder.
    """

    record_file = Inside("analysis.json")
    figures = Inside("figures")
    tensorboard = Inside("tensorboard")

    def __init__(self, path: Path) -> None:
        self.path = Path(path)

    def table_file(self, analysis: str) -> Path:
        """Of an analysis."""
        return self.path / f"{analysis}.csv"

    def write_table(self, analysis: str, rows: Sequence[Row]) -> None:
        """The whole table of an analysis."""
        write_table(self.table_file(analysis), rows)

    def read_table(self, analysis: str) -> list[Row]:
        """The whole table of an analysis."""
        return read_table(self.table_file(analysis))

    # -------------------- parts

    def read_part(self, analysis: str, model: str, part: str, fingerprint: str) -> list[Row] | None:
        """Rows of a finished part; None where it is missing, damaged, or depends on something else."""
        try:
            content = json.loads(self._part_file(analysis, model, part).read_text(encoding="utf-8"))
            if content["fingerprint"] != fingerprint:
                return None
            return [
                {key: math.nan if value is None else value for key, value in row.items()} for row in content["rows"]
            ]
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write_part(self, analysis: str, model: str, part: str, fingerprint: str, rows: Sequence[Row]) -> None:
        """Rows of a part, whole or not at all."""
        if infinite := [
            key for row in rows for key, value in row.items() if isinstance(value, float) and math.isinf(value)
        ]:
            raise ValueError(f"{analysis}, {part}: {infinite[0]} is infinite; expected numbers, or NaN for none")
        write_json(self._part_file(analysis, model, part), {"fingerprint": fingerprint, "rows": list(rows)})

    def _part_file(self, analysis: str, model: str, part: str) -> Path:
        # names of models and parts may hold any character
        return self.path / "parts" / analysis / f"{fingerprint_of([model, part])[:24]}.json"

    # -------------------- record

    def write_record(self, record: Mapping[str, Any]) -> None:
        """What was analysed, and ``numbers``: model -> name -> number."""
        write_json(self.record_file, dict(record))

    def read_record(self) -> dict[str, Any]:
        """The same; empty where there is none."""
        if not self.record_file.is_file():
            return {}
        return dict(json.loads(self.record_file.read_text(encoding="utf-8")))

    def numbers(self) -> dict[str, float]:
        """Numbers of the last model, and those of all models together, as a study reads them; NaN for none."""
        record = self.read_record()
        numbers: dict[str, dict[str, Any]] = record.get("numbers", {})
        # not the last that has numbers: some analyses have those of the base too
        models = [model["name"] for model in record.get("models", [])] or [name for name in numbers if name != ALL]
        joined = {**(numbers.get(models[-1], {}) if models else {}), **numbers.get(ALL, {})}
        return {key: math.nan if value is None else float(value) for key, value in joined.items()}
