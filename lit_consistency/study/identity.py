"""What the numbers of a cell depend on, as one hash: equal cells of several studies are one, changed ones are others.

- the complete configuration, less what only says where a run is written and how it is shown (``FREE``);
- the base: the hash of its folder, or the identity of the cell that makes it;
- the content of every file that the configuration names, also by way of a task's file;
- the code that computes weights and numbers: its syntax trees without docstrings, so that a comment changes nothing;
- the version of torch, the kind of device, the threads.
"""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

from lit_consistency.records.atomic import write_json
from lit_consistency.records.fingerprints import fingerprint_of, sha256_of_text, sha256_once
from lit_consistency.records.shipped import beside, shipped

FREE = (
    "allow_changes",
    "checkpoint.at_end",
    "checkpoint.every_n_minutes",
    "checkpoint.every_n_steps",
    "checkpoint.keep",
    "ckpt_path",
    "config",
    "data.init_args.cache_dir",
    "data.init_args.num_workers",
    "model.activation_checkpointing",
    "model.checkpoint_dir",  # the base counts by its content
    "forgetting.batch_tokens",
    "run",
    "throughput",
    "trainer.callbacks",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.logger",
    "weights_only",
)
"""Keys of ``fit`` that change no number of a cell."""
TASK_KEYS = ("tasks", "text", "probes.tasks", "generalization_gap.seen", "generalization_gap.held_out")
"""Options whose words may be names of tasks, besides those of ``forgetting``."""
ROOMS = (
    "callbacks",
    "data",
    "distributed",
    "inference",
    "methods",
    "metrics",
    "model",
    "module.py",
    "optimizers",
    "tasks",
)
ROOMS_OF = {"evaluate": (*ROOMS, "evaluation"), "analyze": (*ROOMS, "analysis")}
"""Kind of command -> the rooms that compute its numbers; of a training ``ROOMS``."""
LARGE = 1 << 28
"""Bytes above which a file counts by its size and time: a corpus is not read to plan a study."""
PACKAGE = Path(__file__).resolve().parent.parent
SUITE = PACKAGE / "tasks" / "suite"
"""The suite's rows and tasks, which go by the folder's name."""


@cache  # the keys of thousands of cells are the same few hundred
def is_free(key: str) -> bool:
    """Whether a dotted key of ``fit`` says nothing about the numbers."""
    return any(key == free or key.startswith(f"{free}.") for free in FREE)


# -------------------- code


def code_version(cache: Path | None = None, kind: str = "fit") -> str:
    """Hash (12 digits) of the syntax of the rooms that compute weights and numbers.

    Args:
        cache: file that remembers it for as long as no source file changes; parsing all of them takes a second.
        kind: of command.
    """
    files = [file for name in ROOMS_OF.get(kind, ROOMS) for file in _sources(PACKAGE / name)]
    cache = cache.with_name(f"{cache.stem}.{kind}{cache.suffix}") if cache and kind in ROOMS_OF else cache
    stamp = fingerprint_of([[str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files])
    if cache is not None and cache.is_file():
        known = json.loads(cache.read_text(encoding="utf-8"))
        if known.get("stamp") == stamp:
            return str(known["version"])
    code = fingerprint_of([[str(file.relative_to(PACKAGE)), _syntax(file)] for file in files])[:12]
    if cache is not None:
        write_json(cache, {"stamp": stamp, "version": code})
    return code


def _sources(path: Path) -> list[Path]:
    return [path] if path.is_file() else sorted(path.rglob("*.py"))


def _syntax(file: Path) -> str:
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant) and isinstance(first.value.value, str):
            node.body[0] = ast.Pass()  # type: ignore[attr-defined]
    return sha256_of_text(ast.dump(tree))


# -------------------- content of files


def contents(
    options: Mapping[str, Any], tasks: Path = Path("configs/evaluation"), data: Path = Path("data")
) -> dict[str, str]:
    """Hash of every file that a configuration names: data, rows, tokenizers, task files and what they name in turn.

    Args:
        options: dotted key -> value.
        tasks: where tasks are found by name.
        data: what a task's file calls ``data/``.
    """
    found: dict[str, str] = {}
    for key, value in options.items():
        if is_free(key):
            continue
        for text in _texts(value):
            name = text.partition("/")[0].partition(":")[0]
            task, of_tasks = shipped(tasks / f"{name}.yaml"), key in TASK_KEYS or key.startswith("forgetting.")
            watched = of_tasks and task.is_file()
            if of_tasks and name == SUITE.name:  # lies in the package, wherever that is installed
                found |= {f"{name}/{file.name}": _content(file) for file in sorted(SUITE.rglob("*.[jy]*"))}
            for path in _named_files(task if watched else Path(text)):
                _add(found, path, data)
    return dict(sorted(found.items()))


def _add(found: dict[str, str], path: Path, data: Path) -> None:
    if str(path) in found:
        return
    found[str(path)] = _content(path)
    if path.suffix in (".yaml", ".yml") and path.stat().st_size < 1 << 20:
        for text in _texts_of(path, path.stat().st_mtime_ns):
            for inner in _named_files(Path(text)) or _named_files(data / text.removeprefix("data/")):
                _add(found, inner, data)


@lru_cache(maxsize=256)
def _texts_of(path: Path, stamp: int) -> tuple[str, ...]:
    """Of a YAML file, as long as its time is the same: thousands of cells name the same few tasks."""
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    return tuple(_texts(beside(content, path.resolve().parent, Path.cwd())))


def _named_files(path: Path) -> list[Path]:
    # a short word may be the name of a folder here by chance; files are meant by paths
    text = str(path)
    if len(text) > 500 or text in (".", "..", "/", ""):
        return []
    try:
        if any(character in text for character in "*?["):
            return sorted(p for p in Path(path.anchor or ".").glob(text.lstrip("/")) if p.is_file())
        if path.is_file():
            return [path]
        return sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() and len(path.parts) > 1 else []
    except (OSError, ValueError):
        return []


def _content(path: Path) -> str:
    stat = path.stat()
    return f"{stat.st_size} bytes at {stat.st_mtime_ns}" if stat.st_size > LARGE else sha256_once(path)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield str(key)
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


# -------------------- cells


def numbers_of(options: Mapping[str, Any]) -> dict[str, Any]:
    """What of a complete configuration, by dotted keys, the numbers depend on.

    Options that are off (null, false, empty) are left out: all keys of a version of the code are there, so no two
    configurations become one by it, and an option that a later version adds, switched off, leaves cells as they are.
    """
    return {key: value for key, value in options.items() if not (is_free(key) or _is_off(value))}


def _is_off(value: Any) -> bool:
    return value is None or value is False or (isinstance(value, str | list | dict) and not value)


def identity(
    kind: str, options: Mapping[str, Any], base: str | None, files: Mapping[str, str], machine: Mapping[str, Any]
) -> str:
    """Hash (16 digits) of a cell; see the top of this file.

    Args:
        kind: of command.
        options: complete, by dotted keys.
        base: hash of a model folder, or name of a cell and what of it is taken; None for a new model.
        files: path -> hash of their contents.
        machine: code, versions, device, threads.
    """
    parts = {
        "kind": kind,
        "options": numbers_of(options),
        "base": base,
        "files": dict(files),
        "machine": dict(machine),
    }
    return fingerprint_of(parts, sort_keys=True)[:16]


def machine(code: str, threads: int, devices: float) -> dict[str, Any]:
    """What computes: version of our code and of torch, kind of device, threads."""
    return {"code": code, "torch": version("torch"), "device": "cuda" if devices else "cpu", "threads": threads}
