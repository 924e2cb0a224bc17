"""A study planned: its cells so far, from the study's options and from what has come out already.

A plan is a function of what stands on disk. Rates that are searched for, and bases that are picked, depend on results,
so the plan is asked again whenever a cell has ended; what it says does not depend on who ran the cells, or when.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from lit_consistency.study.axes import Axis, AxisValue, number_name, read_axes
from lit_consistency.study.cells import Cell, StagePlan, Start, grouped
from lit_consistency.study.execute.state import State, state_at_rest
from lit_consistency.study.identity import code_version, machine
from lit_consistency.study.job import Job
from lit_consistency.study.options import (
    CHECKPOINT,
    SEED,
    Pick,
    Stage,
    StudyOptions,
    check_names,
    dotted_options,
    one_of,
)
from lit_consistency.study.pick import Outcome, more_is_better, picked
from lit_consistency.study.search import searched
from lit_consistency.study.values import CARRY, Parse, Values, arguments, stage_values

OWNED = ("ckpt_path", "output", "run.final_dir", "run.name", "run.root", "run.save_model")
BASED = ("base", "model.checkpoint_dir")
"""What a study sets by itself: always, and where a stage has a base."""
FIT_DEFAULTS = {"forgetting.time_budget": 1.0}
"""A measurement that is skipped because a machine was busy would make a result depend on it."""


class Plan:
    """Everything that can be known before a run, checked; ``cells`` gives those that are known now.

    Args:
        study: the options.
        parse: parser of commands, for values that were not parsed before.

    Raises:
        ValueError: names the key, the value and what is allowed.
    """

    def __init__(self, study: StudyOptions, parse: Parse) -> None:
        check_names(study)
        self.study = study
        self.code = code_version(study.cells / ".code.json")
        values = Values(parse, study.cells / ".values.json", self.code)
        self.stages: dict[str, StagePlan] = {}
        for name, stage in study.stages.items():
            self.stages[name] = self._stage(name, stage, values)
        self.waiting: list[str] = []
        self._searches: dict[str, list[dict[str, str]]] = {}

    def _stage(self, name: str, stage: Stage, values: Values) -> StagePlan:
        key = f"stages.{name}"
        if stage.kind == "fit":
            stage = replace(stage, options={**FIT_DEFAULTS, **stage.options})
        inherited = self.axes_of(stage.base)
        axes = read_axes(key, stage.axes, [*inherited, *([CHECKPOINT] if stage.checkpoints else [])])
        if len([axis for axis in axes if axis.search]) > 1:
            raise ValueError(f"{key}.axes: more than one of them is searched; expected at most one")
        if dependent := [a.name for a in axes if a.by in [other.name for other in axes if other.search]]:
            raise ValueError(f"{key}.axes.{dependent[0]}.by: expected an axis whose values are given, not searched for")
        _check_owned(key, stage, axes)
        _check_pick(f"{key}.pick", stage, inherited)
        known = {**inherited, **{axis.name: axis for axis in axes}}
        _check_skip(f"{key}.skip", stage, known)
        parsed = stage_values(key, stage, axes, self._standing_in(stage), values)
        self._check_carrying(key, stage, [parsed.plain, *(change.keys for change in parsed.changes.values())])
        if stage.checkpoints == "all":
            stage = replace(stage, checkpoints=self._series(key, str(stage.base)))
        code = code_version(self.study.cells / ".code.json", stage.kind)
        codes = dict.fromkeys([code, *self.study.accept_code])
        machines = [machine(code, stage.threads, stage.devices) for code in codes]
        return StagePlan(name, stage, axes, parsed, self.study.replicates, machines, self._is_finished)

    def _check_carrying(self, key: str, stage: Stage, options: Sequence[Mapping[str, Any]]) -> None:
        """See that a state which is carried over is kept; whether it is of the same optimizer, see ``StagePlan``."""
        base = self.stages.get(str(stage.base))
        if base is None or not any(keys.get(CARRY) is True for keys in options):
            return
        if not base.values.plain.get("run.save_optimizer_state"):
            raise ValueError(
                f"{key}: {CARRY} = true: expected run.save_optimizer_state = true in the options of stages.{stage.base}"
            )

    def _is_finished(self, cell: str) -> bool:
        return state_at_rest(self.study.cells / cell) is State.FINISHED

    def axes_of(self, stage: str | None) -> dict[str, Axis]:
        """The axes of a stage's cells by name, those of its bases first; ``checkpoint`` where it takes many steps."""
        if stage not in self.stages:
            return {}
        plan = self.stages[stage]
        steps = plan.stage.checkpoints or []
        series = Axis(CHECKPOINT, {"": tuple(AxisValue(str(step)) for step in steps)})
        own = [*([series] if steps else []), *plan.axes]
        return {**self.axes_of(plan.stage.base), **{axis.name: axis for axis in own}}

    def _standing_in(self, stage: Stage) -> list[str]:
        """In the place of a base that is not there yet: a model of its shape, which passes the parser's checks."""
        if stage.base is None:
            return []
        if stage.base not in self.stages:
            option = {"fit": "--model.checkpoint_dir", "sequence": "--base"}.get(stage.kind, "--model")
            return [f"{option}={stage.base}", *(["--output=output"] if stage.kind == "sequence" else [])]
        if stage.kind == "sequence":
            return ["--base=base", "--output=output"]  # neither has a default
        if stage.kind != "fit":
            return []
        plain = self.stages[stage.base].values.plain  # of a base of a base too, for which a model stood in
        keys = ("model.name", "model.overrides", "model.checkpoint_dir")
        shape = {key: value for key, value in plain.items() if key.startswith(keys) and value not in (None, {})}
        return arguments("fit", (), {"model.checkpoint_dir": None, **shape})

    def _series(self, key: str, base: str) -> list[int]:
        from lit_consistency.records.series import series_steps

        plain = self.stages[base].values.plain
        spec = {k.removeprefix("checkpoint.series."): v for k, v in plain.items() if k.startswith("checkpoint.series.")}
        total = plain.get("trainer.max_steps")
        if not spec or not total or total < 1:
            raise ValueError(
                f"{key}.checkpoints = all: expected checkpoint.series and trainer.max_steps in stages.{base}, from "
                "which the steps follow; or a list of steps"
            )
        return series_steps(spec, int(total))

    # -------------------- cells

    def cells(self, outcome: Outcome) -> dict[str, list[Cell]]:
        """Stage -> its cells that are known now; ``waiting`` says what further ones depend on."""
        self.waiting = []
        self._searches = {name: [] for name in self.stages}
        cells: dict[str, list[Cell]] = {}
        for name, plan in self.stages.items():
            base = plan.stage.base
            bases = None
            if base in cells:
                settled = partial(self._is_settled, str(base))
                bases = picked(name, plan.stage.pick, cells[str(base)], outcome, self.waiting, settled)
            cells[name] = self._expanded(plan, plan.starts(bases), outcome)
        return cells

    def _is_settled(self, stage: str, cell: Cell) -> bool:
        """Whether no search of the stage goes on among the cells beside this one."""
        return not any(open_search.items() <= dict(cell.coordinates).items() for open_search in self._searches[stage])

    def _expanded(self, plan: StagePlan, starts: Sequence[Start], outcome: Outcome) -> list[Cell]:
        searching = next((axis for axis in plan.axes if axis.search), None)
        if searching is None:
            return [plan.cell(start, chosen) for start in starts for chosen in plan.choices(start, plan.axes)]
        cells = []
        others = [axis for axis in plan.axes if axis is not searching]
        for group in grouped(starts):
            combinations: dict[tuple[str, ...], list[tuple[Start, list[Any]]]] = {}
            for start in group:
                for chosen in plan.choices(start, others):
                    combinations.setdefault(tuple(value.name for _, _, value in chosen), []).append((start, chosen))
            for members in combinations.values():
                cells += self._search(plan, searching, members, outcome)
        return cells

    def _search(
        self, plan: StagePlan, axis: Axis, members: Sequence[tuple[Start, list[Any]]], outcome: Outcome
    ) -> list[Cell]:
        start, chosen = members[0]
        coordinates = {**start.axes(), **{a.name: value.name for a, _, value in chosen}}
        branch = coordinates[axis.by] if axis.by else ""
        order = {a.name: i for i, a in enumerate(plan.axes)}

        def at(value: Any) -> list[Cell]:
            rows = [
                (s, sorted([*c, (axis, branch, value)], key=lambda entry: order[entry[0].name])) for s, c in members
            ]
            return [plan.cell(s, row) for s, row in rows if plan.has(s, row)]

        metric = str((axis.search or {})["metric"])

        def results(value: Any) -> list[float] | None:
            ended = [outcome(cell) for cell in at(value)]
            known = [result.number(metric) for result in ended if result is not None]
            return known if len(known) == len(ended) else None

        more = more_is_better(metric, [outcome(cell) for value in axis.values_for(coordinates) for cell in at(value)])
        values, ended = searched(axis, axis.values_for(coordinates), results, more)
        if not ended:
            self._searches[plan.name].append(coordinates)
            where = ", ".join(f"{key} {value}" for key, value in coordinates.items())
            self.waiting.append(f"{plan.name}: more values of {axis.name} ({where}) follow from the results")
        return [cell for value in values for cell in at(value)]

    # -------------------- jobs

    def jobs(self, cells: Mapping[str, Sequence[Cell]], wanted: Sequence[str] | None = None) -> list[Job]:
        """The cells as jobs, every one once, those needed by others before them.

        Args:
            cells: of all stages.
            wanted: names of cells to run, with what they need; None: all.
        """
        every = {cell.name: cell for of_stage in cells.values() for cell in of_stage}
        bases = self._may_be_bases(cells)
        chosen = set(every if wanted is None else wanted)
        pending = [every[name] for name in chosen]
        while pending:
            cell = pending.pop()
            new = [base for base in cell.origins if base.name not in chosen]
            chosen.update(base.name for base in new)
            pending += new
        root = self.study.cells
        # seed by seed, so that what is there early is a whole replicate
        seeds = {str(seed): i for i, seed in enumerate(self.study.replicates.seeds)}
        ordered = sorted(every.values(), key=lambda cell: seeds.get(cell.coordinates[SEED], 0))
        return [
            Job(
                name=cell.name,
                folder=root / cell.name,
                argv=cell.argv(root, save_model=cell.name in bases),
                needs=tuple(base.name for base in cell.origins),
                threads=cell.threads,
                devices=cell.devices,
                stage=cell.stage,
            )
            for cell in ordered
            if cell.name in chosen
        ]

    def keeps_model(self, cell: Cell) -> bool:
        """Whether a later stage may need its weights: which cells are picked may not be known yet."""
        return cell.name in self._may_be_bases({cell.stage: [cell]})

    def _may_be_bases(self, cells: Mapping[str, Sequence[Cell]]) -> set[str]:
        """Cells whose weights a later stage may need."""
        used = {(plan.stage.base, pattern) for plan in self.stages.values() for pattern in [_frozen(plan.stage.pick)]}
        return {
            cell.name
            for stage, pattern in used
            for cell in cells.get(str(stage), ())
            if all(cell.coordinates.get(axis) in names for axis, names in pattern)
        }


