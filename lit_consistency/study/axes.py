"""Axes of a stage: each value is a name and a set of options, given as files or as values of one or several options.

Three ways to write one::

    finetuner: {adamw: configs/optimizers/adamw.yaml, muon: {config: [...], options: {...}, seeds: 3}}
    decay: {key: model.optimizer.init_args.weight_decay, values: [0, 0.1, 1]}
    rate: {keys: {model.optimizer.init_args.lr: [1e-4, 3e-4], model.optimizer.init_args.adamw_lr: [2e-4, 6e-4]}}

With ``by: finetuner`` the values of the second and third are one list for every value of that axis, ``others`` for
those that are not named. ``search`` says how further values are found (study/search.py).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lit_consistency.records.shipped import shipped
from lit_consistency.study.options import NAME, ORDER, SEED, dotted_options, one_of

SWEPT = ("key", "keys", "values", "by", "search")
OTHERS = "others"
SEARCH = {
    "bracket": ("metric", "factor", "most"),
    "level": ("metric", "level", "within", "factor", "most"),
    "optuna": ("metric", "low", "high", "trials"),
}
"""Kinds of search and their options."""


@dataclass(frozen=True)
class AxisValue:
    """A value.

    Args:
        name: in tables and pictures.
        config: files of the command, before its options.
        options: of the command, by dotted keys.
        seeds: the first so many replicates; None: all.
    """

    name: str
    config: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    seeds: int | None = None


@dataclass(frozen=True)
class Axis:
    """An axis.

    Args:
        name: of the axis.
        values: by the value of the axis ``by``; by the empty name where there is none.
        by: the axis on which the values depend.
        keys: options that it sets, where they are the same for all of its values.
        search: how more values are found; None: they are all given.
    """

    name: str
    values: Mapping[str, tuple[AxisValue, ...]]
    by: str | None = None
    keys: tuple[str, ...] = ()
    search: Mapping[str, Any] | None = None

    def values_for(self, coordinates: Mapping[str, str]) -> tuple[AxisValue, ...]:
        """The values for a cell that has these coordinates so far."""
        return self.values.get(coordinates[self.by] if self.by else "", ())

    def swept(self, value: float) -> AxisValue:
        """The value of an axis of one option, or of several that move together, at another point.

        Options that move together keep the ratio that they have in the values given.
        """
        given = next(iter(self.values.values()))[0].options
        first = float(given[self.keys[0]])
        return AxisValue(number_name(value), options={key: value * (float(given[key]) / first) for key in self.keys})


def number_name(value: Any) -> str:
    """A value as the name of itself: 3e-4 and 0.0003 are one."""
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "null"}[value]
    number = as_number(value)
    return f"{number:.6g}" if number is not None else str(value)


def as_number(value: Any) -> float | None:
    """YAML reads 1e-4 as a string."""
    try:
        return float(value) if not isinstance(value, bool | list | dict) else None
    except (TypeError, ValueError):
        return None


def read_axes(key: str, given: Mapping[str, Any], inherited: Sequence[str]) -> list[Axis]:
    """The axes of a stage, those before their dependents.

    Args:
        key: of the stage, for messages.
        given: as they stand in the study's file.
        inherited: axes of the base's stages, whose names are taken.

    Raises:
        ValueError: naming key, value and what is allowed.
    """
    axes = []
    for name, spec in given.items():
        here = f"{key}.axes.{name}"
        if not NAME.fullmatch(name) or name in (SEED, ORDER):
            raise ValueError(f"{here}: expected a name of letters, digits, '_' and '-' other than {SEED} and {ORDER}")
        if name in inherited:
            raise ValueError(f"{here}: the base's stage has an axis of this name; expected another one, as base_{name}")
        if not isinstance(spec, Mapping) or not spec:
            raise ValueError(f"{here} = {spec!r}: expected values by their names, or key (or keys) with values")
        axes.append(_swept(here, name, spec) if {"key", "keys"} & set(spec) else _named(here, name, spec))
    names = [axis.name for axis in axes]
    for i, axis in enumerate(axes):
        if axis.by is None:
            continue
        here = f"{key}.axes.{axis.name}"
        one_of(f"{here}.by", axis.by, [*inherited, *names[:i]])
        values_of = {other.name: other for other in axes}.get(axis.by)
        if values_of is not None:
            expected = {value.name for values in values_of.values.values() for value in values}
            axis = axes[i] = _for_others(axis, [value.name for values in values_of.values.values() for value in values])
            if unknown := set(axis.values) - expected:
                one_of(f"{here}.values", sorted(unknown)[0], sorted(expected))
            if missing := expected - set(axis.values):
                raise ValueError(
                    f"{here}.values: expected a list for every value of {axis.by}; missing: {sorted(missing)}"
                )
    return axes


def _for_others(axis: Axis, names: Sequence[str]) -> Axis:
    """With the list of ``others`` for every value of the axis ``by`` that has none, unless one is called so."""
    if OTHERS not in axis.values or OTHERS in names:
        return axis
    named = {branch: values for branch, values in axis.values.items() if branch != OTHERS}
    return replace(axis, values={name: named.get(name, axis.values[OTHERS]) for name in names} | named)


def _named(key: str, name: str, spec: Mapping[str, Any]) -> Axis:
    values = []
    for value_name, content in spec.items():
        here = f"{key}.{value_name}"
        if value_name in SWEPT:
            raise ValueError(f"{here}: expected key or keys beside it: {{key: OPTION, values: [...]}}")
        content = {"config": content} if isinstance(content, str | list) else content
        if not isinstance(content, Mapping) or set(content) - {"config", "options", "seeds"}:
            raise ValueError(f"{here} = {content!r}: expected a file, a list of files, or config, options and seeds")
        files = content.get("config") or []
        files = (files,) if isinstance(files, str) else tuple(files)
        for file in files:
            if not shipped(file).is_file():
                raise FileNotFoundError(f"{here}: {file}: no such file")
        seeds = content.get("seeds")
        if seeds is not None and (not isinstance(seeds, int) or seeds < 1):
            raise ValueError(f"{here}.seeds = {seeds!r}: expected a number of at least 1")
        values.append(AxisValue(str(value_name), files, dotted_options(content.get("options") or {}), seeds))
    return Axis(name, {"": tuple(values)})


def _swept(key: str, name: str, spec: Mapping[str, Any]) -> Axis:
    if unknown := set(spec) - set(SWEPT):
        one_of(f"{key}: option", sorted(unknown)[0], SWEPT)
    if ("key" in spec) == ("keys" in spec) or ("keys" in spec and "values" in spec):
        raise ValueError(f"{key}: expected key with values, or keys: {{OPTION: [...], OPTION: [...]}}")
    by = spec.get("by")
    given = spec["keys"] if "keys" in spec else spec.get("values")
    branches = given if by is not None else {"": given}
    if not isinstance(branches, Mapping):
        raise ValueError(f"{key} = {given!r}: expected a list for every value of {by}")
    if not branches:
        raise ValueError(f"{key}: expected at least one list of values")
    values: dict[str, tuple[AxisValue, ...]] = {}
    for branch, content in branches.items():
        here = f"{key}.{branch}" if branch else key
        columns = content if "keys" in spec else {str(spec["key"]): content}
        if not isinstance(columns, Mapping) or not columns:
            raise ValueError(f"{here}.keys = {columns!r}: expected options with a list of values each")
        values[str(branch)] = _rows(here, columns)
    search = spec.get("search")
    if search is not None:
        _check_search(f"{key}.search", search, values)
    keys = tuple(next(iter(values.values()))[0].options)
    return Axis(name, values, by, keys, search)


def _rows(key: str, columns: Mapping[str, Any]) -> tuple[AxisValue, ...]:
    lengths = {}
    for option, entries in columns.items():
        if not isinstance(entries, list) or not entries:
            raise ValueError(f"{key}: {option} = {entries!r}: expected a list of values")
        lengths[option] = len(entries)
    if len(set(lengths.values())) > 1:
        raise ValueError(f"{key}: {lengths}: expected lists of one length, since these options move together")
    rows = []
    for row in zip(*columns.values(), strict=True):
        plain = [
            as_number(value) if isinstance(value, str) and as_number(value) is not None else value for value in row
        ]
        rows.append(AxisValue(number_name(plain[0]), options=dict(zip(columns, plain, strict=True))))
    names = [row.name for row in rows]
    if twice := sorted({entry for entry in names if names.count(entry) > 1}):
        raise ValueError(f"{key}: {twice[0]} stands there twice; expected every value once")
    return tuple(rows)


def _check_search(key: str, search: Any, values: Mapping[str, tuple[AxisValue, ...]]) -> None:
    kind = search.get("kind") if isinstance(search, Mapping) else search
    one_of(f"{key}.kind", str(kind), SEARCH)
    allowed = SEARCH[str(kind)]
    if unknown := set(search) - {"kind", *allowed}:
        one_of(f"{key}: option", sorted(unknown)[0], ["kind", *allowed])
    if not isinstance(search.get("metric"), str):
        raise ValueError(f"{key}.metric = {search.get('metric')!r}: expected the name of a metric")
    needed = {"level": ["level"], "optuna": ["low", "high"]}.get(str(kind), [])
    for option in allowed[1:]:
        number = as_number(search.get(option))
        if number is None and (option in needed or search.get(option) is not None):
            raise ValueError(f"{key}.{option} = {search.get(option)!r}: expected a number")
        if option in ("factor", "within") and number is not None and number <= 1:
            raise ValueError(f"{key}.{option} = {number}: expected more than 1")
    for branch in values.values():
        for value in branch:
            first = as_number(next(iter(value.options.values())))
            if first is None or first <= 0 or not math.isfinite(first):
                raise ValueError(f"{key}: {value.name}: expected positive numbers to search between")
