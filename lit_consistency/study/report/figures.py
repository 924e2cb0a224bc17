"""Which pictures a study has, their titles and captions."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from lit_consistency.drawing.charts.heat_map import draw_heat_map
from lit_consistency.drawing.figure import PHONE, WIDE, WIDTH, Figure, named
from lit_consistency.drawing.numbers import fixed, probability, with_interval
from lit_consistency.drawing.palette import Style, style
from lit_consistency.drawing.scales import short_number
from lit_consistency.study.report.charts.curves import StepCurves, draw_rates, draw_steps
from lit_consistency.study.report.charts.forest import draw_forest, forest_key
from lit_consistency.study.report.charts.front import draw_fronts
from lit_consistency.study.report.charts.variances import draw_variances
from lit_consistency.study.report.content import CellRow, Content, RateCurve
from lit_consistency.study.report.embedded import named_metric

T = TypeVar("T")


def figures(content: Content) -> list[Figure]:
    """All pictures of a study, in the order of the report; a group looks the same in each of them."""
    groups = dict.fromkeys([*(f.group for f in content.fronts), *(r.group for r in content.rates)])
    curves = step_curves(content)
    groups |= dict.fromkeys(curve.group for _, _, rows in curves for curve in rows)
    # one numbering for all pictures: a reader learns a colour once
    styles = {group: style(i) for i, group in enumerate(groups)}
    drawn = [
        *_effects(content),
        *_fronts(content, styles),
        *_rates(content, styles),
        *_steps(curves, styles, content),
        *_heat_maps(content),
        *_variances(content),
    ]
    return named(drawn)


def _grouped(rows: Iterable[T], key: Callable[[T], tuple[str, ...]]) -> dict[tuple[str, ...], list[T]]:
    """Rows by key, both in the order of their first appearance."""
    grouped: dict[tuple[str, ...], list[T]] = defaultdict(list)
    for row in rows:
        grouped[key(row)].append(row)
    return grouped


# -------------------- one kind each


def _effects(content: Content) -> Iterable[Figure]:
    for (table, scale), effects in _grouped(content.effects, lambda e: (e.table, e.scale)).items():
        columns = ("effect", "kind", "value", "95% interval", "p", "seeds", "order spread", "detectable", "mark")
        rows = []
        for e in effects:
            value, interval = with_interval(e.value, e.low, e.high)
            p = probability(e.p).removeprefix("p ").removeprefix("= ")
            spread = (short_number(e.order_spread), short_number(e.detectable))
            rows.append((e.name, e.kind, value, interval, p, str(e.n), *spread, e.mark))
        # names of effects are sentences: a phone has no room for them beside the intervals
        pictures = draw_forest(effects, WIDE), draw_forest(effects, PHONE)
        yield Figure("", "effects", f"{table}, in {scale}", forest_key(effects), *pictures, columns, tuple(rows))


def _fronts(content: Content, styles: dict[str, Style]) -> Iterable[Figure]:
    for (panel,), fronts in _grouped(content.fronts, lambda f: (f.panel,)).items():
        picture, left_out = draw_fronts(fronts, styles, content.learning, content.forgetting, WIDTH)
        # a group may have lost seeds that another still has
        seeds = sorted({len({p.seed for p in front.points}) for front in fronts})
        said = f"{seeds[0]}" if len(seeds) == 1 else f"{seeds[0]} to {seeds[-1]}"
        caption = (
            f"Lines: what half of the seeds attain; bands: from the best to the worst of {said} seeds, and their "
            "middle half. Filled: the end of a run; hollow: a step on the way or an interpolation; dots: dominated."
        )
        rows = [
            (f.group, *with_interval(*f.hypervolume, sign=False), " ".join(map(short_number, f.reference)))
            for f in fronts
        ]
        yield Figure("", "fronts", panel, f"{caption} {left_out}".strip(), picture, None, FRONT_COLUMNS, tuple(rows))


FRONT_COLUMNS = ("group", "hypervolume", "95% interval", "to the reference")


def _rates(content: Content, styles: dict[str, Style]) -> Iterable[Figure]:
    for (panel, axis, metric), curves in _grouped(content.rates, lambda r: (r.panel, r.axis, r.metric)).items():
        picture, left_out = draw_rates(curves, styles, WIDTH)
        caption = "Thick: mean over seeds with its interval; thin: single seeds; ring: the best rate."
        rows = [(c.group, short_number(c.best), c.mark or "bracketed") for c in curves]
        columns = ("group", f"best {axis}", "can it be relied on")
        title = f"{panel}: {metric} over {axis}"
        yield Figure("", "rates", title, f"{caption} {left_out}".strip(), picture, None, columns, tuple(rows))


def _steps(
    curves: Sequence[tuple[str, str, list[StepCurves]]], styles: dict[str, Style], content: Content
) -> Iterable[Figure]:
    for panel, metric, rows in curves:
        caption = "Thick: mean of the finished cells; thin: single cells; shaded: from the lowest to the highest."
        if any(curve.stopped for curve in rows):
            caption += " Dotted with a cross: cells that did not finish; they are in no mean."
        chosen = [f"{r.group} {r.axis} {short_number(r.best)}" for r in _best_rates(content, panel).values()]
        if chosen:
            caption += f" Each at its best rate: {', '.join(chosen)}."
        yield Figure("", "steps", f"{panel}: {metric} over steps", caption, draw_steps(rows, styles, metric, WIDTH))


def _heat_maps(content: Content) -> Iterable[Figure]:
    for heat in content.heat_maps:
        columns = (f"{heat.rows_axis} \\ {heat.columns_axis}", *heat.columns)
        rows = []
        for name, values, halves in zip(heat.rows, heat.values, heat.intervals, strict=True):
            cells = [
                f"{short_number(v)}{f' ± {short_number(h)}' if math.isfinite(h) else ''}"
                for v, h in zip(values, halves, strict=True)
            ]
            rows.append((name, *cells))
        known = any(math.isfinite(half) for row in heat.intervals for half in row)
        caption = "Below a number: half of its 95% interval." if known else ""
        yield Figure("", "heat_maps", heat.title, caption, draw_heat_map(heat, WIDTH), None, columns, tuple(rows))


def _variances(content: Content) -> Iterable[Figure]:
    names = dict.fromkeys(name for variance in content.variances for name in variance.components)
    styles = {name: style(i) for i, name in enumerate(names)}
    for (metric,), variances in _grouped(content.variances, lambda v: (v.metric,)).items():
        rows = [(v.group, *(fixed(v.components.get(n, math.nan), 4) for n in names)) for v in variances]
        caption = "How far the number spreads, as a standard deviation, when only this is drawn anew."
        picture = draw_variances(variances, styles, WIDTH)
        yield Figure("", "variances", f"Spread of {metric}", caption, picture, None, ("group", *names), tuple(rows))


# -------------------- curves over steps


def step_curves(content: Content) -> list[tuple[str, str, list[StepCurves]]]:
    """What was measured on the way, of every panel of the fronts, each group at its best rate.

    Without fronts the stages are the panels, and the values of the first axis that varies the groups.

    Returns:
        (panel, metric, curves); the metrics are those of the fronts, or the first two where these were not measured.
    """
    keys = dict.fromkeys(k for c in content.cells for row in c.curve for k in row if not k.endswith(".stderr"))
    keys.pop("step", None)
    named = [m for text in (content.learning, content.forgetting) if (m := named_metric(text, keys))]
    metrics = list(dict.fromkeys(named)) or list(keys)[:2]
    found = []
    # stopped cells alone make a picture too: that all of a group diverged is a result
    for panel, groups in _step_groups(content).items():
        for metric in metrics:
            rows = [_curves_of(group, cells, metric) for group, cells in groups.items()]
            rows = [row for row in rows if row.finished or row.stopped]
            if rows:
                found.append((panel, metric, rows))
    return found


def _curves_of(group: str, cells: Sequence[CellRow], metric: str) -> StepCurves:
    curves = StepCurves(group)
    for cell in cells:
        points = [(row["step"], row[metric]) for row in cell.curve if metric in row and "step" in row]
        if points:
            (curves.finished if cell.state == "finished" else curves.stopped)[cell.name] = points
    return curves


def _step_groups(content: Content) -> dict[str, dict[str, list[CellRow]]]:
    """Panel -> group -> its cells."""
    if not content.fronts:
        return {stage: _by_first_axis(content, stage) for stage in content.axes}
    by_name = {cell.name: cell for cell in content.cells}
    by_recipe = _grouped(content.cells, _recipe)
    panels: dict[str, dict[str, list[CellRow]]] = defaultdict(dict)
    for front in content.fronts:
        cells = [by_name[name] for name in dict.fromkeys(p.cell for p in front.points) if name in by_name]
        rate = _best_rates(content, front.panel).get(front.group)
        if rate is not None:
            cells = _at_rate(cells, rate)
        # a diverged cell is in no front: it is found by what it has in common with those that are
        panels[front.panel][front.group] = [
            c for recipe in dict.fromkeys(map(_recipe, cells)) for c in by_recipe[recipe]
        ]
    return panels


def _recipe(cell: CellRow) -> tuple[str, ...]:
    """Stage and coordinates of a cell but its seeds."""
    return (cell.stage, *(f"{axis}={value}" for axis, value in cell.coordinates.items() if "seed" not in axis.lower()))


def _best_rates(content: Content, panel: str) -> dict[str, RateCurve]:
    """Group -> the first of its rate curves in this panel that has a best rate."""
    curves = [curve for curve in content.rates if curve.panel == panel and math.isfinite(curve.best)]
    first: dict[str, RateCurve] = {}
    for curve in curves:
        first.setdefault(curve.group, curve)
    return first


def _at_rate(cells: Sequence[CellRow], curve: RateCurve) -> list[CellRow]:
    """Cells at the rate that is nearest to the best one; all of them if their coordinates say no rate."""
    distance = {cell.name: _distance(cell.coordinates.get(curve.axis, ""), curve.best) for cell in cells}
    nearest = min(distance.values(), default=math.inf)
    return [cell for cell in cells if distance[cell.name] == nearest]


def _distance(value: str, best: float) -> float:
    try:
        return abs(float(value) - best)
    except ValueError:
        return math.inf


def _by_first_axis(content: Content, stage: str) -> dict[str, list[CellRow]]:
    axes = content.axes[stage]
    axis = next((a for a, values in axes.items() if len(values) > 1 and "seed" not in a.lower()), "")
    cells = [cell for cell in content.cells if cell.stage == stage]
    return {group[0]: rows for group, rows in _grouped(cells, lambda c: (c.coordinates.get(axis, stage),)).items()}
