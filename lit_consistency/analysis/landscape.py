r"""Landscape: the loss of every text on the line from the base through the model and beyond.

With all weights W_0 of the base and W of the model, norms and biases among them,

.. math::
    L(t) = \text{loss}(W_0 + t (W - W_0)), \qquad t = -2 \ldots 2,

in nats per token of each text, with the interval over its documents; t = 0 is the base and t = 1 the model, bit for
bit. 21 points from -2 to 2 are those of MoFO's figure (Chen et al. 2024, arXiv 2407.20999); the line between two sets
of weights is that of Goodfellow, Vinyals and Saxe 2015, Qualitatively Characterizing Neural Network Optimization
Problems, arXiv 1412.6544.

Numbers for each text: ``change`` L(1) - L(0); ``barrier`` the most that L lies above its chord between 0 and 1;
``lowest_t`` where on the points L is least; ``curvature`` L'' at 0 by the second difference of the neighbouring
points, in nats per unit of t squared, which at a minimum of the text's loss is the quadratic form of its Hessian in
the update.

Given up: what lies beside the line (see ``plane``); a straight line is not the path of the training, and a network
with its units permuted is the same one elsewhere.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.curves import curves
from lit_consistency.analysis.core.losses import loss_row
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import weights_put_back, write_mixture
from lit_consistency.analysis.linalg.lines import height_over_chord, second_difference
from lit_consistency.drawing.figure import Figure
from lit_consistency.records.tables import Row


@dataclass(frozen=True)
class Landscape(Analysis):
    """Landscape.

    Args:
        low: first point of the line; 0 is the base.
        high: last point; 1 is the model.
        points: evenly spaced ones; 0 and 1 are added where they are not among them.
        metric: whether the number by which a task is judged (KL from the truth, accuracy) is measured too.
    """

    title: ClassVar[str] = "The line from the base through the model"
    needs_base: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True

    low: float = -2.0
    high: float = 2.0
    points: int = 21
    metric: bool = False

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"low = {self.low}, high = {self.high}: expected two numbers, low < high")
        if self.points < 2:
            raise ValueError(f"points = {self.points}: expected at least 2")

    @property
    def places(self) -> list[float]:
        """Values of t, ascending."""
        # rounded, so that 1 is 1 and the model itself
        even = [round(float(t), 9) + 0.0 for t in np.linspace(self.low, self.high, self.points)]
        return sorted({*even, 0.0, 1.0})

    def parts(self, subject: Subject) -> list[str]:
        """One a point."""
        return [f"t = {t!r}" for t in self.places]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every text."""
        t = float(part.removeprefix("t = "))
        model = subject.load().model
        with weights_put_back(model):
            write_mixture(model, [subject.origin, subject.model], [1 - t, t])
            return [{"t": t, **loss_row(subject, text, self.metric)} for text in subject.texts]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The shape of the line, for each text."""
        numbers: dict[str, float] = {}
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            line = sorted((float(row["t"]), float(row["nats_per_token"])) for row in rows if row["text"] == text)
            t, loss = map(np.asarray, zip(*line, strict=True))
            between = (t >= 0) & (t <= 1)
            # far out on the line weights may be so large that no loss is a number
            known = np.where(np.isfinite(loss), loss, np.inf)
            numbers |= {
                f"change/{text}": float(loss[t == 1][0] - loss[t == 0][0]),
                f"barrier/{text}": height_over_chord(t[between], loss[between]),
                f"lowest_t/{text}": float(t[known.argmin()]),
                f"curvature/{text}": second_difference(t, loss, 0.0),
            }
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The line of every model, one picture for each text and number."""
        drawn = []
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            own = [row for row in rows if row["text"] == text]
            caption = (
                f"Loss of {text} between the base (t = 0) and the model (t = 1), and beyond; shaded: 95% of documents."
            )
            drawn.append(curves(own, "t", "nats_per_token", "model", f"Line: {text}", caption, "t", "nats per token"))
            if self.metric:
                name = str(own[0]["metric"])
                caption = f"{name} of {text}, by which the task is judged, on the same line."
                drawn.append(curves(own, "t", "value", "model", f"Line: {name} of {text}", caption, "t", name))
        return drawn
