"""What a dial leaves on disk: a picture of learning against forgetting, a table, and all of it as JSON."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from lit_consistency.drawing import png
from lit_consistency.drawing.canvas import svg_file
from lit_consistency.drawing.charts.trade_off import Panel, Said, Stop, draw_trade_off
from lit_consistency.evaluation.dial import Dial, Position
from lit_consistency.records.atomic import new_file, write_json, write_text
from lit_consistency.records.tables import Row, write_table


def write_dial(dial: Dial, folder: Path, axis: str, about: dict[str, Any]) -> list[str]:
    """Write ``dial.svg``, ``dial.png`` where matplotlib is installed, ``dial.csv`` and ``dial.json``.

    Args:
        dial: what was measured.
        folder: of the files.
        axis: what the candidates are called: alpha or step.
        about: base, model, command; goes into the JSON as it is.

    Returns:
        What could not be written, in sentences.
    """
    rows = [row for position in dial.positions for row in _rows(dial, position, axis)]
    write_table(folder / "dial.csv", rows)
    best = dial.best
    said: dict[str, Any] = {"most": dial.most, "budget": [str(bound) for bound in dial.bounds]}
    said |= {"best": best.candidate.name} if best else {"best": None, "nearest": dial.nearest.candidate.name}
    write_json(folder / "dial.json", {**about, **said, "rows": rows})
    metric = dial.positions[0].comparisons[dial.most].metric
    canvas = draw_trade_off(_panels(dial), f"learned of {dial.most}, {metric}")
    title = f"What each {axis} has learned and forgotten"
    write_text(folder / "dial.svg", svg_file(canvas, title))
    if not png.can_draw():
        return ["no dial.png: matplotlib is absent; install it by: pip install 'lit_consistency[study]'"]
    with new_file(folder / "dial.png") as path:
        png.write_png(canvas, title, path)
    return []


def _rows(dial: Dial, position: Position, axis: str) -> list[Row]:
    rows: list[Row] = []
    for entry in dial.sets:
        comparison, change = position.comparisons[entry.name], position.changes[entry.name]
        judged = position.verdicts.get(entry.name, ())
        rows.append(
            {
                axis: position.candidate.at,
                "set": entry.name,
                "kind": entry.kind,
                "metric": comparison.metric,
                "n": comparison.n,
                "base": comparison.first,
                "value": comparison.second,
                "changed": "better by" if entry.kind == "learn" else "worse by",
                "change": change.value,
                "stderr": change.stderr,
                "low": change.low,
                "high": change.high,
                "bound": ", ".join(f"{bound.sign}{bound.number:g}" for bound, _ in judged),
                "verdict": ", ".join(verdict for _, verdict in judged),
                "written": int(position is dial.best),
            }
        )
    return rows


def _panels(dial: Dial) -> dict[str, Panel]:
    panels = {}
    for entry in dial.sets:
        if entry.kind != "retain":
            continue
        stops = [Stop("base", "base", (0.0, math.nan, math.nan), (0.0, math.nan, math.nan))]
        for position in dial.positions:
            learned, forgotten = position.changes[dial.most], position.changes[entry.name]
            said: Said = "best" if position is dial.best else "within" if position.is_allowed else "beyond"
            ends = ((change.value, change.low, change.high) for change in (learned, forgotten))
            stops.append(Stop(position.candidate.name, said, *ends))
        judged = dial.positions[0].verdicts.get(entry.name, ())
        most = next((bound.number for bound, _ in judged if bound.sign == "<="), math.nan)
        panels[entry.name] = Panel(stops, dial.positions[0].comparisons[entry.name].metric, most)
    return panels
