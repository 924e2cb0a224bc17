"""The cells of a stage: base's cells times axes, each with its complete configuration and identity."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

from lit_consistency.records.model_folder import model_fingerprint
from lit_consistency.records.run_folder import RunFolder
from lit_consistency.records.shipped import shipped
from lit_consistency.study.axes import Axis, AxisValue, number_name
from lit_consistency.study.identity import TASK_KEYS, contents, identity
from lit_consistency.study.options import CHECKPOINT, ORDER, SEED, Replicates, Stage, dotted_options
from lit_consistency.study.values import CARRY, StageValues, arguments

ORDERS_APART = 100_000
"""Between the seeds of two orders of one cell; replicates have seeds below it."""
OPTIMIZER = "model.optimizer.class_path"
STYLE = "data.init_args.prompt_style"


@dataclass(frozen=True)
class Cell:
    """One cell.

    Args:
        name: of its folder: kind and identity.
        stage: of the study.
        kind: of command.
        coordinates: axis -> name of the value, those of the base first, then ``seed`` (and ``order``).
        options: complete configuration by dotted keys.
        given: files and options as given, as arguments.
        base: a cell, a model folder, or None.
        step: of the base's series of checkpoints; None: its final model.
        threads: of the processor.
        devices: GPUs.
    """

    name: str
    stage: str
    kind: str
    coordinates: Mapping[str, str]
    options: Mapping[str, Any] = field(compare=False, repr=False)
    given: tuple[str, ...] = field(compare=False, repr=False)
    base: Cell | Path | None = field(compare=False, repr=False)
    step: int | None = None
    threads: int = 1
    devices: float = 0.0

    @cached_property
    def label(self) -> str:
        """Its coordinates in words, without the seed."""
        return ", ".join(f"{axis} {value}" for axis, value in self.coordinates.items() if axis not in (SEED, ORDER))

    def model_in(self, cells: Path) -> Path | None:
        """The folder of the model that it starts from."""
        if not isinstance(self.base, Cell):
            return self.base
        run = RunFolder(cells / self.base.name)
        return run.model if self.step is None else run.series_model(self.step)

    def argv(self, cells: Path, save_model: bool) -> tuple[str, ...]:
        """The command, which continues what was interrupted.

        Args:
            cells: folder of all cells.
            save_model: whether a later stage needs the weights.
        """
        model = self.model_in(cells)
        folder = cells / self.name
        if self.kind == "fit":
            # files of a pretraining, which goes on from the base, name the shape of a new model
            base = [f"--model.checkpoint_dir={model}", "--model.name=null"] if model else []
            run = [f"--run.root={cells}", f"--run.name={self.name}", f"--run.save_model={str(save_model).lower()}"]
            # first, so that a study may say otherwise: thousands of cells are not to leave three models' size each
            end = "--checkpoint.at_end=false"
            return ("fit", end, *self.given, *base, *run, "--trainer.enable_progress_bar=false", "--ckpt_path=auto")
        option = {"evaluate": "--model", "analyze": "--model", "sequence": "--base"}[self.kind]
        # what is analysed is compared with what it was trained from
        above = self.base.model_in(cells) if self.kind == "analyze" and isinstance(self.base, Cell) else None
        compared = [f"--base={above}"] if above else []
        return (self.kind, *self.given, f"{option}={model}", *compared, f"--output={folder}")

    @property
    def origins(self) -> list[Cell]:
        """The cells whose models it needs: its base, and of an analysis the base's base."""
        if not isinstance(self.base, Cell):
            return []
        above = self.base.base if self.kind == "analyze" else None
        return [self.base, *([above] if isinstance(above, Cell) else [])]

    def command(self, cells: Path, save_model: bool = True) -> str:
        """The command by hand."""
        return shlex.join(["python", "-m", "lit_consistency", *self.argv(cells, save_model)])


