"""The whole report of a study: page, figures, tables and TensorBoard, from what is on disk, in a second or two."""

from __future__ import annotations

from pathlib import Path

from lit_consistency.drawing.figure import write_figures
from lit_consistency.study.report.content import Content
from lit_consistency.study.report.figures import figures
from lit_consistency.study.report.page import write_page
from lit_consistency.study.report.tables import write_tables
from lit_consistency.study.report.tensorboard import write_tensorboard


def write_report(content: Content, folder: Path) -> list[str]:
    """Write ``index.html``, ``figures/``, ``results.csv`` and its kin, and ``tensorboard/`` into a folder.

    Args:
        content: what the report shows.
        folder: of the report; made if need be. What an earlier report left there is replaced.

    Returns:
        What could not be written because a package is absent, in sentences for the terminal.
    """
    drawn = figures(content)
    write_page(content, folder, drawn)
    missing = [*write_figures(drawn, folder / "figures"), *write_tables(content, folder)]
    write_tensorboard(content, folder / "tensorboard")
    return missing
