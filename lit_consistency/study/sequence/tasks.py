"""The tasks of a sequence, opened: what ``fit`` and ``evaluate`` are handed, and fingerprints of what they read.

Everything that can be wrong with tasks, data, worlds and the base is found here, before any run is started. To read
tasks takes the rooms of data and tasks, which import torch; so they are imported where tasks are opened, and a matrix
is printed, or a plan checked, without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lit_consistency.records.model_folder import check_checkpoint_dir
from lit_consistency.records.results import result_key
from lit_consistency.records.shipped import shipped
from lit_consistency.study.sequence.plan import SequencePlan, check_plan, refuse_twice

if TYPE_CHECKING:
    from lit_consistency.tasks.formats import Format
    from lit_consistency.tasks.task import Task


@dataclass(frozen=True)
class OpenTasks:
    """What a sequence trains on and asks.

    Args:
        names: for ``evaluate --tasks``: those of the stages in their order, then the general ones.
        stages: the tasks that are trained on.
        general: the tasks that are only asked.
        rows: ``init_args`` of ``TaskRows`` for every stage, without the seed.
        row_fingerprints: of what every stage's rows depend on.
        fingerprint: of what is asked.
        chat: whether training prompts are turns of a chat template.
        source_fingerprint: of the replayed text of pretraining.
    """

    names: list[str]
    stages: list[Task]
    general: list[Task]
    rows: list[dict[str, Any]]
    row_fingerprints: list[dict[str, Any]]
    fingerprint: dict[str, Any]
    chat: bool
    source_fingerprint: dict[str, Any] | None

    @property
    def columns(self) -> list[Task]:
        """All tasks: those of the stages in their order, then the general ones."""
        return [*self.stages, *self.general]


def open_tasks(plan: SequencePlan) -> OpenTasks:
    """Check the plan and open its tasks; tasks of worlds are written into ``<output>/tasks``.

    Raises:
        FileNotFoundError: the base, a task, or its data are not there.
        ValueError: something in the plan or a task does not fit; names it and what is allowed.
    """
    check_plan(plan)
    check_checkpoint_dir(shipped(plan.base), option="base")
    from lit_consistency.data.sources.documents import Source
    from lit_consistency.data.worlds import World
    from lit_consistency.tasks.formats import load_format
    from lit_consistency.tasks.training_rows import TaskRows
    from lit_consistency.tasks.world import write_world_task
    from lit_consistency.tasks.yaml_file import load_task, load_tasks

    formats = [load_format(name) for name in plan.evaluation.format]
    source = None if plan.replay.source is None else build("replay.source", Source, plan.replay.source)
    worlds = {name: build(f"worlds.{name}.world", World, task.world) for name, task in plan.worlds.items()}
    files = {
        name: write_world_task(plan.output / "tasks", name, world, plan.worlds[name].probes, plan.worlds[name].task)
        for name, world in worlds.items()
    }
    trained = [str(files.get(stage.task, stage.task)) for stage in plan.stages]
    asked = [str(files.get(name, name)) for name in plan.evaluation.general]
    stages = [load_task(name, plan.data_dir) for name in trained]
    general = [task for name in asked for task in load_tasks(name, plan.data_dir)]
    refuse_twice("stages, evaluation.general", [task.name for task in [*stages, *general]])
    for task in [*stages, *general]:
        _check_asked(task, formats, plan.evaluation.shots)
    rows = [_row_options(name, plan) for name in trained]
    return OpenTasks(
        names=[*trained, *asked],
        stages=stages,
        general=general,
        rows=rows,
        row_fingerprints=[TaskRows(**options).fingerprint() for options in rows],
        fingerprint=_fingerprint([*stages, *general], formats),
        chat=load_format(plan.fit.format).chat,
        source_fingerprint=None if source is None else source.fingerprint(),
    )


def build(key: str, kind: type, spec: dict[str, Any]) -> Any:
    """An object from ``class_path`` and ``init_args``, as in a configuration; ValueError names the key."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(kind, "object")
    try:
        return parser.instantiate_classes(parser.parse_object({"object": spec})).object
    except FileNotFoundError:
        raise
    except Exception as error:  # jsonargparse has its own kinds of them
        raise ValueError(f"{key}: {error}") from None


def result_keys(task: Task, plan: SequencePlan) -> dict[str, str]:
    """Name of a matrix, ``FORMAT/SHOTS``, to the name of the task's result in it; some tasks have no format."""
    from lit_consistency.tasks.formats import load_format

    return {
        f"{form}/{shots}": result_key(task.name, *((form, shots) if task.prompted else ("none", 0)))
        for form in (load_format(name).name for name in plan.evaluation.format)
        for shots in plan.evaluation.shots
    }


def _row_options(name: str, plan: SequencePlan) -> dict[str, Any]:
    """All options, because one that is left out would be taken over from other rows in the files of ``fit.config``."""
    data_dir = None if plan.data_dir is None else str(plan.data_dir)
    options = {"task": name, "format": plan.fit.format, "split": "few_shot", "limit": plan.fit.limit}
    return {**options, "data_dir": data_dir}


def _check_asked(task: Task, formats: Sequence[Format], shots: Sequence[int]) -> None:
    if task.runs_code:
        raise ValueError(f"task {task.name} runs what the model writes; expected tasks without `program`")
    for form in formats if task.prompted else ():
        task.check_asked(form, max(shots))


def _fingerprint(tasks: Sequence[Task], formats: Sequence[Format]) -> dict[str, Any]:
    from lit_consistency.tasks.rows import fingerprint
    from lit_consistency.tasks.task import PromptedTask, keys_of

    marks = []
    for task in tasks:
        training = task.few_shot if isinstance(task, PromptedTask) else None
        few_shot = fingerprint(training) if training else None
        marks.append({**keys_of(task), "data": fingerprint(task.data), "few_shot": few_shot})
    return {"tasks": marks, "formats": [asdict(form) for form in formats]}


def data_folder(path: Path | None) -> list[str]:
    """The option of ``evaluate``."""
    return [] if path is None else [f"--data_dir={path}"]
