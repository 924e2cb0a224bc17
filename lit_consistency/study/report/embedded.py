"""The cells as the page carries them: a small table in plain JSON, everything that is long compressed beside it.

The script makes rows of the table only as they are looked at, and unpacks the rest (configurations, logs, curves) when
the first cell is opened. Configurations of one study are nearly equal: compressed, a thousand of them take little more
than one.
"""

from __future__ import annotations

import base64
import json
import math
import re
import zlib
from collections.abc import Iterable
from typing import Any

from lit_consistency.study.report.content import CellRow, Content
from lit_consistency.study.report.words import STATES

SHOWN = 4
"""Metrics that have a column from the start; the others are one click away."""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Colours and movements of the cursor, which a log file holds of a terminal (ECMA-48, 5.4)."""


def cells_json(content: Content) -> str:
    """The table of cells, safe to stand in a ``<script>``: no ``<``, ``>`` or ``&`` is left in it."""
    axes = cell_axes(content)
    metrics = cell_metrics(content)
    table = {
        "states": [[state, sign] for state, sign in STATES.items()],
        "axes": axes,
        "metrics": metrics,
        "shown": shown_metrics(content, metrics),
        "cells": [
            {
                "name": cell.name,
                "stage": cell.stage,
                "state": cell.state,
                "seconds": _number(cell.seconds),
                "at": [cell.coordinates.get(axis) for axis in axes],
                "of": [_number(cell.metrics[m]) if m in cell.metrics else None for m in metrics],
            }
            for cell in content.runs
        ],
    }
    return safe_json(table)


def cells_packed(content: Content) -> str:
    """What is long of every cell: JSON, compressed (zlib) and in base64."""
    rows = [
        {
            "command": cell.command,
            "config": cell.config,
            "log": plain_log(cell.log),
            "error": plain_log(cell.error),
            "folder": "" if str(cell.folder) == "." else str(cell.folder),
            "curve": _columns(cell),
        }
        for cell in content.runs
    ]
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(zlib.compress(text.encode("utf-8", "replace"), 6)).decode("ascii")


def cell_axes(content: Content) -> list[str]:
    """All axes in the order of the study's stages, then those that only cells name."""
    named = [axis for axes in content.axes.values() for axis in axes]
    return list(dict.fromkeys([*named, *(axis for cell in content.cells for axis in cell.coordinates)]))


def cell_metrics(content: Content) -> list[str]:
    """All final metrics in the order of their first appearance, a standard error right behind its number."""
    names = dict.fromkeys(name for cell in content.cells for name in cell.metrics)
    plain = [name for name in names if not (name.endswith(".stderr") and name.removesuffix(".stderr") in names)]
    return [m for name in plain for m in (name, f"{name}.stderr") if m in names]


def shown_metrics(content: Content, metrics: list[str]) -> list[str]:
    """Those that a reader wants to see first: learning and forgetting, then as they come."""
    first = [m for text in (content.learning, content.forgetting) if (m := named_metric(text, metrics))]
    return list(dict.fromkeys([*first, *(m for m in metrics if not m.endswith(".stderr"))]))[:SHOWN]


def named_metric(text: str, metrics: Iterable[str]) -> str | None:
    """The metric that a text is or names, as ``change of retain/old_people, towards worse`` does; None without."""
    # of exact and retain/old_people.exact the longer one is meant where it stands
    named = [m for m in metrics if m in text and not m.endswith(".stderr")]
    return max(named, key=len, default=None)


def plain_log(text: str) -> str:
    """A log as a terminal would show it: no escape sequences, of a line that was rewritten its last state."""
    lines = _ESCAPES.sub("", text).replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def safe_json(value: Any) -> str:
    """JSON that no HTML parser takes for markup; U+2028 and U+2029 end lines in older scripts."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


def _columns(cell: CellRow) -> dict[str, list[float | str | None]]:
    """A curve by its numbers: one list each, with None where a step did not measure it."""
    names = dict.fromkeys(name for row in cell.curve for name in row)
    return {name: [_number(row.get(name, math.nan), 6) for row in cell.curve] for name in names}


def _number(value: float, digits: int = 8) -> float | str | None:
    """What JSON can say: None for no number, a word for infinity."""
    if not math.isfinite(value):
        return None if math.isnan(value) else "∞" if value > 0 else "−∞"
    return float(f"{value:.{digits}g}")
