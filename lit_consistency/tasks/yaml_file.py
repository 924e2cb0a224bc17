"""Tasks read from YAML. A file holds one task, or several alike: ``variants`` maps a name to the keys that differ.

In a file with variants ``$variant`` stands for the variant's name anywhere in a text, and the task is called
``NAME_VARIANT``. Paths of data are relative to the working folder, or to ``data_dir`` where one is given. The name
``suite`` is the file that lies in the package (tasks/suite), with its data.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from typing import Any, get_type_hints

from lit_consistency.data.worlds.base import World
from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.records.shipped import beside, looked_in, shipped
from lit_consistency.records.strict_yaml import read_strict_yaml
from lit_consistency.tasks.choice import ChoiceTask, PairsTask
from lit_consistency.tasks.completion import CompletionTask
from lit_consistency.tasks.generation import GenerationTask
from lit_consistency.tasks.suite import DATA, FILE, NAME, OWN_SAMPLES
from lit_consistency.tasks.task import Task
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.text import TextTask

FOLDER = Path("configs/evaluation")
"""Where a task that is called by its name is looked for."""
IN_MEMORY = ("source", "rows")
"""Of ``TaskData``, what no file can name."""
KINDS: dict[str, type[Task]] = {
    kind.kind: kind for kind in (TextTask, ChoiceTask, PairsTask, CompletionTask, GenerationTask)
}
KEYS = {"kind"} | {entry.name for kind in KINDS.values() for entry in fields(kind)}


def load_tasks(name: str, data_dir: Path | None = None, world: World | Mapping[str, Any] | None = None) -> list[Task]:
    """The tasks of a file.

    Args:
        name: a YAML file, or the name of one in ``configs/evaluation``, as ``piqa`` or ``hub/mnli``; of a file with
            variants, ``NAME/VARIANT`` or ``NAME:VARIANT`` is one of them; ``suite``, or ``suite/NAME``.
        data_dir: takes the place of the first folder, ``data/``, of every path in the file.
        world: of tasks of a world, the world to ask of in place of the file's, or those of its fields that differ.

    Raises:
        FileNotFoundError: there is no such file; names those that are close.
        ValueError: names the file, the key and what is allowed.
    """
    path, variant = _find(name)
    tasks = _read(path, data_dir, world)
    if variant is None:
        return list(tasks.values())
    if path == FILE and variant == OWN_SAMPLES:
        raise ValueError(f"tasks: {name!r}: texts that a run's base writes at its start; expected it in fit only")
    if variant not in tasks:
        raise ValueError(f"tasks: {name!r}: {path} has no {variant!r}; expected one of {', '.join(tasks)}")
    return [tasks[variant]]


def load_task(name: str, data_dir: Path | None = None, world: World | Mapping[str, Any] | None = None) -> Task:
    """The one task of that name; ValueError, with one that there is, where the file holds several."""
    tasks = load_tasks(name, data_dir, world)
    if len(tasks) > 1:
        first = next(iter(_read(_find(name)[0], data_dir, world)))
        raise ValueError(f"task = {name!r}: a file of {len(tasks)} tasks; expected one of them, as {name}/{first}")
    return tasks[0]


def task_from_keys(
    keys: Mapping[str, Any],
    name: str,
    data_dir: Path | None = None,
    world: World | Mapping[str, Any] | None = None,
    origin: str = "task",
) -> Task:
    """A task from the keys of a task file.

    Args:
        keys: as in a file without variants.
        name: of the task where the keys give none.
        data_dir: as in ``load_tasks``.
        world: as in ``load_tasks``.
        origin: where the keys stand, for messages.

    Raises:
        ValueError: names origin, key, value and what is allowed.
    """
    content = {"name": name, **keys}
    for key in ("kind", "data"):
        if key not in content:
            raise ValueError(f"{origin}: no key {key!r}; a task needs it")
    kind = content.pop("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise ValueError(f"{origin}: kind = {kind!r}: expected one of {', '.join(KINDS)}")
    try:
        for key in ("data", "few_shot"):
            if content.get(key) is not None:
                content[key] = _data(content[key], f"{key}.", data_dir, world)
        if content.get("generation") is not None:
            content["generation"] = _build(GenerationOptions, content["generation"], "generation.")
        _refuse_keys_of_other_kinds(content, KINDS[kind])
        task: Task = _build(KINDS[kind], content, "")
    except ValueError as error:
        raise ValueError(f"{origin}: {error}") from None
    return task


def _read(path: Path, data_dir: Path | None, world: World | Mapping[str, Any] | None) -> dict[str, Task]:
    """The tasks of a file by the names of their variants; a single one has the file's."""
    if path == FILE:  # it brings its data along
        data_dir = DATA
    content = read_strict_yaml(path)
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}; expected a mapping of keys")
    variants = content.pop("variants", None)
    content.setdefault("name", path.stem)
    if variants is None:
        return {path.stem: _of_file(content, path.stem, path, data_dir, world)}
    if (
        not isinstance(variants, dict)
        or not variants
        or not all(isinstance(keys, dict | None) for keys in variants.values())
    ):
        raise ValueError(f"{path}: variants: expected a mapping of names to the keys that differ")
    tasks = {}
    for variant, keys in variants.items():
        if "name" in (keys or {}):
            raise ValueError(f"{path}: variants.{variant}.name: expected none, the variant's own name is taken")
        merged = {**content, **(keys or {})}
        # a variant of another kind takes a key of the others back by null; a key that no kind has is still refused
        if unknown := [key for key, value in merged.items() if value is None and key not in KEYS]:
            raise ValueError(f"{path}: variants.{variant}.{unknown[0]}: no such key")
        filled = _fill({key: value for key, value in merged.items() if value is not None}, str(variant))
        filled["name"] = f"{content['name']}_{variant}"
        tasks[str(variant)] = _of_file(filled, filled["name"], path, data_dir, world)
    return tasks


