"""Rises of the loss under perturbations, put together over draws, and their pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from lit_consistency.analysis.core.curves import curves
from lit_consistency.analysis.core.tables import mean_by
from lit_consistency.drawing.charts.dots import Dot, draw_dots
from lit_consistency.drawing.charts.heat_map import HeatMap, draw_heat_map
from lit_consistency.drawing.figure import WIDE, WIDTH, Figure
from lit_consistency.drawing.scales import short_number
from lit_consistency.records.tables import Row
from lit_consistency.stats.seeds import MeanInterval, mean_interval

RANDOM = ("sign", "orthogonal", "gaussian")
NORM_NAMES = {"frobenius": "Frobenius norm", "native": "native norm", "absolute": "absolute norm"}


class Place(NamedTuple):
    """What a mean over draws is of."""

    model: str
    matrices: str
    kind: str
    norm: str
    radius: float


def of_reference(rows: Sequence[Row], radius: float, norm: str) -> list[Row]:
    """Rows of all matrices together, on the first text, at one radius."""
    return [
        row
        for row in _first_text(rows)
        if row["matrices"] == "together" and row["radius"] == radius and row["norm"] == norm
    ]


def rises(rows: Sequence[Row]) -> dict[str, MeanInterval]:
    """Kind -> mean rise over draws with Student's 95% interval."""
    kinds = dict.fromkeys(str(row["kind"]) for row in rows)
    return {kind: mean_interval(by_draw([row for row in rows if row["kind"] == kind])) for kind in kinds}


def by_draw(rows: Sequence[Row]) -> list[float]:
    """The rise of every draw, of both sides the mean: they are one draw, and not independent."""
    return list(mean_by(rows, ("draw",), "rise").values())


def log_ratio(one: float, two: float) -> float:
    """log(one / two); NaN unless both are positive."""
    return math.log(one / two) if one > 0 and two > 0 else math.nan


def _first_text(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row["text"] == rows[0]["text"]]


def crossed_figures(rows: Sequence[Row], reference: float) -> list[Figure]:
    """Everything there is to see on one text.

    Args:
        rows: of all models on one text, with ``model``.
        reference: radius of the crossed table and of the matrices by themselves.
    """
    if not rows:
        return []
    together = [row for row in rows if row["matrices"] == "together"]
    models = list(dict.fromkeys(str(row["model"]) for row in rows))
    drawn = []
    for norm in dict.fromkeys(str(row["norm"]) for row in rows):
        of_norm = _means([row for row in together if row["norm"] == norm])
        if len(models) > 1:
            for kinds, name in ((RANDOM, "random perturbations"), (("own", "other"), "updates")):
                own_kinds = [row for row in together if row["kind"] in kinds]
                drawn += _crossed(own_kinds, models, norm, reference, name)
            drawn += _log_ratios(of_norm, norm, str(rows[0]["text"]))
            for kind in dict.fromkeys(row["kind"] for row in of_norm):
                drawn.append(_ladder([r for r in of_norm if r["kind"] == kind], "model", norm, str(kind), rows))
        else:
            drawn.append(_ladder(of_norm, "kind", norm, "all kinds", rows))
    for model in models:
        drawn += _apart([row for row in rows if row["model"] == model], model, len(models) > 1, reference)
    return drawn


def _means(rows: Sequence[Row]) -> list[Row]:
    """One row for every place: the mean over draws, and the lowest and highest draw."""
    of_place: dict[Place, list[Row]] = {}
    for row in rows:
        place = Place(str(row["model"]), str(row["matrices"]), str(row["kind"]), str(row["norm"]), float(row["radius"]))
        of_place.setdefault(place, []).append(row)
    found: list[Row] = []
    for place, own in of_place.items():
        values = by_draw(own)
        known = [value for value in values if math.isfinite(value)] or [math.nan]
        spread = (min(known), max(known)) if len(values) > 1 else (math.nan, math.nan)
        numbers = {"rise": sum(known) / len(known), "rise_low": spread[0], "rise_high": spread[1]}
        found.append({**place._asdict(), **numbers})
    return found


def _ladder(means: Sequence[Row], group: str, norm: str, kind: str, rows: Sequence[Row]) -> Figure:
    caption = (
        f"Rise of the loss of {rows[0]['text']} over the size of the perturbation, in the {NORM_NAMES[norm]} "
        "relative to the matrix; mean over draws, shaded from the lowest to the highest one."
    )
    title = f"Rise under {kind}, {NORM_NAMES[norm]}"
    return curves(means, "radius", "rise", group, title, caption, "radius", "rise, nats per token", True, True)


