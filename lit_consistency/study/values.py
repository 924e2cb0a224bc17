"""What every value of every axis means: the complete configuration with it, as the command's own parser gives it.

Parsing and building a configuration takes a second, so a study of 1,000 cells does not parse its product. It parses the
stage with the first value of every axis, and for each other value the same with that one in its place (a sum). The
difference is what the value changes, and a cell is the first configuration with the differences of its values. That is
exact as long as no two axes change one key, which is checked; where the values of one axis depend on another (``by``),
its first value is that of the other's. What was parsed is kept on disk under the hash of the call and the files in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from lit_consistency.records.atomic import write_json
from lit_consistency.records.differences import flatten
from lit_consistency.records.fingerprints import fingerprint_of, sha256_once
from lit_consistency.records.shipped import shipped
from lit_consistency.study.axes import Axis, AxisValue
from lit_consistency.study.options import Stage, dotted_options

Parse = Callable[[Sequence[tuple[str, list[str]]]], list[dict[str, Any]]]
"""Takes (kind of command, arguments) of several calls and gives their complete configurations, nested.

Raises:
    ValueError: the message names the call's mistake and begins with its number, as ``3: ``.
"""
ABSENT = "<absent>"
NO_BASE_YET = "--model.checkpoint_dir=null"
"""Argument of a finetuning in whose base's place a model stands in, as it is yet to be trained."""
CARRY = "model.carry_optimizer_state"
"""Needs a base that has a state; where the base is yet to be made, the plan checks it."""


@dataclass(frozen=True)
class Change:
    """What a value changes in the complete configuration, by dotted keys; ``ABSENT`` where a key goes."""

    keys: Mapping[str, Any]

    def applied(self, options: dict[str, Any]) -> None:
        """Change ``options`` in place."""
        for key, value in self.keys.items():
            if value == ABSENT:
                options.pop(key, None)
            else:
                options[key] = value


def arguments(kind: str, config: Sequence[str], options: Mapping[str, Any]) -> list[str]:
    """Files and options as arguments of a command; what is no text is JSON, which YAML reads.

    The lists of ``evaluate`` and ``analyze`` are words, as ``--tasks piqa blimp``.
    """
    given = [part for file in config for part in ("--config", str(shipped(file)))]
    for key, value in options.items():
        if kind in ("evaluate", "analyze") and isinstance(value, list) and "." not in key:
            given += [f"--{key}", *map(spelled, value)]
        elif kind == "evaluate" and value is True:
            given += [f"--{key}"]
        else:
            given += [f"--{key}={spelled(value)}"]
    return given


def spelled(value: Any) -> str:
    """A value as an option's text."""
    return value if isinstance(value, str) else json.dumps(value)


class Values:
    """Configurations of a stage and of its values, parsed once.

    Args:
        parse: the parser of the command, in a process that has it.
        cache: file in which they are kept.
        version: of the code, with which parsing may change.
    """

    def __init__(self, parse: Parse, cache: Path, version: str) -> None:
        self._parse = parse
        self._cache = cache
        self._version = version
        self._known: dict[str, dict[str, Any]] = {}
        if cache.is_file():
            content = json.loads(cache.read_text(encoding="utf-8"))
            self._known = content["parsed"] if content.get("version") == version else {}

    def parsed(self, calls: Sequence[tuple[str, list[str]]]) -> list[dict[str, Any]]:
        """The complete configurations of some calls, by dotted keys."""
        keys = [self._key(kind, call) for kind, call in calls]
        new = {key: call for key, call in zip(keys, calls, strict=True) if key not in self._known}
        if new:
            try:
                results = self._parse(list(new.values()))
            except ValueError as error:
                number, _, text = str(error).partition(": ")
                # several of the calls may be one
                raise ValueError(f"{keys.index(list(new)[int(number)])}: {text}") from None
            self._known |= {key: flatten(result) for key, result in zip(new, results, strict=True)}
            write_json(self._cache, {"version": self._version, "parsed": self._known})
        return [dict(self._known[key]) for key in keys]

    def _key(self, kind: str, call: Sequence[str]) -> str:
        files = [sha256_once(Path(file)) for flag, file in zip(call, call[1:], strict=False) if flag == "--config"]
        return fingerprint_of([self._version, kind, list(call), files])[:20]


@dataclass(frozen=True)
class StageValues:
    """A stage's configuration with the first value of every axis, and what each value of each axis changes in it.

    Args:
        plain: dotted key -> value.
        changes: (axis, value of the axis ``by`` or empty, name of the value) -> what it changes.
    """

    plain: Mapping[str, Any]
    changes: Mapping[tuple[str, str, str], Change]

    def composed(self, chosen: Sequence[tuple[Axis, str, AxisValue]]) -> dict[str, Any]:
        """The complete configuration of a cell: axis, value of the axis ``by``, value."""
        options = dict(self.plain)
        for axis, branch, value in chosen:
            known = self.changes.get((axis.name, branch, value.name))
            # a value that a search has found sets the same keys as those that were parsed
            (known or Change(dict(value.options))).applied(options)
        return options


