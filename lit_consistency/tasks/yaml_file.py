"""Tasks read from YAML. A file holds one task, or several alike: ``variants`` maps a name to the keys that differ.

In a file with variants ``$variant`` stands for the variant's name anywhere in a text, and the task is called
``NAME_VARIANT``. Paths of data are relative to the working folder, or to ``data_dir`` where one is given.
"""

from __future__ import annotations

from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_type_hints

import yaml

from lit_consistency.inference.sampling import GenerationOptions
from lit_consistency.tasks.definition import DEFAULT_METRICS, Task, TaskData

FOLDER = Path("configs/evaluation")
"""Where a task that is called by its name is looked for."""


def load_tasks(name: str, data_dir: Path | None = None) -> list[Task]:
    """The tasks of a file.

    Args:
        name: a YAML file, or the name of one in ``configs/evaluation``, as ``piqa`` or ``hub/mnli``; of a file with
            variants, ``NAME:VARIANT`` is one of them.
        data_dir: takes the place of the first folder, ``data/``, of every path in the file.

    Raises:
        FileNotFoundError: there is no such file; names those that are close.
        ValueError: names the file, the key and what is allowed.
    """
    file, variant = _split(name)
    tasks = _read(_find(file), data_dir)
    if variant is None:
        return list(tasks.values())
    if variant not in tasks:
        raise ValueError(f"tasks: {name!r}: {file} has no {variant!r}; expected one of {', '.join(tasks)}")
    return [tasks[variant]]


def load_task(name: str, data_dir: Path | None = None) -> Task:
    """The one task of that name; ValueError, with one that there is, where the file holds several."""
    tasks = load_tasks(name, data_dir)
    if len(tasks) > 1:
        first = next(iter(_read(_find(name), data_dir)))
        raise ValueError(f"task = {name!r}: a file of {len(tasks)} tasks; expected one of them, as {name}:{first}")
    return tasks[0]


def _split(name: str) -> tuple[str, str | None]:
    """File and variant; a colon in the path of a file is none that parts them."""
    if ":" not in name or Path(name).is_file():
        return name, None
    file, _, variant = name.rpartition(":")
    return file, variant


def _read(path: Path, data_dir: Path | None) -> dict[str, Task]:
    """The tasks of a file by the names of their variants; a single one has the file's."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not YAML ({error})") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a {type(content).__name__}; expected a mapping of keys")
    variants = content.pop("variants", None)
    content.setdefault("name", path.stem)
    if variants is None:
        return {path.stem: _task(content, path, data_dir)}
    if not isinstance(variants, dict) or not all(isinstance(keys or {}, dict) for keys in variants.values()):
        raise ValueError(f"{path}: variants: expected a mapping of names to the keys that differ")
    found = {}
    for variant, keys in variants.items():
        task = _fill({**content, **(keys or {})}, str(variant))
        found[str(variant)] = _task({**task, "name": f"{content['name']}_{variant}"}, path, data_dir)
    return found


def _find(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise FileNotFoundError(f"tasks: {name}: no such file")
        return path
    known = sorted(file.relative_to(FOLDER).with_suffix("").as_posix() for file in FOLDER.rglob("*.yaml"))
    if name not in known:
        close = get_close_matches(name, known) or known
        expected = f"one of {', '.join(close)}" if close else "a YAML file"
        raise FileNotFoundError(f"tasks: {name!r}: there is no {FOLDER}/{name}.yaml; expected {expected}")
    return FOLDER / f"{name}.yaml"


def _fill(value: Any, variant: str) -> Any:
    if isinstance(value, str):
        return value.replace("$variant", variant)
    if isinstance(value, dict):
        return {key: _fill(entry, variant) for key, entry in value.items()}
    return [_fill(entry, variant) for entry in value] if isinstance(value, list) else value


def _task(content: dict[str, Any], path: Path, data_dir: Path | None) -> Task:
    for key in ("kind", "data"):
        if key not in content:
            raise ValueError(f"{path}: no key {key!r}; a task needs it")
    single = isinstance(content.get("choices"), list) and "gold" not in content and content["kind"] == "choice"
    default = DEFAULT_METRICS.get(str(content["kind"]), ())
    content.setdefault("metrics", ["exact", "nats_per_token"] if single else list(default))
    parts = {"data": TaskData, "few_shot": TaskData, "generation": GenerationOptions}
    try:
        for key, kind in parts.items():
            if content.get(key) is not None:
                content[key] = _build(kind, content[key], f"{key}.")
        task: Task = _build(Task, content, "")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if data_dir is None:
        return task
    few_shot = task.few_shot and _moved(task.few_shot, data_dir)
    return replace(task, data=_moved(task.data, data_dir), few_shot=few_shot)


def _moved(data: TaskData, data_dir: Path) -> TaskData:
    if data.path is None or Path(data.path).is_absolute():
        return data
    parts = Path(data.path).parts
    return replace(data, path=str(data_dir.joinpath(*parts[parts[0] == "data" :])))


def _build(kind: Any, content: Any, prefix: str) -> Any:
    """An object of the class from a mapping, every key known and of the right type."""
    if isinstance(content, kind):
        return content
    if not isinstance(content, dict):
        raise ValueError(f"{prefix.rstrip('.')}: a {type(content).__name__}; expected a mapping")
    hints = get_type_hints(kind)
    known = list(kind._fields) if kind is GenerationOptions else [entry.name for entry in fields(kind)]
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
    if isinstance(value, (TaskData, GenerationOptions)):
        return value
    accepted = [part.strip().split("[")[0] for part in allowed.split("|")]
    name = "None" if value is None else type(value).__name__
    if name not in accepted or "dict" in accepted:
        raise ValueError(f"{key} = {value!r}: expected {allowed.replace('tuple', 'list').replace(', ...', '')}")
    return value