@dataclass(frozen=True)
class StagePlan:
    """What is needed to build the cells of a stage.

    Args:
        name: of the stage.
        stage: its options.
        axes: its axes.
        values: what they mean.
        replicates: of the study.
        machines: what computes, see ``identity.machine``; the present code first, then those that compute the same.
        is_finished: whether a cell of this name has run.
    """

    name: str
    stage: Stage
    axes: Sequence[Axis]
    values: StageValues
    replicates: Replicates
    machines: Sequence[Mapping[str, Any]]
    is_finished: Callable[[str], bool]

    def starts(self, bases: Sequence[Cell] | None) -> list[Start]:
        """Bases and seeds, and the orders of each.

        Args:
            bases: cells of the base's stage; None where the base is a folder, or there is none.
        """
        seeds = self.replicates.seeds[: self.stage.seeds]
        if bases is None:
            folder = shipped(self.stage.base) if self.stage.base else None
            return [Start(folder, None, {}, seed, k) for seed in seeds for k in self._orders(seed, folder is not None)]
        steps: Sequence[int | None] = self.stage.checkpoints if isinstance(self.stage.checkpoints, list) else [None]
        return [
            Start(base, step, base.coordinates, int(base.coordinates[SEED]), k)
            for base in bases
            for step in steps
            if int(base.coordinates[SEED]) in seeds
            for k in self._orders(int(base.coordinates[SEED]), True)
        ]

    def _orders(self, seed: int, has_base: bool) -> range:
        repeated = (
            seed in self.replicates.seeds[: self.replicates.orders_seeds] and has_base and self.stage.kind == "fit"
        )
        return range(self.replicates.orders if repeated else 1)

    def choices(self, start: Start, axes: Sequence[Axis]) -> Iterator[list[tuple[Axis, str, AxisValue]]]:
        """Every combination of values for a start: axis, value of the axis ``by``, value."""
        partial: list[tuple[dict[str, str], list[tuple[Axis, str, AxisValue]]]] = [(start.axes(), [])]
        for axis in axes:
            partial = [
                ({**coordinates, axis.name: value.name}, [*chosen, (axis, coordinates.get(axis.by or "", ""), value)])
                for coordinates, chosen in partial
                for value in axis.values_for(coordinates)
            ]
        for _, chosen in partial:
            if self.has(start, chosen):
                yield chosen

    def has(self, start: Start, chosen: Sequence[tuple[Axis, str, AxisValue]]) -> bool:
        """Whether this combination is part of the study: not skipped, and of a seed that its values have."""
        seeds = self.replicates.seeds
        coordinates = {**start.axes(), **{axis.name: value.name for axis, _, value in chosen}}
        enough = all(value.seeds is None or start.seed in seeds[: value.seeds] for _, _, value in chosen)
        return enough and not any(_matches(coordinates, pattern) for pattern in self.stage.skip)

    def cell(self, start: Start, chosen: Sequence[tuple[Axis, str, AxisValue]]) -> Cell:
        """One cell."""
        options = self.values.composed(chosen)
        seeded = self._seeds(start, options)
        options |= seeded
        given = arguments(self.stage.kind, self.stage.config, dotted_options(self.stage.options))
        for _, _, value in chosen:
            given += arguments(self.stage.kind, value.config, value.options)
        given += arguments(self.stage.kind, (), seeded)
        if options.get(STYLE) is not None:  # what a base has that is yet to be made is no part of the plan
            given += arguments(self.stage.kind, (), {STYLE: options[STYLE]})
        coordinates = {**start.axes(), **{axis.name: value.name for axis, _, value in chosen}, SEED: str(start.seed)}
        if self.replicates.orders > 1 and start.base is not None and self.stage.kind == "fit":
            coordinates[ORDER] = str(start.order)
        self._check_carrying(start, options, coordinates)
        base = start.identity()
        if base is None and (folder := options.get("model.checkpoint_dir")):  # an axis may name it
            base = model_fingerprint(shipped(folder))
        return Cell(
            self._name(options, base),
            self.name,
            self.stage.kind,
            coordinates,
            options,
            tuple(given),
            start.base,
            start.step,
            self.stage.threads,
            self.stage.devices,
        )

    def _check_carrying(self, start: Start, options: Mapping[str, Any], coordinates: Mapping[str, str]) -> None:
        """ValueError where the state of another optimizer would be carried over."""
        if not options.get(CARRY) or not isinstance(start.base, Cell):
            return
        of_base, own = (given.get(OPTIMIZER) for given in (start.base.options, options))
        if of_base != own:
            where = ", ".join(f"{axis} {value}" for axis, value in coordinates.items() if axis != SEED)
            raise ValueError(
                f"stages.{self.name}: {CARRY} = true with {own} on a base of {of_base} ({where}): expected one class, "
                "or skip for this combination"
            )

    def _name(self, options: Mapping[str, Any], base: str | None) -> str:
        """By what the numbers depend on; where other code is accepted and has run the cell, by that code."""
        names = [
            f"{self.stage.kind}-{identity(self.stage.kind, options, base, _files(options), machine)}"
            for machine in self.machines
        ]
        return next((name for name in names if len(names) > 1 and self.is_finished(name)), names[0])

    def _seeds(self, start: Start, options: Mapping[str, Any]) -> dict[str, Any]:
        """What a replicate changes."""
        vary = self.replicates.vary
        changed: dict[str, Any] = {}
        if self.stage.kind == "analyze" and "order" in vary:
            changed["seed"] = start.seed
        if self.stage.kind == "fit":
            if "world" in vary and options.get("world.class_path"):
                changed["world.init_args.seed"] = start.seed
            has_base = start.base is not None or options.get("model.checkpoint_dir") is not None
            if ("order" if has_base else "base") in vary:
                changed["seed_everything"] = start.seed
            if start.order:
                changed["seed_everything"] = changed.get("seed_everything", options["seed_everything"]) + (
                    start.order * ORDERS_APART
                )
        elif self.stage.kind in ("evaluate", "analyze") and "world" in vary:
            changed["world"] = {**(options.get("world") or {}), "seed": start.seed}
        elif self.stage.kind == "sequence" and "order" in vary:
            changed["seeds"] = [start.seed]  # one sequence a cell
        return changed


