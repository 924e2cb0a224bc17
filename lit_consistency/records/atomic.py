"""Folders that are there whole or not at all.

A run that dies while saving must leave the previous model readable. So: write into a sibling folder on the same file
system, flush it to the disk, and only then rename. Between the two renames that replace an existing folder a kill
leaves the old one under a hidden name beside it: nothing is lost, but it has to be renamed by hand.
"""

from __future__ import annotations

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
TEMPORARY = ".tmp-"
"""Beginning of the name of a file that is being written."""


@contextmanager
def new_folder(out_dir: Path, overwrite: bool) -> Iterator[Path]:
    """Yield an empty folder that becomes ``out_dir`` when the block ends without an error, and vanishes otherwise.

    Args:
        out_dir: where the folder shall stand; its parents are created.
        overwrite: replace a model that stands there.

    Raises:
        ValueError: something stands at ``out_dir`` that may not be replaced.
    """
    out_dir = Path(out_dir)
    check_free(out_dir, overwrite)
    out_dir.parent.mkdir(parents=True, exist_ok=True)
    unique = uuid.uuid4().hex[:12]
    temporary = out_dir.parent / f".{out_dir.name}.new-{unique}"
    temporary.mkdir()
    try:
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            flush(path)
        _replace(temporary, out_dir, out_dir.parent / f".{out_dir.name}.old-{unique}")
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    flush(out_dir.parent)


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


def _replace(temporary: Path, out_dir: Path, aside: Path) -> None:
    """Move ``temporary`` to ``out_dir``; what stood there is put back if that fails."""
    stood = out_dir.exists()
    if stood:
        os.replace(out_dir, aside)
    try:
        os.replace(temporary, out_dir)
    except BaseException:
        if stood:
            os.replace(aside, out_dir)
        raise
    if stood:
        shutil.rmtree(aside, ignore_errors=True)


def flush(path: Path) -> None:
    """Bring a file, or the entries of a folder, from the system's cache to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all; what is no number becomes null."""
    write_text(path, json.dumps(plain(content), indent=2, ensure_ascii=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a file beside its place, bring it to the disk, and move it there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    flush(unfinished)
    os.replace(unfinished, path)


def plain(value: Any) -> Any:
    """JSON has no NaN and no infinity."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step; the new content is on the disk before the old is gone."""
    temporary = path.with_name(TEMPORARY + path.name)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush(path.parent)
