"""Verdicts: each claim's contrast over seeds, decided against the smallest effect that was fixed before the first run.

The claims of a study are tested together (Holm): with many of them one would come out by chance. A claim whose numbers
cannot be relied on (a level that is not bracketed, a best rate at the edge) has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.stats.effects import Contrast, at_level, over_seeds
from lit_consistency.stats.verdicts import decision_p, holm, holm_levels, seeds_needed, verdict
from lit_consistency.study.axes import Axis
from lit_consistency.study.crossed import table_of
from lit_consistency.study.options import FRONTS, METRIC, Claim, Reading, StudyOptions, at_least, one_of
from lit_consistency.study.points import Group
from lit_consistency.study.reading import Where, read_group
from lit_consistency.study.report.content import ClaimResult

NO_VERDICT = "no verdict"
LEAST_SEEDS = 3
MOST_LOST = 0.2
"""Share of the seeds that may lack a number; with more of them missing, what is left is a selection."""


class Decided(NamedTuple):
    """A claim's contrast, and why it cannot be relied on."""

    contrast: Contrast
    note: str


def check_claims(study: StudyOptions, axes: Mapping[str, Mapping[str, Axis]]) -> None:
    """See that every claim is about cells and numbers that the study has.

    Args:
        study: its options.
        axes: stage -> its axes.

    Raises:
        ValueError: naming the claim, the key, the value and what is allowed.
    """
    for name, claim in study.claims.items():
        key = f"claims.{name}"
        at_least(f"{key}.smallest_effect", claim.smallest_effect, 0)
        if claim.stage is not None:
            one_of(f"{key}.stage", claim.stage, axes)
            if claim.metric is None and METRIC not in claim.columns:
                raise ValueError(f"{key}.metric: expected the number of stages.{claim.stage} that is claimed")
            stage, allowed = claim.stage, list(axes[claim.stage])
        elif study.read is None:
            raise ValueError("claims: expected read, which says how the cells are read; or stage in every claim")
        else:
            _check_places(key, claim, study.read)
            stage, allowed = study.read.stage, [*study.read.panel, *study.read.group]
            if claim.at == "end" and claim.contrast == "difference" and study.read.rate:
                allowed.append(study.read.rate)
        for side, given in _sides(key, claim).items():
            for axis, values in given.items():
                if axis == METRIC and side == "columns":
                    continue  # which numbers an analysis has is known when it has run
                one_of(f"{key}.{side}", axis, allowed)
                names = [value.name for branch in axes[stage][axis].values.values() for value in branch]
                for value in values:
                    one_of(f"{key}.{side}.{axis}", str(value), names)


def _sides(key: str, claim: Claim) -> dict[str, dict[str, list[str]]]:
    """The two sides of a contrast: axis -> values."""
    if claim.contrast == "interaction":
        for side, given in (("rows", claim.rows), ("columns", claim.columns)):
            if [len(names) for names in given.values()] != [2]:
                raise ValueError(f"{key}.{side} = {given}: expected one axis with two of its values")
        return {"rows": claim.rows, "columns": claim.columns}
    if not claim.of or not claim.against or claim.of == claim.against:
        raise ValueError(f"{key}: of = {claim.of}, against = {claim.against}: expected two different sets of cells")
    sides = {"of": claim.of, "against": claim.against}
    return {name: {axis: [value] for axis, value in _axes_of(side).items()} for name, side in sides.items()}


def _axes_of(side: Mapping[str, str]) -> dict[str, str]:
    return {axis: value for axis, value in side.items() if axis != AT}


AT = "at"  # in a side of a difference: where this side is read


def _check_places(key: str, claim: Claim, reading: Reading) -> None:
    """See that the reading has what the places need at which the claim, or each side of it, is read."""
    own = [side[AT] for side in (claim.of, claim.against) if AT in side]
    for at in own:
        one_of(f"{key}.of.at, against.at", at, FRONTS)
    if len(own) == 1:
        raise ValueError(f"{key}: of = {claim.of}, against = {claim.against}: expected at in both, or in neither")
    at_divergence = {"read.divergence": reading.divergence, "read.divergence_level": reading.divergence_level}
    needs: dict[str, dict[str, Any]] = {
        "learning": {"read.level": reading.level, "read.rate": reading.rate},
        "divergence": {**at_divergence, "read.rate": reading.rate},
        **{front: {"read.level": reading.level} for front in FRONTS},
        "best": {"read.rate": reading.rate},
    }
    for at in own or [claim.at]:
        if missing := [option for option, value in needs.get(at, {}).items() if value is None]:
            raise ValueError(f"{key}.at = {at}: expected {missing[0]} too")


GroupsOf = Callable[[str, Reading], Sequence[Group]]
"""Groups of a stage's cells as a reading has them."""


def claim_results(study: StudyOptions, groups_of_stage: GroupsOf, command: str) -> list[ClaimResult]:
    """Every claim with its verdict, in the order of the study's file.

    Args:
        study: its options.
        groups_of_stage: the cells that have been run.
        command: that makes the numbers.
    """
    readings = {name: _reading(claim, study.read) for name, claim in study.claims.items()}
    decided = {
        name: _decided(claim, groups_of_stage(readings[name].stage, readings[name]), readings[name])
        for name, claim in study.claims.items()
    }
    tested = [
        decision_p(entry.contrast, study.claims[name].smallest_effect) if not entry.note else math.nan
        for name, entry in decided.items()
    ]
    rows = zip(decided.items(), holm(tested), holm_levels(tested), strict=True)
    return [_result(name, study.claims[name], entry, p, level, command) for (name, entry), p, level in rows]


