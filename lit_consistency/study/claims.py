"""Verdicts: each claim's contrast over seeds, decided against the smallest effect that was fixed before the first run.

The claims of a study are tested together (Holm): with many of them one would come out by chance. A claim whose numbers
cannot be relied on (a level that is not bracketed, a best rate at the edge) has no verdict.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.stats.effects import Contrast, at_level, over_seeds
from lit_consistency.stats.verdicts import decision_p, holm, holm_levels, seeds_needed, verdict
from lit_consistency.study.axes import Axis
from lit_consistency.study.options import Claim, Reading, StudyOptions, at_least, one_of
from lit_consistency.study.points import Group
from lit_consistency.study.reading import Where, read_group, table_of
from lit_consistency.study.report.content import ClaimResult

NO_VERDICT = "no verdict"
LEAST_SEEDS = 3
MOST_LOST = 0.2
"""Share of the seeds that may lack a number; with more of them missing, what is left is a selection."""


class Decided(NamedTuple):
    """A claim's contrast, and why it cannot be relied on."""

    contrast: Contrast
    note: str


def check_claims(study: StudyOptions, axes: Mapping[str, Axis]) -> None:
    """See that every claim is about cells and numbers that the study has.

    Args:
        study: its options.
        axes: of the stage that is read.

    Raises:
        ValueError: naming the claim, the key, the value and what is allowed.
    """
    if study.claims and study.read is None:
        raise ValueError("claims: expected read, which says how the cells are read")
    for name, claim in study.claims.items():
        key = f"claims.{name}"
        at_least(f"{key}.smallest_effect", claim.smallest_effect, 0)
        assert study.read is not None
        _check_place(key, claim, study.read)
        sides = _sides(key, claim)
        allowed = [*study.read.panel, *study.read.group]
        if claim.at == "end" and claim.contrast == "difference" and study.read.rate:
            allowed.append(study.read.rate)
        for side, given in sides.items():
            for axis, values in given.items():
                one_of(f"{key}.{side}", axis, allowed)
                names = [value.name for branch in axes[axis].values.values() for value in branch]
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
    return {"of": {a: [v] for a, v in claim.of.items()}, "against": {a: [v] for a, v in claim.against.items()}}


def _check_place(key: str, claim: Claim, reading: Reading) -> None:
    at_divergence = {"read.divergence": reading.divergence, "read.divergence_level": reading.divergence_level}
    needs: dict[str, dict[str, Any]] = {
        "learning": {"read.level": reading.level, "read.rate": reading.rate},
        "divergence": {**at_divergence, "read.rate": reading.rate},
        "front": {"read.level": reading.level},
        "best": {"read.rate": reading.rate},
    }
    if missing := [option for option, value in needs.get(claim.at, {}).items() if value is None]:
        raise ValueError(f"{key}.at = {claim.at}: expected {missing[0]} too")


def claim_results(study: StudyOptions, groups: Sequence[Group], command: str) -> list[ClaimResult]:
    """Every claim with its verdict, in the order of the study's file."""
    if study.read is None:
        return []
    decided = {name: _decided(claim, groups, study.read) for name, claim in study.claims.items()}
    tested = [
        decision_p(entry.contrast, study.claims[name].smallest_effect) if not entry.note else math.nan
        for name, entry in decided.items()
    ]
    rows = zip(decided.items(), holm(tested), holm_levels(tested), strict=True)
    return [_result(name, study.claims[name], entry, p, level, command) for (name, entry), p, level in rows]


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
    where = Where(claim.at, claim.metric or reading.forgetting, claim.scale, claim.itself)
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
    seeds, table = table_of(groups, (row_axis, row_names), (column_axis, column_names), where, reading)
    marks = [
        read_group(group, seed, where, reading).mark
        for group in groups
        if group.coordinates.get(row_axis) in row_names and group.coordinates.get(column_axis) in column_names
        for seed in seeds
    ]
    return table[:, 0, 0] + table[:, 1, 1] - table[:, 0, 1] - table[:, 1, 0], marks


def _difference(claim: Claim, groups: Sequence[Group], where: Where, reading: Reading) -> tuple[np.ndarray, list[str]]:
    """By seed, the mean of the first cells less that of the second; pairs agree in what neither names."""
    of, against = _matching(groups, claim.of), _matching(groups, claim.against)
    # an arm of fewer seeds is compared on those; what was planned and is missing counts as missing
    seeds = sorted(set.intersection(*(set(group.planned or group.seeds) for group in (*of, *against))), key=int)
    sides = [[[read_group(group, seed, where, reading) for group in side] for seed in seeds] for side in (of, against)]
    means = [np.asarray([np.mean([entry.value for entry in row]) for row in side], dtype=np.float64) for side in sides]
    return means[0] - means[1], [entry.mark for side in sides for row in side for entry in row]


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