def _of_file(keys: dict[str, Any], name: str, path: Path, data_dir: Path | None, world: Any) -> Task:
    """A task from the keys of a file; its data may lie beside the file."""
    if data_dir is None:
        data = {key: keys[key] for key in ("data", "few_shot") if isinstance(keys.get(key), dict)}
        keys = {**keys, **beside(data, path.resolve().parent, Path.cwd())}
    return task_from_keys(keys, name, data_dir, world, str(path))


def _find(name: str) -> tuple[Path, str | None]:
    """File and variant of a name."""
    path = Path(name)
    if re.fullmatch(rf"{NAME}([/:].+)?", name):
        return FILE, name[len(NAME) + 1 :] or None
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"tasks: {name}: no such file{looked_in(path)}")
        return path, None
    folder = shipped(FOLDER)
    known = sorted(file.relative_to(folder).with_suffix("").as_posix() for file in folder.rglob("*.yaml"))
    if name in known:
        return folder / f"{name}.yaml", None
    for separator in (":", "/"):
        file, _, variant = name.rpartition(separator)
        if file in known:
            return folder / f"{file}.yaml", variant
        if Path(file).suffix in (".yaml", ".yml") and Path(file).is_file():
            return Path(file), variant
    close = get_close_matches(name, [*known, NAME]) or [*known, NAME]
    expected = f"one of {', '.join(close)}" if close else "a YAML file"
    raise FileNotFoundError(f"tasks: {name!r}: there is no {FOLDER}/{name}.yaml; expected {expected}")


def _fill(value: Any, variant: str) -> Any:
    if isinstance(value, str):
        return value.replace("$variant", variant)
    if isinstance(value, dict):
        return {key: _fill(entry, variant) for key, entry in value.items()}
    return [_fill(entry, variant) for entry in value] if isinstance(value, list) else value


def _refuse_keys_of_other_kinds(content: dict[str, Any], kind: type[Task]) -> None:
    own = {entry.name for entry in fields(kind)}
    for key in content:
        others = [name for name, other in KINDS.items() if key in {entry.name for entry in fields(other)}]
        if key not in own and others:
            raise ValueError(f"{key}: only tasks of kind {' or '.join(others)} have it, this one is {kind.kind}")