def stage_values(
    key: str, stage: Stage, axes: Sequence[Axis], standing_in: Sequence[str], values: Values
) -> StageValues:
    """Parse a stage and all values of its axes.

    Args:
        key: of the stage, for messages.
        stage: the stage.
        axes: its axes.
        standing_in: arguments in the place of a base that is not there yet.
        values: what was parsed before.

    Raises:
        ValueError: a value that the command refuses, that changes nothing, or two axes that change one key.
    """
    plain = dotted_options(stage.options)
    start = [*arguments(stage.kind, stage.config, {}), *standing_in, *arguments(stage.kind, (), plain)]
    steps = list(_steps(axes))
    _check_apart(key, axes, lambda axis: {k for vs in axis.values.values() for value in vs for k in value.options})
    owners = [key] + 2 * [f"{key}.axes.{step.axis.name}.{step.value.name}" for step in steps]
    layers = [_first_values(axes, {}), *(step.layers for step in steps), *(step.reference for step in steps)]
    given = [[part for v in layer.values() for part in arguments(stage.kind, v.config, v.options)] for layer in layers]
    try:
        first, *parsed = values.parsed([(stage.kind, [*start, *more]) for more in given])
    except ValueError as error:
        number, _, text = str(error).partition(": ")
        raise ValueError(f"{owners[int(number)]}: {text}") from None
    others, references = parsed[: len(steps)], parsed[len(steps) :]
    changes = {
        (step.axis.name, step.branch, step.value.name): Change(_difference(before, now))
        for step, before, now in zip(steps, references, others, strict=True)
    }
    _check_changes(key, axes, changes)
    return StageValues(first, changes)


class _Step(NamedTuple):
    """A value of an axis in its place: all values of the call with it, and of the call with the first of its kind."""

    axis: Axis
    branch: str
    value: AxisValue
    layers: dict[str, AxisValue]
    reference: dict[str, AxisValue]


def _steps(axes: Sequence[Axis]) -> Iterator[_Step]:
    for axis in axes:
        for branch, values in axis.values.items():
            parents = _parents(axes, axis, branch)
            for value in values:
                layers = _first_values(axes, {**parents, axis.name: value})
                yield _Step(axis, branch, value, layers, _first_values(axes, {**parents, axis.name: values[0]}))


def _parents(axes: Sequence[Axis], axis: Axis, branch: str) -> dict[str, AxisValue]:
    """Values of the axes on which a branch depends, as far as they are axes of this stage."""
    owner = next((other for other in axes if other.name == axis.by), None)
    if owner is None:
        return {}
    for above, values in owner.values.items():
        for value in values:
            if value.name == branch:
                return {**_parents(axes, owner, above), owner.name: value}
    return {}


def _first_values(axes: Sequence[Axis], fixed: Mapping[str, AxisValue]) -> dict[str, AxisValue]:
    """A value of every axis: those that are fixed, else the first that there is beside them."""
    chosen: dict[str, AxisValue] = {}
    for axis in axes:
        branch = chosen[axis.by].name if axis.by in chosen else next(iter(axis.values))
        chosen[axis.name] = fixed.get(axis.name) or axis.values[branch][0]
    return chosen


def _difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    changed = {key: value for key, value in now.items() if key not in before or before[key] != value}
    return changed | {key: ABSENT for key in before if key not in now}


def _check_changes(key: str, axes: Sequence[Axis], changes: Mapping[tuple[str, str, str], Change]) -> None:
    for axis in axes:
        for branch, values in axis.values.items():
            seen: dict[str, str] = {}
            for value in values:
                here = f"{key}.axes.{axis.name}"
                what = json.dumps(changes[(axis.name, branch, value.name)].keys, sort_keys=True, default=str)
                if what in seen:
                    raise ValueError(
                        f"{here}: {seen[what]} and {value.name} are the same configuration; expected a difference"
                    )
                seen[what] = value.name
    _check_apart(key, axes, lambda axis: _keys_of(axis, changes))


def _check_apart(key: str, axes: Sequence[Axis], keys_of: Callable[[Axis], set[str]]) -> None:
    """See that no two axes change one key: the later one would undo what the earlier one says."""
    for i, axis in enumerate(axes):
        for other in axes[i + 1 :]:
            if other.by == axis.name:
                continue  # parsed one upon the other
            both = keys_of(axis) & keys_of(other)
            if both:
                raise ValueError(
                    f"{key}.axes: {axis.name} and {other.name} both change {sorted(both)[0]}; expected by: {axis.name} "
                    f"in {other.name}, or axes of different options"
                )


def _keys_of(axis: Axis, changes: Mapping[tuple[str, str, str], Change]) -> set[str]:
    return {key for (name, _, _), change in changes.items() if name == axis.name for key in change.keys}