@dataclass(frozen=True)
class Start:
    """From where a cell starts.

    Args:
        base: a cell, a folder, or None.
        step: of the base's series.
        coordinates: of the base.
        seed: of the replicate.
        order: number of the order of the data.
    """

    base: Cell | Path | None
    step: int | None
    coordinates: Mapping[str, str]
    seed: int
    order: int

    def axes(self) -> dict[str, str]:
        """Coordinates other than the seed, the step among them."""
        inherited = {axis: value for axis, value in self.coordinates.items() if axis not in (SEED, ORDER)}
        return inherited if self.step is None else {**inherited, CHECKPOINT: str(self.step)}

    def identity(self) -> str | None:
        """What of the base the numbers depend on."""
        if self.base is None:
            return None
        base = self.base.name if isinstance(self.base, Cell) else model_fingerprint(self.base)
        return base if self.step is None else f"{base} step {self.step}"

    def group(self) -> tuple[tuple[str, str], ...]:
        """What the replicates of one group have in common."""
        return tuple(self.axes().items())


def _files(options: Mapping[str, Any]) -> Mapping[str, str]:
    # thousands of cells name the same few files
    named = tuple(sorted((key, value) for key, value in options.items() if isinstance(value, str)))
    lists = tuple(
        sorted(
            (key, entry)
            for key, value in options.items()
            if isinstance(value, list)
            for entry in value
            if isinstance(entry, str)
        )
    )
    return _files_of(tuple(sorted({(_kind_of_key(key), text) for key, text in (*named, *lists)})))


def _kind_of_key(key: str) -> str:
    if key.startswith("forgetting.") or key in TASK_KEYS:
        return "tasks"  # names of tasks, whose files are looked up
    return key


@lru_cache(maxsize=4096)
def _files_of(named: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    found: dict[str, str] = {}
    for key, text in named:
        found |= contents({key: text})
    return found


def _matches(coordinates: Mapping[str, str], pattern: Mapping[str, Any]) -> bool:
    return all(
        coordinates.get(axis) in [number_name(entry) for entry in (value if isinstance(value, list) else [value])]
        for axis, value in pattern.items()
    )


def grouped(starts: Sequence[Start]) -> list[list[Start]]:
    """Starts that differ in seed and order alone, in the order of the first of each."""
    groups: dict[tuple[tuple[str, str], ...], list[Start]] = {}
    for start in starts:
        groups.setdefault(start.group(), []).append(start)
    return list(groups.values())
