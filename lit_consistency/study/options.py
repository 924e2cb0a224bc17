"""What a study is: stages with axes, replicates, how it is read, and what is claimed. Read from YAML by jsonargparse.

Names are checked here, by themselves and against each other; what the values of an axis mean is checked by the parser
of the command that runs them (study/values.py), and all of it before the first run.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lit_consistency.records.shipped import looked_in, shipped

Scale = Literal["points", "log-odds", "log"]
METRIC = "metric"
"""In the place of an axis of a claim's columns: two numbers of the same cells."""
SEED, ORDER, CHECKPOINT = "seed", "order", "checkpoint"
"""Coordinates that a cell may have beside its axes: the replicate, the repeated run with another order of the data, the
step of the base's series from which it starts."""


@dataclass
class Pick:
    """Which of the base's cells a stage starts from, where the base's stage has more of them than wanted.

    Args:
        where: axis -> names of values; the others are left out.
        over: the axis along which one cell is kept in every group of cells that agree in all other axes.
        best: of that axis the value whose mean over seeds is best in this metric, as ``val/loss``.
        metric: keep in every group the cell whose value of this metric is nearest to that of ``to`` or to ``level``.
        to: axis -> value of the cell to be met, in the same group of all other axes and of the same seed.
        level: a value of ``metric`` to be met.
        within: largest distance allowed; what is further away is left out and named.
    """

    where: dict[str, list[str]] = field(default_factory=dict)
    over: str | None = None
    best: str | None = None
    metric: str | None = None
    to: dict[str, str] = field(default_factory=dict)
    level: float | None = None
    within: float | None = None


@dataclass
class Stage:
    """Cells of one kind: the product of the axes, for every seed and every cell of the base.

    Args:
        kind: the command that fills a cell.
        config: configuration files of the command, composed left to right.
        options: further options of the command, nested or with dots; they win over the files.
        axes: name -> axis. Either ``value: FILES`` (or ``{config: FILES, options: {...}, seeds: N}``) for every value,
            or ``{key: OPTION, values: [...]}``, or ``{keys: {OPTION: [...], OPTION: [...]}}`` whose lists move
            together. ``by: AXIS`` makes ``values`` and ``keys`` one for every value of another axis, ``others`` for
            those not named. ``search`` adds values.
        base: another stage, or a model folder; of kind ``fit`` none for a new model.
        checkpoints: start from these steps of the base's series (``checkpoint.series``); ``all`` of them.
        pick: which cells of the base.
        skip: combinations to leave out, each axis -> a value or a list of values.
        seeds: the first so many of the replicates; all of them when not given.
        threads: processor threads of a cell, part of what it is.
        devices: GPUs of a cell, or a share of one.
    """

    kind: Literal["fit", "evaluate", "sequence", "analyze"] = "fit"
    config: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    axes: dict[str, Any] = field(default_factory=dict)
    base: str | None = None
    checkpoints: list[int] | Literal["all"] | None = None
    pick: Pick = field(default_factory=Pick)
    skip: list[dict[str, Any]] = field(default_factory=list)
    seeds: int | None = None
    threads: int = 1
    devices: float = 0.0


@dataclass
class Replicates:
    """What is repeated, and with what that differs.

    Args:
        seeds: one replicate each.
        vary: what a seed changes: the ``world``, the ``base``'s initialization and order of data (stages without a
            base), the ``order`` of data (stages with one).
        orders: runs of every cell of a stage with a base, the same but for the order of the data; more than 1 shows
            the spread that is the runs' own.
        orders_seeds: for the first so many seeds.
    """

    seeds: list[int] = field(default_factory=lambda: [0])
    vary: list[Literal["world", "base", "order"]] = field(default_factory=lambda: ["world", "base", "order"])
    orders: int = 1
    orders_seeds: int = 1


@dataclass
class Reading:
    """How learning and forgetting are read from the cells of one stage.

    Args:
        stage: whose cells.
        learning: metric of the new task, as ``learn/new_people``.
        forgetting: metric of what is retained, as ``retain/old_people``; its change from the base is read.
        panel: axes that make up a picture, within which groups are compared, as the base's optimizer.
        group: axes that make up a group, as the finetuner.
        rate: the axis along which a group is read at equal learning.
        level: of learning, at which forgetting is read; chosen beforehand.
        divergence: metric at whose ``divergence_level`` forgetting is read too, as ``kl_to_base``.
        divergence_level: of ``divergence``.
        scales: on which effects are shown: ``points``, ``log-odds`` for shares, ``log`` for losses.
        tuned: metric -> axis, curves of other stages to show, as ``{val/loss: base_lr}``.
    """

    stage: str
    learning: str
    forgetting: str
    panel: list[str] = field(default_factory=list)
    group: list[str] = field(default_factory=list)
    rate: str | None = None
    level: float | None = None
    divergence: str | None = None
    divergence_level: float | None = None
    scales: list[Scale] = field(default_factory=lambda: ["points"])
    tuned: dict[str, str] = field(default_factory=dict)


FRONTS = ("front", "final", "early_stop", "dial")
"""Places of a claim that are read along a front."""


