"""What a report shows, gathered from a study's plan and its cells."""

from __future__ import annotations

import math
import platform
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.run_folder import RunFolder
from lit_consistency.stats.matched import CurvePoint
from lit_consistency.stats.seeds import mean_interval
from lit_consistency.study.cells import Cell
from lit_consistency.study.claims import claim_results
from lit_consistency.study.crossed import as_effect, components, crossed_effects, order_spread
from lit_consistency.study.execute.state import State
from lit_consistency.study.options import Reading
from lit_consistency.study.pick import by_number
from lit_consistency.study.plan import Plan
from lit_consistency.study.points import Group, groups_of
from lit_consistency.study.reading import Where, fronts, rate_curves, read_group, tuned_curves
from lit_consistency.study.report.content import CellRow, Content, Effect, HeatMap, ReadingRow
from lit_consistency.study.results import Results

LOG_LINES = 12
PACKAGES = ("lit_consistency", "torch", "lightning", "litgpt", "numpy")


def summarize(plan: Plan, cells: Mapping[str, Sequence[Cell]], results: Results, command: str) -> Content:
    """The content of a report.

    Args:
        plan: of the study.
        cells: stage -> its cells that are known now.
        results: what came out.
        command: that runs the study.
    """
    study, reading = plan.study, plan.study.read
    groups = groups_of(cells[reading.stage], reading, results) if reading else []
    where = (
        Where("learning" if reading and reading.level is not None else "end", reading.forgetting) if reading else None
    )
    variances = components(groups, where, reading) if reading and where else []
    rates = rate_curves(groups, reading) if reading else []
    rates += [
        curve
        for metric, axis in (reading.tuned if reading else {}).items()
        for curve in _tuned(plan, cells, results, metric, axis)
    ]
    return Content(
        title=study.title,
        description=study.description,
        command=command,
        study_file=study_file(plan),
        axes=_axes(cells),
        cells=[_row(plan, cell, results) for of_stage in cells.values() for cell in of_stage],
        claims=claim_results(study, lambda stage, own: groups_of(cells[stage], own, results), command),
        effects=effects(groups, reading, order_spread(variances)) if reading else [],
        fronts=fronts(groups, reading) if reading else [],
        rates=rates,
        heat_maps=heat_maps(groups, reading) if reading else [],
        variances=variances,
        readings=readings(groups, reading) if reading else [],
        environment=_environment(plan, cells, results),
        not_run=_not_run(plan, cells, results),
        made=time.strftime("%Y-%m-%d %H:%M"),
        learning=_named(reading.learning, groups) if reading else "learning",
        forgetting=f"worse by, {_named(reading.forgetting, groups)}" if reading else "forgetting",
    )


def study_file(plan: Plan) -> str:
    """The study as YAML, complete."""
    from dataclasses import asdict

    content = {key: value for key, value in asdict(plan.study).items() if value not in (None, [], {})}
    return yaml.safe_dump(_plain(content), sort_keys=False, allow_unicode=True, width=110)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return value if isinstance(value, str | int | float | bool | type(None)) else str(value)


def _axes(cells: Mapping[str, Sequence[Cell]]) -> dict[str, dict[str, list[str]]]:
    axes: dict[str, dict[str, list[str]]] = {}
    for stage, of_stage in cells.items():
        names: dict[str, dict[str, None]] = {}
        for cell in of_stage:
            for axis, value in cell.coordinates.items():
                names.setdefault(axis, {})[value] = None
        axes[stage] = {axis: _in_order(list(values)) for axis, values in names.items()}
    return axes


def _in_order(values: list[str]) -> list[str]:
    """Numbers by their size, names as the study's file has them."""
    return sorted(values, key=by_number) if all(by_number(value)[0] == 0 for value in values) else values


def _row(plan: Plan, cell: Cell, results: Results) -> CellRow:
    result = results.of(cell.name)
    folder = plan.study.cells / cell.name
    log, config = _read_if_there(f"{folder}/log.txt"), _read_if_there(RunFolder(folder).config_file)
    return CellRow(
        name=cell.name,
        stage=cell.stage,
        coordinates=dict(cell.coordinates),
        state=result.state.value,
        seconds=result.seconds,
        metrics=dict(result.metrics),
        curve=results.curve(cell.name) if result.metrics else [],
        command=cell.command(plan.study.cells, plan.keeps_model(cell)),
        config=config,
        log="\n".join(log.splitlines()[-LOG_LINES:]),
        error=result.error,
        folder=folder,
    )


def _read_if_there(file: str | Path) -> str:
    try:
        with open(file, encoding="utf-8", errors="replace") as opened:
            return opened.read()
    except (FileNotFoundError, IsADirectoryError):
        return ""


def _tuned(plan: Plan, cells: Mapping[str, Sequence[Cell]], results: Results, metric: str, axis: str) -> list[Any]:
    """Curves of the stages that sweep this axis."""
    curves = []
    for name, stage in plan.stages.items():
        own = [other.name for other in stage.axes]
        if axis not in own:
            continue
        reading = Reading(
            stage=name, learning=metric, forgetting=metric, group=[a for a in plan.axes_of(name) if a != axis]
        )
        curves += tuned_curves(groups_of(cells[name], reading, results), metric, axis)
    return curves


# -------------------- effects and tables


