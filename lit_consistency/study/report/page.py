"""The report as one HTML file that needs no network: what people send to one another.

Claims come first, each with what it rests on; then effects, fronts, curves and tables, and every single cell. Styles,
script, pictures and data are in the file. It is read without the script too, but for the table of cells.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment
from markupsafe import Markup

from lit_consistency.drawing.canvas import svg
from lit_consistency.drawing.figure import Figure
from lit_consistency.drawing.numbers import duration, with_interval
from lit_consistency.drawing.page import figure_context, page_environment, write_page_file
from lit_consistency.drawing.scales import short_number
from lit_consistency.study.report.charts.forest import draw_strip
from lit_consistency.study.report.content import ClaimResult, Content, ReadingRow
from lit_consistency.study.report.embedded import cells_json, cells_packed
from lit_consistency.study.report.figures import figures
from lit_consistency.study.report.words import (
    STATES,
    VERDICTS,
    claim_numbers,
    seeds_needed,
    state_counts,
    verdict_counts,
)

SECTIONS = (
    ("effects", "Effects", "What changes the number, and by how much."),
    ("fronts", "Learning against forgetting", "Down and to the right is better."),
    ("rates", "Rates", "A best rate at the edge of what was tried, or a level that was not reached, gives no verdict."),
    ("steps", "Over the steps", "Learning and forgetting as the runs went."),
    ("heat_maps", "Tables in colour", ""),
    ("variances", "Where the spread comes from", "What the seeds must cover for an interval to be honest."),
)
"""Kind of picture, its heading, and the sentence below."""
READING_COLUMNS = ("Cells", "Seed", "Place", "Worse by", "Between", "Interpolation", "Remark")


def write_page(content: Content, folder: Path, drawn: Sequence[Figure] | None = None) -> Path:
    """Write ``folder/index.html``.

    Args:
        content: of the report.
        folder: of the report; made if need be.
        drawn: its pictures, if they are drawn already.

    Returns:
        Path of the file.

    Raises:
        ValueError: two cells of a stage have one name.
    """
    # links from points to cells go by name
    names = Counter((cell.stage, cell.name) for cell in content.cells)
    if twice := [name for (_, name), n in names.items() if n > 1]:
        raise ValueError(f"cells: {len(twice)} names stand twice, such as {twice[0]!r}; expected every name once")
    context = _context(content, figures(content) if drawn is None else drawn)
    return write_page_file(folder / "index.html", _environment(), "study.html", context)


def _environment() -> Environment:
    environment = page_environment("lit_consistency.study.report")
    environment.globals |= {"signs": STATES, "verdicts": VERDICTS}
    return environment


def _context(content: Content, drawn: Sequence[Figure]) -> dict[str, Any]:
    """Everything the template shows, in its words."""
    sections = [
        {"key": key, "title": title, "lead": lead, "figures": [figure_context(f) for f in drawn if f.section == key]}
        for key, title, lead in SECTIONS
        if any(figure.section == key for figure in drawn)
    ]
    states = state_counts(content)
    # of a cell that never ran no time is known
    seconds = [cell.seconds for cell in content.runs if math.isfinite(cell.seconds)]
    return {
        "content": content,
        "title": content.title,
        "verdict_counts": verdict_counts(content.claims),
        "claims": [_claim(claim) for claim in content.claims],
        "sections": sections,
        "states": states,
        "unfinished": {state: n for state, n in states.items() if state != "finished"},
        "computed": duration(sum(seconds)) if seconds else "",
        "paragraphs": [p.strip() for p in content.description.split("\n\n") if p.strip()],
        "reading_columns": READING_COLUMNS,
        "readings": [_reading(row) for row in content.readings],
        "cells_json": Markup(cells_json(content)),
        "cells_packed": cells_packed(content),
    }


def _reading(row: ReadingRow) -> tuple[str, ...]:
    numbers = [short_number(value) if math.isfinite(value) else "" for value in (row.value, row.interpolation_error)]
    return f"{row.panel}, {row.group}", row.seed, row.place, numbers[0], row.neighbours, numbers[1], row.mark


def _claim(claim: ClaimResult) -> dict[str, Any]:
    # a claim without an effect keeps its place, and says why in its note
    strip = draw_strip(claim, 300)
    value, interval = with_interval(claim.value, claim.low, claim.high)
    return {
        "claim": claim,
        "sign": VERDICTS.get(claim.verdict, ("", ""))[0],
        "value": value if math.isfinite(claim.value) else "",
        "interval": interval,
        "needed": seeds_needed(claim),
        "strip": Markup(svg(strip, f"{claim.name}: {claim_numbers(claim)}")) if strip else "",
    }
