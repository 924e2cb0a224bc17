"""What a sequence of tasks is: a base, the stages in their order, how each is trained and how all are asked.

Dataclasses that jsonargparse reads from YAML. Ranges and names are checked here, at once; whether tasks, data and
worlds are there is checked by ``tasks.py``, which has to open them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lit_consistency.records.shipped import looked_in, shipped

OWNED = (
    "seed_everything",
    "ckpt_path",
    "model.checkpoint_dir",
    "run.name",
    "run.root",
    "run.final_dir",
    "run.save_model",
    "data.class_path",
    "data.init_args.rows",
)
"""Keys of ``fit`` that the sequence sets."""


@dataclass
class WorldTask:
    """A task made of a synthetic world.

    Args:
        world: ``class_path`` and ``init_args``, as in the configuration of ``fit``.
        probes: the world's set of questions that is scored.
        task: the world's finetuning task that is trained on; a task of ``general`` needs none.
    """

    world: dict[str, Any]
    probes: str
    task: str | None = None


@dataclass
class Stage:
    """One task of the sequence.

    Args:
        task: a task file, the name of one in ``configs/evaluation`` (one of several as ``NAME:VARIANT``), or of one of
            ``worlds``.
        fit: options of ``fit`` for this stage alone, nested or with dots (``trainer.max_steps``).
    """

    task: str
    fit: dict[str, Any] = field(default_factory=dict)


@dataclass
class FitOptions:
    """How every stage is trained.

    Args:
        config: configuration files of ``fit``, composed left to right; the optimizer is one of them.
        options: further options of ``fit``, nested or with dots; they win over the files.
        format: format of the training prompts.
        limit: training rows of a task at most, drawn by the seed of the run; 0: all.
    """

    config: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)
    format: str = "default"
    limit: int = 0


@dataclass
class EvaluationOptions:
    """How the models are asked: all tasks of the stages and these, by ``evaluate``.

    Args:
        general: tasks that are never trained on: what is kept of general abilities.
        format: formats of the prompts; a matrix for each.
        shots: numbers of few-shot examples; a matrix for each.
        limit: questions of each task at most; 0: all.
        seed: of the draw of questions and examples, the same for all models.
        batch_tokens: padded tokens in one forward.
        device: ``auto``, ``cpu``, ``cuda``, ...
        precision: ``auto``, ``float32``, ``bfloat16`` or ``float16``.
    """

    general: list[str] = field(default_factory=list)
    format: list[str] = field(default_factory=lambda: ["default"])
    shots: list[int] = field(default_factory=lambda: [0])
    limit: int = 0
    seed: int = 0
    batch_tokens: int = 16384
    device: str = "auto"
    precision: str = "auto"


@dataclass
class ReplayOptions:
    """What is rehearsed while a later task is learned, as shares of the learned tokens; 0: nothing.

    Args:
        earlier_tasks: of the training rows of all earlier stages together, equal shares each.
        pretraining: of the text of ``source``.
        source: ``class_path`` and ``init_args`` of a source of text.
    """

    earlier_tasks: float = 0.0
    pretraining: float = 0.0
    source: dict[str, Any] | None = None


@dataclass
class SequencePlan:
    """A sequence of tasks.

    Args:
        base: model folder in LitGPT's format.
        output: folder of the runs, the evaluations and the matrix.
        stages: tasks in the order of training.
        fit: how they are trained.
        evaluation: how all models are asked.
        replay: what is rehearsed.
        seeds: of the runs; one sequence for each.
        worlds: tasks made of synthetic worlds, by their names.
        data_dir: takes the place of the folder ``data/`` of the task files.
    """

    base: Path
    output: Path
    stages: list[Stage]
    fit: FitOptions = field(default_factory=FitOptions)
    evaluation: EvaluationOptions = field(default_factory=EvaluationOptions)
    replay: ReplayOptions = field(default_factory=ReplayOptions)
    seeds: list[int] = field(default_factory=lambda: [0])
    worlds: dict[str, WorldTask] = field(default_factory=dict)
    data_dir: Path | None = None


def check_plan(plan: SequencePlan) -> None:
    """ValueError, which names key, value and what is allowed, for what is wrong in the plan by itself."""
    if not plan.stages:
        raise ValueError("stages = []: expected at least one")
    asked = [*(stage.task for stage in plan.stages), *plan.evaluation.general]
    for key, values in (
        ("stages, evaluation.general", asked),
        ("seeds", plan.seeds),
        ("evaluation.format", plan.evaluation.format),
        ("evaluation.shots", plan.evaluation.shots),
    ):
        refuse_twice(key, [str(value) for value in values])
    least = [
        ("fit.limit", plan.fit.limit, 0),
        ("evaluation.limit", plan.evaluation.limit, 0),
        ("evaluation.batch_tokens", plan.evaluation.batch_tokens, 1),
        ("evaluation.seed", plan.evaluation.seed, 0),
        *(("evaluation.shots", n, 0) for n in plan.evaluation.shots),
        *(("seeds", seed, 0) for seed in plan.seeds),
    ]
    for key, value, lowest in least:
        if value < lowest:
            raise ValueError(f"{key} = {value}: expected at least {lowest}")
    for name in plan.worlds:
        if not re.fullmatch(r"[\w-]+", name):
            raise ValueError(f"worlds: {name!r}: expected letters, digits, '_' and '-' only")
    _check_replay(plan.replay)
    for file in plan.fit.config:
        if not shipped(file).is_file():
            raise FileNotFoundError(f"fit.config: {file}: no such file{looked_in(file)}")
    _check_owned("fit.options", plan.fit.options, plan.replay)
    for stage in plan.stages:
        _check_owned(f"stages: {stage.task}: fit", stage.fit, plan.replay)


def refuse_twice(key: str, values: list[str]) -> None:
    """ValueError where there is nothing, or something twice."""
    if not values:
        raise ValueError(f"{key} = []: expected at least one")
    if twice := sorted({value for value in values if values.count(value) > 1}):
        raise ValueError(f"{key}: {twice[0]} is there twice; expected every one once")


def _check_replay(replay: ReplayOptions) -> None:
    shares = {"earlier_tasks": replay.earlier_tasks, "pretraining": replay.pretraining}
    for key, share in shares.items():
        if not 0 <= share < 1:
            raise ValueError(f"replay.{key} = {share}: expected a share from 0 to below 1")
    if sum(shares.values()) >= 1:
        raise ValueError(f"replay: shares of {sum(shares.values())} in all; expected less than 1")
    if (replay.pretraining > 0) != (replay.source is not None):
        raise ValueError("replay.pretraining, replay.source: expected a share above 0 with a source, or neither")


def _check_owned(key: str, options: dict[str, Any], replay: ReplayOptions) -> None:
    owned = [*OWNED, *(["data.init_args.replay"] if replay.earlier_tasks or replay.pretraining else [])]
    for name in dotted(options):
        if any(name == own or name.startswith(f"{own}.") for own in owned):
            raise ValueError(f"{key}: {name}: the sequence sets it; expected options other than {', '.join(owned)}")


def dotted(options: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys of nested options, joined by dots."""
    for key, value in options.items():
        if isinstance(value, dict) and value:
            yield from dotted(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def merged(*layers: dict[str, Any]) -> dict[str, Any]:
    """One nested mapping of several; keys with dots are nested, and the later layer wins."""
    options: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            first, _, rest = key.partition(".")
            inner = {rest: value} if rest else value
            if isinstance(inner, dict):
                before = options.get(first)
                options[first] = merged(before if isinstance(before, dict) else {}, inner)
            else:
                options[first] = inner
    return options