def effects(groups: Sequence[Group], reading: Reading, spread: float) -> list[Effect]:
    """Of the crossed table of panels and groups, on every scale, where it is read; all differences within a panel."""
    shown = []
    # bases and finetuners of one name are matched pairs
    bases = [", ".join(group.coordinates[axis] for axis in reading.panel) for group in groups]
    rows, columns = ("base", list(dict.fromkeys(bases))), ("finetuner", list(dict.fromkeys(g.name for g in groups)))
    named = [
        Group(g.panel, g.name, {"base": b, "finetuner": g.name}, g.points, g.planned)
        for g, b in zip(groups, bases, strict=True)
    ]
    for at in places(reading):
        for scale in reading.scales:
            where = Where(at, reading.forgetting, scale)
            title = f"{reading.forgetting} {_place(at, reading)}"
            crossed = crossed_effects(named, rows, columns, where, reading)
            # what could not be read is a seed left out of its own effects, which say so
            read = [read_group(g, s, where, reading) for g in groups for s in g.seeds]
            marks = Counter(single.mark for single in read if single.mark and math.isfinite(single.value))
            mark = "; ".join(f"{n} of {len(read)} readings: {text}" for text, n in marks.most_common())
            shown += [
                as_effect(name, kind, title, where, contrast, spread if scale == "points" else float("nan"), mark)
                for name, (kind, contrast) in crossed.items()
                if contrast.n
            ]
    return shown


def places(reading: Reading) -> list[str]:
    """Where forgetting is read: at equal learning along rates and fronts, at equal divergence; else at the end."""
    matched = ["learning"] if reading.level is not None and reading.rate else []
    matched += ["front"] if reading.level is not None else []
    matched += ["divergence"] if reading.divergence_level is not None and reading.rate else []
    return matched or ["end"]


def _place(at: str, reading: Reading) -> str:
    return {
        "learning": f"at {reading.learning} = {reading.level}",
        "front": f"on the front at {reading.learning} = {reading.level}",
        "divergence": f"at {reading.divergence} = {reading.divergence_level}",
    }.get(at, "at the end")


def readings(groups: Sequence[Group], reading: Reading) -> list[ReadingRow]:
    """Every single reading in points."""
    rows = []
    for at in places(reading):
        where = Where(at, reading.forgetting)
        for group in groups:
            for seed in group.seeds:
                got = read_group(group, seed, where, reading)
                between = " and ".join(_point(point, reading.rate) for point in dict.fromkeys(got.between or ()))
                rows.append(
                    ReadingRow(
                        _place(at, reading),
                        group.panel,
                        group.name,
                        seed,
                        got.value,
                        between,
                        got.interpolation_error,
                        got.mark,
                    )
                )
    return rows


def _point(point: CurvePoint, rate: str | None) -> str:
    """A neighbour in words: rate, learning, forgetting."""
    at = "" if math.isnan(point.rate) else f"{rate} {point.rate:g}: "
    return f"{at}{point.learning:.4g}, {point.forgetting:.4g}"


def heat_maps(groups: Sequence[Group], reading: Reading) -> list[HeatMap]:
    """Forgetting of every panel and group, where it is read."""
    maps = []
    rows = list(dict.fromkeys(group.panel for group in groups))
    columns = list(dict.fromkeys(group.name for group in groups))
    for at in places(reading):
        where = Where(at, reading.forgetting)
        values, halves = ([[float("nan")] * len(columns) for _ in rows] for _ in range(2))
        for group in groups:
            interval = mean_interval([read_group(group, seed, where, reading).value for seed in group.seeds])
            i, j = rows.index(group.panel), columns.index(group.name)
            values[i][j], halves[i][j] = interval.mean, interval.high - interval.mean
        title = f"change of {reading.forgetting}, towards worse, {_place(at, reading)}"
        maps.append(
            HeatMap(title, ", ".join(reading.panel), rows, ", ".join(reading.group), columns, values, halves, False)
        )
    return maps


# -------------------- beside the numbers


def _named(metric: str, groups: Sequence[Group]) -> str:
    """With the metric that judges the task, and a sign where less of it is better."""
    point = next((point for group in groups for point in group.points), None)
    judge = point.result.judged_by.get(metric) if point else None
    sign = "" if point is None or point.result.more_is_better(metric) or metric.startswith("retain/") else "-"
    return f"{sign}{metric}" + (f" ({judge})" if judge else "")


def _environment(plan: Plan, cells: Mapping[str, Sequence[Cell]], results: Results) -> dict[str, Any]:
    found: dict[str, Any] = {
        "code": plan.code,
        "processor": processor(),
        "system": platform.platform(terse=True),
        "python": platform.python_version(),
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    every = [cell for of_stage in cells.values() for cell in of_stage]
    found["threads of a cell"] = ", ".join(sorted({str(cell.threads) for cell in every}))
    each = [results.of(name) for name in dict.fromkeys(cell.name for cell in every)]
    seconds = [result.seconds for result in each if result.metrics]
    found["hours of all finished cells"] = f"{sum(s for s in seconds if s == s) / 3600:.1f}"
    return found


def processor() -> str:
    """Its name, where the system tells it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next(line.partition(":")[2].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or "unknown"


def _not_run(plan: Plan, cells: Mapping[str, Sequence[Cell]], results: Results) -> list[str]:
    """What is missing and why, in sentences."""
    said = list(plan.waiting)
    for stage, of_stage in cells.items():
        counts: dict[State, int] = {}
        for cell in of_stage:
            state = results.of(cell.name).state
            counts[state] = counts.get(state, 0) + 1
        said += [
            f"{stage}: {n} of {len(of_stage)} cells are {state.value}"
            for state, n in counts.items()
            if state != State.FINISHED
        ]
    return said
