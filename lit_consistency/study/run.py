"""``study``: plan, run what is missing, report; each of them from what stands on disk."""

from __future__ import annotations

import math
import shlex
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lit_consistency.records.atomic import publish, write_text
from lit_consistency.records.model_folder import OPTIMIZER_STATE
from lit_consistency.records.processes import available_cores
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.study.cells import Cell
from lit_consistency.study.claims import check_claims
from lit_consistency.study.execute.engine import execute
from lit_consistency.study.execute.local import Entry
from lit_consistency.study.execute.options import ExecutionOptions
from lit_consistency.study.execute.state import State
from lit_consistency.study.job import Job
from lit_consistency.study.options import ORDER, SEED, StudyOptions, one_of
from lit_consistency.study.pick import by_number
from lit_consistency.study.plan import Plan
from lit_consistency.study.report.terminal import print_summary
from lit_consistency.study.report.write import write_report
from lit_consistency.study.results import CellResult, Results
from lit_consistency.study.summary import study_file, summarize
from lit_consistency.study.values import CARRY, Parse

MARK = "study.yaml"
WORKERS = "workers"
"""Folder of the lists and logs of workers on other machines."""
SHOWN = 12
"""Values of an axis in the plan."""


class StudyRun:
    """A study with its plan, checked.

    Args:
        study: its options.
        execution: where cells run.
        parse: parser of commands.
        command: arguments of ``study``, to be shown and given to workers.
        entry: what runs a cell's command; by default this package.

    Raises:
        ValueError: something in the study cannot be; names the key, the value and what is allowed.
    """

    def __init__(
        self,
        study: StudyOptions,
        execution: ExecutionOptions,
        parse: Parse,
        command: Sequence[str],
        entry: Entry | None = None,
    ) -> None:
        self.study = study
        self.execution = execution
        self.command = list(command)
        self.entry = entry
        self._check_folder()
        self.plan = Plan(study, parse)
        if study.read is not None:
            self._check_reading()
        check_claims(self.study, {name: self.plan.axes_of(name) for name in self.plan.stages})
        self.results = Results(study.cells)
        self._reopened: set[str] = set()

    def _check_folder(self) -> None:
        """The output is new, or this study's."""
        mark = self.study.output / MARK
        if mark.is_file():
            title = mark.read_text(encoding="utf-8").partition("\n")[0].removeprefix("title: ")
            if title.strip("'\"") != self.study.title:
                raise ValueError(
                    f"output = {self.study.output}: holds another study, {title!r}; expected a folder of its own"
                )
        elif self.study.output.is_dir() and any(self.study.output.iterdir()):
            raise ValueError(
                f"output = {self.study.output}: holds something else; expected a new folder, or this study's"
            )

    def _check_reading(self) -> None:
        reading = self.study.read
        assert reading is not None
        one_of("read.stage", reading.stage, self.plan.stages)
        axes = self.plan.axes_of(reading.stage)
        for key, names in (
            ("panel", reading.panel),
            ("group", reading.group),
            ("rate", [reading.rate] if reading.rate else []),
        ):
            for name in names:
                one_of(f"read.{key}", name, axes)
        known = {axis for name in self.plan.stages for axis in self.plan.axes_of(name)}
        for axis in reading.tuned.values():
            one_of("read.tuned", axis, known)

    # -------------------- the plan

    def cells(self) -> dict[str, list[Cell]]:
        """Stage -> cells known now."""
        return self.plan.cells(self._outcome)

    def _outcome(self, cell: Cell) -> CellResult | None:
        result = self.results.of(cell.name)
        return result if result.has_ended else None

    def print_plan(self) -> None:
        """Cells, states, hours as measured so far."""
        cells = self.cells()
        print(f"{self.study.title}\noutput {self.study.output}, cells {self.study.cells}, code {self.plan.code}\n")
        hours, unknown = 0.0, 0
        for name, of_stage in cells.items():
            results = [self.results.of(cell.name) for cell in of_stage]
            states = Counter(result.state.value for result in results)
            print(f"{name}: {len(of_stage)} cells: {', '.join(f'{n} {state}' for state, n in states.items())}")
            axes: dict[str, dict[str, None]] = {}
            for cell in of_stage:
                for axis, value in cell.coordinates.items():
                    axes.setdefault(axis, {})[value] = None
            print("".join(f"  {axis}: {_values(list(values))}\n" for axis, values in axes.items()), end="")
            left = [result for result in results if not result.has_ended]
            known = [result.seconds for result in results if result.metrics and math.isfinite(result.seconds)]
            hours += sum(known) / len(known) * len(left) / 3600 if known else 0
            unknown += 0 if known else len(left)
        for line in self.plan.waiting:
            print(f"later: {line}")
        nodes = self.execution.slurm.nodes if self.execution.engine == "slurm" else 1
        here = self.execution.workers or (1 if self.execution.engine == "slurm" else available_cores())
        workers = nodes * here
        times = [f"{hours:.1f} hours of one worker, {hours / workers:.1f} of {workers}"] if hours or not unknown else []
        times += (
            [f"{unknown} cells of stages of which none has run, so that their time is not known"] if unknown else []
        )
        print(f"\nleft: {', and '.join(times)}")

    def command_of(self, name: str) -> str:
        """The command of a cell by hand.

        Raises:
            ValueError: there is no such cell.
        """
        every = {cell.name: cell for of_stage in self.cells().values() for cell in of_stage}
        matching = [cell for key, cell in every.items() if key == name or key.endswith(name)]
        if len(matching) != 1:
            raise ValueError(
                f"print = {name}: expected the name of one cell; --dry_run counts {len(every)}, the report lists them"
            )
        return matching[0].command(self.study.cells, self.plan.keeps_model(matching[0]))

    # -------------------- running

    def execute(self, only: str | None = None, head: int | None = None, worker: bool = False) -> int:
        """Run what is missing; 0 if all has ended with numbers or diverged, which is a result too, else 1.

        Args:
            only: see ``--only``.
            head: at most so many cells.
            worker: on this machine, whatever the engine.
        """
        self._mark()
        pattern = self._pattern(only)
        started: set[str] = set()

        def jobs() -> list[Job]:
            cells = self.cells()
            self._reopen(cells)
            wanted = self._wanted(cells, pattern)
            if head is not None:
                open_cells = [name for name in wanted if name in started or self._is_open(name)]
                started.update(open_cells[: max(0, head - len(started))])
                wanted = [name for name in wanted if name in started]
            return self.plan.jobs(cells, wanted)

        execution = replace(self.execution, engine="local") if worker else self.execution
        states = execute(jobs, execution, entry=self.entry, folder=self.study.output / WORKERS)
        return int(any(state not in (State.FINISHED, State.DIVERGED) for state in states.values()))

    def _reopen(self, cells: Mapping[str, Sequence[Cell]]) -> None:
        """Bases that have not kept what a cell is to start from, weights or the optimizer's state, run again."""
        needed: dict[str, bool] = {}
        for cell in (cell for of_stage in cells.values() for cell in of_stage if self._is_open(cell.name)):
            for base in cell.origins:
                needed[base.name] = needed.get(base.name, False) or bool(cell.options.get(CARRY))
        for name, with_state in needed.items():
            run = RunFolder(self.study.cells / name)
            kept = run.model.is_dir() and (not with_state or (run.model / OPTIMIZER_STATE).is_file())
            # once: what has just run again without it would do so for ever
            if run.is_finished and not kept and name not in self._reopened:
                self._reopened.add(name)
                publish(run.record_file, run.record_file.with_name("run.without_model.json"))

    def _is_open(self, name: str) -> bool:
        return not self.results.of(name).has_ended

    def _mark(self) -> None:
        self.study.output.mkdir(parents=True, exist_ok=True)
        write_text(self.study.output / MARK, study_file(self.plan))

    def _pattern(self, only: str | None) -> dict[str, list[str]]:
        """stage=NAME,AXIS=VALUE as a mapping; several values of one axis by ``|``."""
        pattern: dict[str, list[str]] = {}
        for part in (only or "").split(",") if only else []:
            key, sign, value = part.partition("=")
            if not sign:
                raise ValueError(f"only = {only}: expected stage=NAME,AXIS=VALUE,...")
            known = {axis for name in self.plan.stages for axis in (*self.plan.axes_of(name), SEED, ORDER)}
            one_of("only", key, ["stage", *sorted(known)])
            if key == "stage":
                for stage in value.split("|"):
                    one_of("only: stage", stage, self.plan.stages)
            pattern[key] = value.split("|")
        return pattern

    @staticmethod
    def _wanted(cells: Mapping[str, Sequence[Cell]], pattern: Mapping[str, Sequence[str]]) -> list[str]:
        return [
            cell.name
            for stage, of_stage in cells.items()
            for cell in of_stage
            if all(
                stage in names if axis == "stage" else cell.coordinates.get(axis) in names
                for axis, names in pattern.items()
            )
        ]

    def remove_weights(self) -> None:
        """Remove models on which no cell depends that is still to be run."""
        cells = self.cells()
        every = [cell for of_stage in cells.values() for cell in of_stage]
        needed = {base.name for cell in every if self._is_open(cell.name) for base in cell.origins}
        waiting = bool(self.plan.waiting)
        removed = 0
        for cell in every:
            model = self.study.cells / cell.name / "model"
            if model.is_dir() and self.plan.keeps_model(cell) and cell.name not in needed and not waiting:
                for folder in (model, model.with_name("last"), model.with_name("kept")):
                    shutil.rmtree(folder, ignore_errors=folder != model)
                removed += 1
        why = f"; {len(self.plan.waiting)} groups of cells are not known yet, so all are kept" if waiting else ""
        print(f"removed the models of {removed} cells{why}")

    # -------------------- report

    def write_report(self) -> Path:
        """Tables and page from what is there; their folder."""
        self._mark()
        content = summarize(self.plan, self.cells(), self.results.snapshot(), self._command())
        folder = self.study.output / "report"
        missing = write_report(content, folder)
        print_summary(content)
        for line in missing:
            print(line)
        print(f"wrote {folder / 'index.html'}")
        return folder

    def _command(self) -> str:
        kept = [part for part in self.command if part not in ("--report", "--dry_run", "--worker")]
        return shlex.join(["python", "-m", "lit_consistency", "study", *kept])


def _values(names: list[str]) -> str:
    """The names of an axis's values, the first and last of many."""
    names = sorted(names, key=by_number) if all(by_number(name)[0] == 0 for name in names) else names
    if len(names) <= SHOWN:
        return ", ".join(names)
    return f"{', '.join(names[: SHOWN - 1])}, ... {names[-1]} ({len(names)} values)"