def _frozen(pick: Pick) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return tuple((axis, tuple(map(str, names))) for axis, names in pick.where.items())


def _check_skip(key: str, stage: Stage, known: Mapping[str, Axis]) -> None:
    """See that what is skipped is there: a pattern that matches nothing would leave all of it in."""
    for axis, values in (entry for pattern in stage.skip for entry in pattern.items()):
        one_of(key, axis, [*known, CHECKPOINT])
        if axis not in known or known[axis].search is not None:
            continue
        names = [value.name for branch in known[axis].values.values() for value in branch]
        for value in values if isinstance(values, list) else [values]:
            one_of(f"{key}.{axis}", number_name(value), names)


def _check_owned(key: str, stage: Stage, axes: Sequence[Axis]) -> None:
    """What the study sets by itself: where a cell lies, from what it starts, its seed."""
    values = [value for axis in axes for branch in axis.values.values() for value in branch]
    given = [(f"{key}.options", option) for option in dotted_options(stage.options)]
    given += [(f"{key}.axes: {value.name}", option) for value in values for option in value.options]
    owned = [*OWNED, *(BASED if stage.base is not None else ())]
    for here, option in given:
        if any(option == own or option.startswith(f"{own}.") for own in owned):
            raise ValueError(f"{here}: {option}: the study sets it; expected options other than {', '.join(owned)}")


def _check_pick(key: str, stage: Stage, inherited: Mapping[str, Axis]) -> None:
    pick = stage.pick
    for axis, values in pick.where.items():
        one_of(f"{key}.where", axis, inherited)
        there = inherited[axis]
        names = [value.name for branch in there.values.values() for value in branch]
        for value in values:
            if there.search is None:
                one_of(f"{key}.where.{axis}", str(value), names)
    for axis in [*([pick.over] if pick.over else []), *pick.to]:
        one_of(f"{key}.over" if axis == pick.over else f"{key}.to", axis, inherited)