def _crossed(rows: Sequence[Row], models: Sequence[str], norm: str, reference: float, name: str) -> list[Figure]:
    """Models x kinds; updates by themselves, whose rises are others' many times."""
    if not of_reference(rows, reference, norm):
        return []
    by_model = {
        model: rises(of_reference([r for r in rows if r["model"] == model], reference, norm)) for model in models
    }
    optimizers = {str(row["model"]): str(row["optimizer"]) for row in rows}
    kinds = list(dict.fromkeys(kind for found in by_model.values() for kind in found))
    none = mean_interval([])
    cells = [[by_model[model].get(kind, none) for kind in kinds] for model in models]
    names = [f"{model} ({optimizers.get(model, 'unknown')})" for model in models]
    heat = HeatMap(
        f"rise in nats per token at {reference:g}", "model (its optimizer)", names, "perturbation", kinds,
        [[cell.mean for cell in row] for row in cells], [[(cell.high - cell.low) / 2 for cell in row] for row in cells],
        higher_is_better=False,
    )  # fmt: skip
    caption = (
        f"Rise of the loss of {rows[0]['text']} at {reference:g} of each matrix's {NORM_NAMES[norm]}, nats per token; "
        f"mean over draws with its 95% interval. {_said(name, norm)}"
    )
    table = [(name, *(short_number(cell.mean) for cell in row)) for name, row in zip(names, cells, strict=True)]
    title = f"Models x {name}, {NORM_NAMES[norm]}"
    return [Figure("", "", title, caption, draw_heat_map(heat, WIDTH), None, ("model", *kinds), tuple(table))]


def _said(name: str, norm: str) -> str:
    """What the crossed table can tell."""
    if name == "updates":
        return "Consistency says that both bases are hurt less by their own optimizer's updates."
    if norm == "frobenius":
        return "To second order random kinds of one Frobenius norm raise the loss alike, on any model."
    return (
        "Consistency says that AdamW's base is hurt less by sign, Muon's by orthogonal; see log_size_ratio for how "
        "much of that is the shape of the weights."
    )


def _log_ratios(means: Sequence[Row], norm: str, text: str) -> list[Figure]:
    """Where one model's line lies above the other's there is an interaction."""
    rise = {(row["model"], row["kind"], row["radius"]): float(row["rise"]) for row in means}
    drawn = []
    for one, two in (("sign", "orthogonal"), ("own", "other")):
        rows: list[Row] = [
            {"model": model, "radius": radius, "ratio": log_ratio(value, rise[model, two, radius])}
            for (model, kind, radius), value in rise.items()
            if kind == one and (model, two, radius) in rise
        ]
        if rows and any(math.isfinite(float(row["ratio"])) for row in rows):
            caption = (
                f"log of the mean rise of {text} under {one} over that under {two}, at radii in the "
                f"{NORM_NAMES[norm]}; the distance of two models' lines is the interaction of model and perturbation."
            )
            title = f"{one} against {two}, {NORM_NAMES[norm]}"
            y_title = f"log(rise {one} / rise {two})"
            drawn.append(curves(rows, "radius", "ratio", "model", title, caption, "radius", y_title, log_x=True,
                                levels={"equal": 0.0}))  # fmt: skip
    return drawn


def _apart(rows: Sequence[Row], model: str, several: bool, reference: float) -> list[Figure]:
    """Every role or kind of matrix perturbed by itself."""
    at = [
        row for row in rows
        if row["matrices"] != "together" and row["radius"] == reference and row["norm"] == rows[0]["norm"]
    ]  # fmt: skip
    if not at:
        return []
    dots = []
    for matrices in dict.fromkeys(str(row["matrices"]) for row in at):
        for kind, rise in rises([row for row in at if row["matrices"] == matrices]).items():
            dots.append(Dot(matrices, kind, rise.mean, rise.low, rise.high))
    caption = (
        f"Rise of the loss of {rows[0]['text']} where only these matrices are perturbed, at {reference:g} of their "
        f"{NORM_NAMES[str(at[0]['norm'])]}; mean over draws with its 95% interval."
    )
    table = [(dot.row, dot.group, short_number(dot.value)) for dot in dots]
    title = "Matrices by themselves" + (f": {model}" if several else "")
    picture = draw_dots(dots, "rise, nats per token", WIDE / 2)
    return [Figure("", "", title, caption, picture, None, ("matrices", "kind", "rise"), tuple(table))]