@dataclass
class Claim:
    """A sentence that the study supports, contradicts, or leaves undecided; written before the first run.

    Args:
        sentence: what is claimed.
        contrast: ``interaction``: of the crossed table ``rows`` x ``columns``, matched minus mismatched pairs beyond
            both main effects; ``difference``: of the cells ``of`` minus the cells ``against``, by seed.
        rows: one axis -> two of its values; the first belongs to the first of ``columns``.
        columns: one axis -> two of its values, or ``metric`` -> two numbers of the same cells.
        of: axis -> value; with ``at: end`` the reading's rate may be one of the axes. ``at`` in it says where this side
            is read, as ``{way: adamw, at: dial}`` against ``{way: adamw, at: final}``.
        against: axis -> value, and ``at``.
        metric: the number; the reading's forgetting when not given.
        stage: whose cells are read at their ends, grouped by the axes that the claim names; the reading's when not
            given.
        at: where it is read: ``learning`` (at the reading's level, along the rates), ``front`` (at that level, along
            the front over rates, steps and interpolation; ``final``: of final models alone; ``early_stop``: and their
            steps; ``dial``: and what lies between base and end), ``divergence``, ``end``, or ``best`` (at the best
            rate).
        itself: read the number itself, not its change from the base; of what is better higher its negative, so that
            less is better as with a change.
        scale: ``points``, ``log-odds`` or ``log``.
        expect: whether the claim says that the contrast is ``below`` or ``above`` zero.
        smallest_effect: that counts, on the scale of the claim.
    """

    sentence: str
    contrast: Literal["interaction", "difference"] = "difference"
    rows: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)
    of: dict[str, str] = field(default_factory=dict)
    against: dict[str, str] = field(default_factory=dict)
    metric: str | None = None
    stage: str | None = None
    at: Literal["learning", "front", "final", "early_stop", "dial", "divergence", "end", "best"] = "learning"
    itself: bool = False
    scale: Scale = "points"
    expect: Literal["below", "above"] = "below"
    smallest_effect: float = 0.0


@dataclass
class StudyOptions:
    """A study.

    Args:
        title: a few words.
        description: what it asks; shown in the report.
        output: folder of the plan, the tables and the report.
        cells: folder of the cells' runs; equal cells of several studies are one.
        stages: in their order.
        replicates: seeds.
        read: how the cells are read.
        claims: sentences, each with the contrast that decides it.
        accept_code: versions of the code (``--dry_run`` prints the present one) that compute the same numbers as the
            present one; cells that they have computed count.
    """

    title: str
    output: Path
    stages: dict[str, Stage]
    description: str = ""
    cells: Path = Path("checkpoints/cells")
    replicates: Replicates = field(default_factory=Replicates)
    read: Reading | None = None
    claims: dict[str, Claim] = field(default_factory=dict)
    accept_code: list[str] = field(default_factory=list)


NAME = re.compile(r"[A-Za-z][\w-]*")
KEY = re.compile(r"[\w.-]+")


def check_names(study: StudyOptions) -> None:
    """ValueError, which names key, value and what is allowed, for what is wrong in the study by itself."""
    if not study.stages:
        raise ValueError("stages = {}: expected at least one")
    for key, names in (("stages", study.stages), ("claims", study.claims)):
        for name in names:
            if not NAME.fullmatch(name):
                raise ValueError(f"{key}: {name!r}: expected a letter, then letters, digits, '_' and '-'")
    _check_replicates(study.replicates)
    earlier: list[str] = []
    for name, stage in study.stages.items():
        _check_stage(f"stages.{name}", stage, earlier)
        earlier.append(name)


def _check_replicates(replicates: Replicates) -> None:
    if not replicates.seeds or len(set(replicates.seeds)) < len(replicates.seeds) or min(replicates.seeds) < 0:
        raise ValueError(f"replicates.seeds = {replicates.seeds}: expected different numbers of at least 0")
    at_least("replicates.orders", replicates.orders, 1)
    at_least("replicates.orders_seeds", replicates.orders_seeds, 0)


def _check_stage(key: str, stage: Stage, earlier: list[str]) -> None:
    for file in stage.config:
        if not shipped(file).is_file():
            raise FileNotFoundError(f"{key}.config: {file}: no such file{looked_in(file)}")
    at_least(f"{key}.threads", stage.threads, 1)
    at_least(f"{key}.devices", stage.devices, 0)
    if stage.seeds is not None:
        at_least(f"{key}.seeds", stage.seeds, 1)
    if stage.base is None and stage.kind != "fit":
        raise ValueError(f"{key}.base = null: expected a stage or a model folder for {stage.kind}")
    if stage.base is not None and stage.base not in earlier and not shipped(stage.base).is_dir():
        allowed = f"an earlier stage ({', '.join(earlier)})" if earlier else "an earlier stage (there is none)"
        raise ValueError(f"{key}.base = {stage.base}: expected {allowed}, or a model folder{looked_in(stage.base)}")
    if stage.checkpoints is not None and stage.base not in earlier:
        raise ValueError(f"{key}.checkpoints: expected a base that is an earlier stage, whose checkpoints these are")
    pick = stage.pick
    if (pick.best or pick.metric) and not pick.over:
        raise ValueError(f"{key}.pick.over = null: expected the axis along which one cell is kept")
    if pick.over and bool(pick.best) == bool(pick.metric):
        raise ValueError(f"{key}.pick: expected one of best and metric with over = {pick.over}")
    if pick.metric and (pick.level is None) == (not pick.to):
        raise ValueError(f"{key}.pick: expected one of level and to, which {pick.metric} has to meet")


def at_least(key: str, value: float, least: float) -> None:
    """ValueError where a value is below what is allowed."""
    if value < least:
        raise ValueError(f"{key} = {value}: expected at least {least}")


def one_of(key: str, value: str, allowed: Iterable[str]) -> None:
    """ValueError where a name is not among those that there are."""
    allowed = list(allowed)
    if value not in allowed:
        raise ValueError(f"{key} = {value}: expected one of {', '.join(allowed) or '(there is none)'}")


def dotted_options(options: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested options by dotted keys; what the parser takes as one value stays one: a class, and regular expressions."""
    flat: dict[str, Any] = {}
    for key, value in options.items():
        nested = isinstance(value, Mapping) and value and "class_path" not in value
        if nested and all(KEY.fullmatch(str(inner)) for inner in value):
            flat |= dotted_options(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
