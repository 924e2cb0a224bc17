"""The matrix of scores as a picture; needs matplotlib (extra ``analysis``)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np

from lit_consistency.study.sequence.matrix import Matrix


def draw_heat_map(matrix: Matrix, title: str, path: Path) -> bool:
    """Draw mean scores over the finished seeds: one row a task, one column a stage, the own stage framed.

    Colours tell the change from the base, each row by its own largest change, because tasks have different metrics.

    Args:
        matrix: with at least one finished seed.
        title: above the picture.
        path: the .png file.

    Returns:
        Whether there is a picture: not without matplotlib.
    """
    if find_spec("matplotlib") is None:
        return False
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle

    scores = np.mean([matrix.scores[seed] for seed in matrix.finished], axis=0).T  # (tasks, 1 + t)
    change = scores - scores[:, :1]
    largest = np.nan_to_num(np.abs(change).max(1, keepdims=True))
    shade = np.divide(change, largest, out=np.zeros_like(change), where=largest > 0)
    n_tasks, n_columns = scores.shape
    figure = Figure(figsize=(3.5 + 1.1 * n_columns, 1.8 + 0.45 * n_tasks), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    image = axes.imshow(shade, cmap="RdBu", vmin=-1.4, vmax=1.4, aspect="auto")
    for (row, column), value in np.ndenumerate(scores):
        axes.text(column, row, f"{value:.3f}", ha="center", va="center", fontsize=9)
    for k in range(len(matrix.stages)):
        axes.add_patch(Rectangle((k + 0.5, k - 0.5), 1, 1, fill=False, edgecolor="black", linewidth=1.8))
    if len(matrix.tasks) > len(matrix.stages):
        axes.axhline(len(matrix.stages) - 0.5, color="black", linewidth=0.8)
    axes.set_xticks(range(n_columns), ["base", *matrix.stages], rotation=30, ha="right", rotation_mode="anchor")
    labels = [f"{task}\n({metric})" for task, metric in zip(matrix.tasks, matrix.metrics, strict=True)]
    axes.set_yticks(range(n_tasks), labels, fontsize=8)
    axes.set_xlabel("after training on")
    axes.set_title(title, fontsize=10)
    bar = figure.colorbar(image, ax=axes, ticks=[-1, 0, 1])
    bar.set_label("change from the base\n(1: the task's largest)")
    bar.ax.set_ylim(-1, 1)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    return True