def _reading(claim: Claim, reading: Reading | None) -> Reading:
    """The study's reading, or of a claim with a stage its own: cells are grouped by the axes that it names."""
    if claim.stage is None:
        assert reading is not None
        return reading
    named = [axis for side in (claim.rows, claim.columns, claim.of, claim.against) for axis in side if axis != METRIC]
    return Reading(claim.stage, "", claim.metric or "", panel=[], group=list(dict.fromkeys(named)))


def _result(name: str, claim: Claim, decided: Decided, p: float, level: float, command: str) -> ClaimResult:
    contrast = at_level(decided.contrast, level)
    said = NO_VERDICT
    if not decided.note:
        said = verdict(
            contrast.low, contrast.high, claim.smallest_effect, "lower" if claim.expect == "below" else "higher"
        )
    sd = contrast.stderr * math.sqrt(contrast.n) if contrast.n > 1 else math.nan
    needed = seeds_needed(sd, contrast.value, claim.smallest_effect, level=level) if said == "undecided" else 0
    return ClaimResult(
        name=name,
        sentence=claim.sentence,
        verdict=said,
        scale=claim.scale,
        value=contrast.value,
        low=contrast.low,
        high=contrast.high,
        smallest_effect=claim.smallest_effect,
        n=contrast.n,
        seeds_needed=needed,
        p=p,
        note=decided.note or (f"{contrast.left_out} seeds lack a number" if contrast.left_out else ""),
        command=command,
    )


def _decided(claim: Claim, groups: Sequence[Group], reading: Reading) -> Decided:
    at = claim.at if claim.stage is None else "end"
    where = Where(at, claim.metric or reading.forgetting, claim.scale, claim.itself)
    try:
        differences, marks = (
            _interaction(claim, groups, where, reading)
            if claim.contrast == "interaction"
            else _difference(claim, groups, where, reading)
        )
    except ValueError as error:
        return Decided(over_seeds([]), str(error))
    contrast = over_seeds(differences)
    return Decided(contrast, _note(contrast, marks))


def _note(contrast: Contrast, marks: Sequence[str]) -> str:
    """Why there is no verdict."""
    reasons = sorted({mark for mark in marks if mark})
    if contrast.n < LEAST_SEEDS:
        why = f" ({'; '.join(reasons)})" if reasons else ""
        return f"{contrast.n} seeds with all numbers; expected at least {LEAST_SEEDS}{why}"
    total = contrast.n + contrast.left_out
    if contrast.left_out > MOST_LOST * total:
        return f"{contrast.left_out} of {total} seeds lack a number: {'; '.join(reasons)}"
    edges = [reason for reason in reasons if "edge" in reason]
    return edges[0] if edges else ""


def _interaction(claim: Claim, groups: Sequence[Group], where: Where, reading: Reading) -> tuple[np.ndarray, list[str]]:
    row_axis, row_names = next(iter(claim.rows.items()))
    column_axis, column_names = next(iter(claim.columns.items()))
    if column_axis == METRIC:
        cells = {row: _matching(groups, {row_axis: row}) for row in row_names}
        return _interaction_of_metrics([cells[row] for row in row_names], column_names, where, reading)
    seeds, table = table_of(groups, (row_axis, row_names), (column_axis, column_names), where, reading)
    marks = [
        read_group(group, seed, where, reading).mark
        for group in groups
        if group.coordinates.get(row_axis) in row_names and group.coordinates.get(column_axis) in column_names
        for seed in seeds
    ]
    return table[:, 0, 0] + table[:, 1, 1] - table[:, 0, 1] - table[:, 1, 0], marks


def _interaction_of_metrics(
    rows: Sequence[Sequence[Group]], metrics: Sequence[str], where: Where, reading: Reading
) -> tuple[np.ndarray, list[str]]:
    """By seed, of two numbers of the same cells: the first less the second in the first row beyond the second row."""
    seeds = _common_seeds([*rows[0], *rows[1]])
    total, marks = np.zeros(len(seeds)), []
    for i, j in ((0, 0), (1, 1), (0, 1), (1, 0)):
        values, found = _means(rows[i], seeds, replace(where, metric=metrics[j]), reading)
        total += values if i == j else -values
        marks += found
    return total, marks


def _difference(claim: Claim, groups: Sequence[Group], where: Where, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """By seed, the mean of the first cells less that of the second; pairs agree in what neither names."""
    named = (claim.of, claim.against)
    sides = [(_matching(groups, _axes_of(side)), replace(where, at=side.get(AT, where.at))) for side in named]
    seeds = _common_seeds([group for side, _ in sides for group in side])
    (first, marks), (second, more) = (_means(side, seeds, place, reading) for side, place in sides)
    return first - second, [*marks, *more]


def _common_seeds(groups: Sequence[Group]) -> list[str]:
    # an arm of fewer seeds is compared on those; what was planned and is missing counts as missing
    return sorted(set.intersection(*(set(group.planned or group.seeds) for group in groups)), key=int)


def _means(side: Sequence[Group], seeds: Sequence[str], where: Where, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """By seed, the mean over some groups, and why it cannot be relied on."""
    read = [[read_group(group, seed, where, reading) for group in side] for seed in seeds]
    means = np.asarray([np.mean([entry.value for entry in row]) for row in read], dtype=np.float64)
    return means, [entry.mark for row in read for entry in row]


def _matching(groups: Sequence[Group], wanted: Mapping[str, str]) -> list[Group]:
    beside = {axis: value for axis, value in wanted.items() if axis not in groups[0].coordinates}  # a rate
    own = {axis: value for axis, value in wanted.items() if axis not in beside}
    found = [
        group.at(beside)
        for group in groups
        if all(group.coordinates.get(axis) == str(value) for axis, value in own.items())
    ]
    if not found:
        raise ValueError(f"no cells of {', '.join(f'{axis} {value}' for axis, value in wanted.items())}")
    return found
