"""Files and folders that are there whole or not at all.

A run that dies while saving must leave what was there before readable. So everything is written beside its place, on
the same file system, under a name of its own (``unfinished``), brought to the disk, and only then renamed. What a kill
leaves behind has such a name, no reader takes it for a result, and ``remove_leftovers`` finds it.

Between the two renames that replace an existing folder a kill leaves the old one under a hidden name beside it: nothing
is lost, but it has to be renamed by hand.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKERS = ("model_config.yaml", "config.json", "lit_model.pth")
"""A folder with one of these is a model, and may be replaced as a whole."""
SUFFIX = ".unfinished"
"""Ends the name of everything that is being written; an ending, so that no pattern such as ``*.json`` matches it."""


# -------------------- names of what is not finished


def unfinished(path: Path, unique: str = "") -> Path:
    """Where ``path`` is written before it is moved there: hidden, in the same folder.

    Args:
        path: the file or folder.
        unique: tells several writers apart.
    """
    return path.with_name(f".{path.name}{'.' if unique else ''}{unique}{SUFFIX}")


def remove_leftovers(folder: Path, name: str = "*") -> None:
    """Remove what killed processes left unfinished; the caller is the only one that writes there.

    Args:
        folder: where they wrote.
        name: of what was to be written; by default of anything.
    """
    for path in [*folder.glob(f".{name}{SUFFIX}"), *folder.glob(f".{name}.*{SUFFIX}")]:
        with contextlib.suppress(OSError):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


# -------------------- files


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the name under which to write a file that becomes ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        yield temporary
        flush(temporary)
        publish(temporary, path)
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write or replace a text file in one step; its folder is made if need be."""
    with new_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, content: Any) -> None:
    """Write JSON in one step; what is no number becomes null."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


# -------------------- folders


@contextmanager
def new_folder(out_dir: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes the model at ``out_dir`` when the block ends without an error.

    Args:
        out_dir: where the folder shall stand; its parents are created.
        overwrite: replace a model that stands there.

    Raises:
        ValueError: something stands at ``out_dir`` that may not be replaced.
    """
    check_free(Path(out_dir), overwrite)
    with replaced_folder(Path(out_dir)) as folder:
        yield folder


@contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that takes the place of whatever stands at ``path``, and vanishes if the block fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:12]
    temporary = unfinished(path, unique)
    temporary.mkdir()  # two processes that write one folder must not write into one another's
    try:
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            flush(file)
        _replace(temporary, path, path.with_name(f".{path.name}.old-{unique}"))
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush(path.parent)


def check_free(out_dir: Path, overwrite: bool) -> None:
    """ValueError unless a new folder may stand at ``out_dir``, or the model there may be replaced."""
    if not out_dir.exists():
        return
    if not out_dir.is_dir():
        raise ValueError(f"out_dir = {out_dir}: expected a folder, found a file")
    if not any(out_dir.iterdir()):
        return
    if not overwrite:
        raise ValueError(f"out_dir = {out_dir}: the folder is not empty; expected a new one, or overwrite: true")
    if not any((out_dir / marker).is_file() for marker in MARKERS):
        raise ValueError(f"out_dir = {out_dir}: expected a model to overwrite, found none of {', '.join(MARKERS)}")


def _replace(temporary: Path, path: Path, aside: Path) -> None:
    """Move ``temporary`` to ``path``; what stood there is put back if that fails."""
    stood = path.exists()
    if stood:
        os.replace(path, aside)  # a folder that is not empty cannot be replaced in one step
    try:
        os.replace(temporary, path)
    except BaseException:
        if stood:
            os.replace(aside, path)
        raise
    if stood:
        shutil.rmtree(aside, ignore_errors=True)


# -------------------- the disk


def publish(temporary: Path, path: Path) -> None:
    """Move what is finished and flushed into place, and bring that to the disk."""
    os.replace(temporary, path)
    flush(path.parent)


def flush(path: Path) -> None:
    """Bring a file, or the entries of a folder, from the system's cache to the disk."""
    if path.is_dir() and os.name != "posix":
        return  # elsewhere a folder cannot be opened
    # Windows flushes only what is open for writing
    descriptor = os.open(path, os.O_RDONLY if os.name == "posix" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