def _data(content: Any, prefix: str, data_dir: Path | None, world: World | Mapping[str, Any] | None) -> TaskData:
    if isinstance(content, dict) and content.get("world") is not None:
        content = {**content, "world": _world(content["world"], f"{prefix}world", world)}
    data: TaskData = _build(TaskData, content, prefix)
    if data_dir is None or data.path is None or Path(data.path).is_absolute():
        return data
    parts = Path(data.path).parts
    return dataclasses.replace(data, path=str(data_dir.joinpath(*parts[parts[0] == "data" :])))


def _world(spec: Any, key: str, given: World | Mapping[str, Any] | None) -> World:
    """The world of a task file, or the given one, which must be of the same class."""
    if isinstance(spec, World):  # the command line builds what stands in the keys of an inline task
        cls, init_args = type(spec), {entry.name: getattr(spec, entry.name) for entry in fields(spec)}  # type: ignore[arg-type]
    else:
        cls, init_args = _world_class(spec, key)
    if isinstance(given, World):
        if type(given) is not cls:
            raise ValueError(
                f"{key} = {cls.__name__}: the run's world is of {type(given).__name__}; expected the same class"
            )
        return given
    values = {**init_args, **(given or {})}
    known = [entry.name for entry in fields(cls)]  # type: ignore[arg-type]
    if unknown := [name for name in values if name not in known]:
        raise ValueError(f"{key}: {unknown[0]}: {cls.__name__} has no such option; expected one of {', '.join(known)}")
    try:
        return cls(**values)
    except TypeError as error:
        raise ValueError(f"{key}: init_args = {values}: {error}") from None


def _world_class(spec: Any, key: str) -> tuple[type[World], dict[str, Any]]:
    """Class and fields of a world that is written as ``class_path`` and ``init_args``, or as the path alone."""
    if isinstance(spec, str):
        spec = {"class_path": spec}
    if not isinstance(spec, dict) or not {"class_path"} <= spec.keys() <= {"class_path", "init_args"}:
        raise ValueError(f"{key} = {spec!r}: expected class_path and init_args")
    module, _, name = str(spec["class_path"]).rpartition(".")
    try:
        cls = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, World)):
        raise ValueError(f"{key}.class_path = {spec['class_path']}: expected the path of a World")
    return cls, spec.get("init_args") or {}


def _build(kind: Any, content: Any, prefix: str) -> Any:
    """An object of the class from a mapping, every key known and of the right type."""
    if isinstance(content, kind):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{prefix.rstrip('.')}: a {type(content).__name__}; expected a mapping")
    hints = get_type_hints(kind)
    known = (
        list(kind._fields) if kind is GenerationOptions else [e.name for e in fields(kind) if e.name not in IN_MEMORY]
    )
    for key in content:
        if key not in known:
            close = get_close_matches(str(key), known) or known
            raise ValueError(f"{prefix}{key}: no such key; expected one of {', '.join(close)}")
    return kind(**{key: _typed(value, hints[key], prefix + key) for key, value in content.items()})


def _typed(value: Any, hint: Any, key: str) -> Any:
    """The value as the annotation wants it: lists become tuples, whole numbers floats."""
    allowed = str(getattr(hint, "__name__", hint)) if isinstance(hint, type) else str(hint)
    if isinstance(value, list) and "tuple" in allowed:
        if "tuple[str" in allowed and not all(isinstance(entry, str) for entry in value):
            raise ValueError(f"{key} = {value}: expected a list of texts")
        return tuple(value)
    if hint is float and type(value) is int:
        return float(value)
    if isinstance(value, dict) and "dict[str, str]" in allowed:
        if not all(isinstance(part, str) for entry in value.items() for part in entry):
            raise ValueError(f"{key} = {value}: expected a mapping of texts to texts")
        return value
    if isinstance(value, (TaskData, GenerationOptions, World)):
        return value
    accepted = [part.strip().split("[")[0] for part in allowed.split("|")]
    name = "None" if value is None else type(value).__name__
    if name not in accepted or "dict" in accepted:
        raise ValueError(f"{key} = {value!r}: expected {allowed.replace('tuple', 'list').replace(', ...', '')}")
    return value
