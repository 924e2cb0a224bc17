r"""Plane: the loss of every text in the plane through the base and the first two of the models.

With d_1 = W_1 - W_0 and d_2 = W_2 - W_0 of all weights, Gram-Schmidt gives orthonormal directions

.. math::
    e_1 = d_1 / |d_1|, \qquad e_2 = (d_2 - \langle d_2, e_1 \rangle e_1) / |\ldots|,

and a point (x, y) is W_0 + x e_1 + y e_2: distances on the picture are distances between weights, in the Frobenius
norm. The base stands at (0, 0), the first model on the axis, the second where it is. A point is written as a mixture
of the three models (shares that sum to 1), rounded once, so that at the places of the models they are themselves, bit
for bit.

Source: Garipov et al. 2018, Loss Surfaces, Mode Connectivity, and Fast Ensembling of DNNs, arXiv 1802.10026. Given
up: all other directions; the two that were trained are not typical ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, NamedTuple

import numpy as np

from lit_consistency.analysis.core.analysis import Advance, Analysis
from lit_consistency.analysis.core.losses import loss_row
from lit_consistency.analysis.core.model_files import ModelFiles
from lit_consistency.analysis.core.subject import Subject
from lit_consistency.analysis.core.weights import weights_put_back, write_mixture
from lit_consistency.drawing.charts.field import Field, Mark, draw_field
from lit_consistency.drawing.figure import WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row

MODELS = "models"
"""The part that holds the three models themselves; the others are rows of the grid."""
PARALLEL = 1e-4
"""Sine of the angle between the updates below which they span no plane: rounding of bfloat16 weights makes as much."""


class Geometry(NamedTuple):
    """Where three models stand in their plane.

    Attributes:
        first: |d_1|; the first model is at (first, 0).
        along: of the second model, the coordinate along e_1.
        across: its coordinate along e_2, not negative.
    """

    first: float
    along: float
    across: float

    @property
    def places(self) -> list[tuple[float, float]]:
        """(x, y) of the base and of both models."""
        return [(0.0, 0.0), (self.first, 0.0), (self.along, self.across)]

    def shares(self, x: float, y: float) -> list[float]:
        """Shares of the base and of both models in the point (x, y); they sum to 1."""
        # d_2 has all of the coordinate across, and brings its own coordinate along
        second = y / self.across
        first = (x - second * self.along) / self.first
        return [1 - first - second, first, second]


@dataclass(frozen=True)
class Plane(Analysis):
    """Plane.

    Args:
        points: of the grid, on either axis.
        margin: how far the grid reaches beyond the models, as a share of their extent on either axis.
        metric: whether the number by which a task is judged (KL from the truth, accuracy) is measured too.
    """

    title: ClassVar[str] = "The plane of the base and two models"
    needs_base: ClassVar[bool] = True
    needs_text: ClassVar[bool] = True
    together: ClassVar[bool] = True

    points: int = 11
    margin: float = 0.4
    metric: bool = False

    def __post_init__(self) -> None:
        if self.points < 2:
            raise ValueError(f"points = {self.points}: expected at least 2")
        if not (math.isfinite(self.margin) and self.margin >= 0):
            raise ValueError(f"margin = {self.margin}: expected a number of at least 0")

    def check(self, subject: Subject) -> None:
        """Two models must be there, and must not lie on one line with the base."""
        if len(subject.models) < 2:
            raise ValueError(f"models: {subject.model.folder} alone; expected two models beside the base")
        first, second = subject.models[:2]
        where = geometry(subject.origin, first, second)
        if where.across <= PARALLEL * math.hypot(where.along, where.across) or where.first == 0:
            raise ValueError(
                f"{first.folder} and {second.folder} lie on one line with the base {subject.origin.folder}; expected "
                "three models that span a plane"
            )

    def parts(self, subject: Subject) -> list[str]:
        """The models, then one a row of the grid."""
        return [MODELS, *(f"row {i}" for i in range(self.points))]

    def measure(self, subject: Subject, part: str, advance: Advance) -> list[Row]:
        """A row for every point and text, with the place of the point."""
        trio = [subject.origin, *subject.models[:2]]
        where = geometry(*trio)
        if part == MODELS:
            # shares of exactly 0 and 1: by way of the coordinates they would be off by rounding
            exact = [(of.name, *place, [float(of is other) for other in trio])
                     for of, place in zip(trio, where.places, strict=True)]  # fmt: skip
        else:
            columns, rows = self.grid(where)
            y = rows[int(part.removeprefix("row "))]
            exact = [("", x, y, where.shares(x, y)) for x in columns]
        found: list[Row] = []
        model = subject.load().model
        with weights_put_back(model):
            for name, x, y, shares in exact:
                write_mixture(model, trio, shares)
                found += [{"at": name, "x": x, "y": y, **loss_row(subject, t, self.metric)} for t in subject.texts]
                advance(1 / len(exact))
        return found

    def grid(self, where: Geometry) -> tuple[list[float], list[float]]:
        """Values of x and of y, both ascending, with room around the models."""
        axes = []
        for values in zip(*where.places, strict=True):
            room = self.margin * (max(values) - min(values))
            axes.append(np.linspace(min(values) - room, max(values) + room, self.points).tolist())
        return axes[0], axes[1]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """The triangle of the models, and for each text the least loss on the grid, and how far from the base it is."""
        first, second = _places(rows)[1:]
        numbers = {
            "distance/first": first[1],
            "distance/second": math.hypot(*second[1:]),
            "cosine": second[1] / math.hypot(*second[1:]),
        }
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            grid = [row for row in rows if row["text"] == text and not row["at"]]
            known = [row for row in grid if math.isfinite(float(row["nats_per_token"]))]
            if known:
                best = min(known, key=lambda row: float(row["nats_per_token"]))
                numbers[f"lowest/{text}"] = float(best["nats_per_token"])
                numbers[f"lowest_distance/{text}"] = math.hypot(float(best["x"]), float(best["y"]))
        return numbers

    def figures(self, rows: Sequence[Row]) -> list[Figure]:
        """The field of every text, with the models on it."""
        drawn = []
        marks = [Mark(*place) for place in _places(rows)]
        for text in dict.fromkeys(str(row["text"]) for row in rows):
            own = [row for row in rows if row["text"] == text and not row["at"]]
            for column in ["nats_per_token", *(["value"] if self.metric else [])]:
                name = str(own[0]["metric"]) if column == "value" else "nats per token"
                xs, ys = (sorted({float(row[axis]) for row in own}) for axis in ("x", "y"))
                values = {(float(row["x"]), float(row["y"])): float(row[column]) for row in own}
                field = Field(xs, ys, [[values[x, y] for x in xs] for y in ys], marks)
                title = f"Plane: {text}" if column != "value" else f"Plane: {name} of {text}"
                caption = (
                    f"{name} of {text} in the plane of three models, which stand where they are marked; axes in the "
                    "Frobenius norm of the difference from the base, the stronger the colour the greater."
                )
                table = [(f"{x:.4g}", f"{y:.4g}", short_number(values[x, y])) for y in ys for x in xs]
                picture = draw_field(field, "along the first model's update", "across, in the Frobenius norm", WIDTH)
                drawn.append(Figure("", "", title, caption, picture, None, ("x", "y", name), tuple(table)))
        return drawn


def _places(rows: Sequence[Row]) -> list[tuple[str, float, float]]:
    """Name, x and y of the base and both models."""
    return list(dict.fromkeys((str(row["at"]), float(row["x"]), float(row["y"])) for row in rows if row["at"]))


@lru_cache(maxsize=4)
def geometry(base: ModelFiles, first: ModelFiles, second: ModelFiles) -> Geometry:
    """Gram-Schmidt of two updates, read one weight at a time, summed in float64."""
    of_first, product, of_second = 0.0, 0.0, 0.0
    read = [of.reader() for of in (base, first, second)]
    for name in base.shapes:
        start, *ends = (of(name).double().flatten() for of in read)
        one, two = (end - start for end in ends)
        of_first, product, of_second = (
            of_first + float(one @ one),
            product + float(one @ two),
            of_second + float(two @ two),
        )
    if of_first == 0:  # the first model is the base; check says so
        return Geometry(0.0, 0.0, math.sqrt(of_second))
    along = product / math.sqrt(of_first)
    return Geometry(math.sqrt(of_first), along, math.sqrt(max(of_second - along**2, 0.0)))
