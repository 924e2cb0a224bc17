r"""Barriers: how far the loss of every text rises on the straight line between two models, for all pairs.

.. math::
    B = \max_{0 \le t \le 1} L((1 - t) W_1 + t W_2) - [(1 - t) L(W_1) + t L(W_2)]

over evenly spaced t, of all weights; 0 where the loss is convex between them, as within one basin. ``instability`` is
the older measure, the greatest loss on the line less the mean of its ends, which is greater the more the ends differ.

Sources: Frankle et al. 2020, Linear Mode Connectivity and the Lottery Ticket Hypothesis, arXiv 1912.05671
(instability); Entezari et al. 2022, The Role of Permutation Invariance in Linear Mode Connectivity, arXiv 2110.06296
(the chord). The base is one of the models where it is known. Given up: a search over permutations of the units, so
that a barrier between models from different starts says little; and what lies between two points of the line.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.curves import curves
from lit_consistency.analysis.core.losses import loss_row
from lit_consistency.analysis.core.model_files import ModelFiles, check_same_shapes
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import weights_put_back, write_mixture
from lit_consistency.analysis.linalg.lines import height_over_chord
from lit_consistency.drawing.charts.heat_map import HeatMap, draw_heat_map
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row

MOST_LINES = 8
"""Pairs whose lines are told apart in one picture; of more there is the map alone."""


@dataclass(frozen=True)
class Barriers(Analysis):
    """Barriers.

    Args:
        points: on every line, its ends among them.
    """

    title: ClassVar[str] = "Barriers between models"
    needs_text: ClassVar[bool] = True
    together: ClassVar[bool] = True

    points: int = 11

    def __post_init__(self) -> None:
        if self.points < 3:
            raise ValueError(f"points = {self.points}: expected at least 3, two of them the ends")

    def check(self, subject: Subject) -> None:
        """Two models of one shape must be there."""
        first, *others = ends(subject)
        if not others:
            raise ValueError(f"models: {first.folder} alone; expected two models, or one and its base")
        for other in others:
            check_same_shapes(first, other)

    def parts(self, subject: Subject) -> list[str]:
        """One a pair."""
        return [f"{one.name} to {two.name}" for one, two in combinations(ends(subject), 2)]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every point of the line and text."""
        pair = list(combinations(ends(subject), 2))[self.parts(subject).index(part)]
        named = {
            "pair": part, "first": pair[0].name, "second": pair[1].name,
            "first_optimizer": pair[0].optimizer, "second_optimizer": pair[1].optimizer,
        }  # fmt: skip
        found: list[Row] = []
        model = subject.load().model
        with weights_put_back(model):
            for t in np.linspace(0, 1, self.points).tolist():
                write_mixture(model, pair, [1 - t, t])
                found += [{**named, "t": t, **loss_row(subject, text, metric=False)} for text in subject.texts]
                advance(1 / self.points)
        return found

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """For each text the mean and the greatest of the barriers over pairs, and the mean instability."""
        numbers: dict[str, float] = {}
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            heights = list(barriers(rows, text).values())
            losses = [loss for _, loss in _lines(rows, text).values()]
            numbers |= {
                f"barrier/{text}": float(np.mean(heights)),
                f"barrier_max/{text}": float(np.max(heights)),
                f"instability/{text}": float(np.mean([loss.max() - (loss[0] + loss[-1]) / 2 for loss in losses])),
            }
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """For each text a map of the barriers of all pairs, and their lines where these are few."""
        drawn = []
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            heights = barriers(rows, text)
            names = list(dict.fromkeys(name for pair in heights for name in pair))
            values = [[heights.get((a, b), heights.get((b, a), math.nan)) for b in names] for a in names]
            unknown = [[math.nan] * len(names) for _ in names]
            heat = HeatMap("barrier in nats per token", "from", names, "to", names, values, unknown, False)
            caption = (
                f"How far the loss of {text} rises above the chord on the line between two models, nats per token."
            )
            table = [(a, b, short_number(height)) for (a, b), height in heights.items()]
            drawn.append(
                Figure("", "", f"Barriers: {text}", caption, draw_heat_map(heat, WIDTH), None,
                       ("from", "to", "barrier"), tuple(table))
            )  # fmt: skip
            if len(heights) <= MOST_LINES:
                own = [row for row in rows if row["text"] == text]
                caption = f"Loss of {text} on the straight lines between pairs of models; shaded: 95% of documents."
                title = f"Lines between models: {text}"
                drawn.append(curves(own, "t", "nats_per_token", "pair", title, caption, "t", "nats per token"))
        return drawn


def ends(subject: Subject) -> list[ModelFiles]:
    """The models between which lines are drawn: the base, where it is known, and all others."""
    base = subject.base
    # a base may be one of the models too, as the first of a series
    return [*([base] if base else []), *(m for m in subject.models if base is None or m.folder != base.folder)]


def barriers(rows: Sequence[Row], text: str) -> dict[tuple[str, str], float]:
    """Names of a pair -> its barrier on one text, in nats per token."""
    return {pair: height_over_chord(t, loss) for pair, (t, loss) in _lines(rows, text).items()}


def _lines(rows: Sequence[Row], text: str) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    lines: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for row in rows:
        if row["text"] == text:
            point = (float(row["t"]), float(row["nats_per_token"]))
            lines.setdefault((str(row["first"]), str(row["second"])), []).append(point)
    return {pair: (np.array(line)[:, 0], np.array(line)[:, 1]) for pair, line in lines.items()}
