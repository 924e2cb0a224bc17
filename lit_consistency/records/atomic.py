"""Files and folders that are there whole or not at all.

A run that dies while saving must leave what was there before readable. So everything is written beside its place, on
the same file system, under a name of its own (``unfinished``), brought to the disk, and only then renamed. What a kill
leaves behind has such a name, no reader takes it for a result, and ``remove_leftovers`` finds it.

A folder that stands there is exchanged with the new one in one step, so there is no moment without either. Where a
system or file system cannot do that, it takes two renames, and a kill between them leaves the old folder under a hidden
name beside its place: ``remove_leftovers``, which every run calls for what it writes, puts it back and says so.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import math
import os
import shutil
import sys
import tempfile
import time
import uuid
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

MARKERS = ("model_config.yaml", "config.json", "lit_model.pth")
"""A folder with one of these is a model, and may be replaced as a whole."""
SUFFIX = ".unfinished"
"""Ends the name of everything that is being written; an ending, so that no pattern such as ``*.json`` matches it."""
OLD = ".old-"
"""In the hidden name of a folder that has made room for a new one."""
FULL = 1 << 26
"""Free bytes below which a writer that cannot say why it failed is taken to have filled the disk."""


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

    A folder that had made room for one that never came is put back, with a warning.

    Args:
        folder: where they wrote.
        name: of what was to be written; by default of anything.
    """
    for path in [*folder.glob(f".{name}{SUFFIX}"), *folder.glob(f".{name}.*{SUFFIX}")]:
        _remove(path)
    for aside in hidden_folders(folder, name):
        place = aside.with_name(aside.name[1:].rpartition(OLD)[0])
        if place.exists():
            _remove(aside)
        else:
            os.replace(aside, place)
            warnings.warn(f"{aside}: moved there by a process that was killed; put back to {place}", stacklevel=2)


def hidden_folders(folder: Path, name: str = "*") -> list[Path]:
    """Folders that had made room for new ones when their process was killed, the newest first."""
    asides = [path for path in folder.glob(f".{name}{OLD}*") if path.is_dir()]
    return sorted(asides, key=lambda path: path.stat().st_mtime, reverse=True)


def set_aside(path: Path, why: str) -> Path:
    """Rename what is damaged, so that it is in nobody's way and still there to be looked at.

    Args:
        path: file or folder.
        why: what is wrong with it, for the warning.

    Returns:
        Its new place.
    """
    aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}")
    os.replace(path, aside)
    warnings.warn(f"{path}: {why}; set aside as {aside.name}", stacklevel=2)
    return aside


def move_into(folder: Path, paths: Iterable[Path]) -> None:
    """Move files or folders of one file system, in this order, into a folder that is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in paths:
        os.replace(path, folder / path.name)


def _remove(path: Path) -> None:
    with contextlib.suppress(OSError):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


# -------------------- files


def give_usual_rights(path: Path) -> None:
    """Let a file be read by whom every new file is; safetensors 0.8 lets only its owner."""
    umask = os.umask(0)
    os.umask(umask)
    path.chmod(0o666 & ~umask)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """Yield the name under which to write a file that becomes ``path`` when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        with named_failure(path):
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


def json_line(value: Any) -> str:
    """JSON in one line; what is no number becomes null. Looking for such values takes longer than writing them."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        return json.dumps(plain(value), ensure_ascii=False)


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
        with named_failure(path):
            yield temporary
            for file in [*temporary.rglob("*"), temporary]:
                flush(file)
            _replace(temporary, path, path.with_name(f".{path.name}{OLD}{unique}"))
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
        raise ValueError(
            f"out_dir = {out_dir}: the folder is not empty; expected a new one, or --overwrite to replace its model"
        )
    if not any((out_dir / marker).is_file() for marker in MARKERS):
        raise ValueError(f"out_dir = {out_dir}: expected a model to overwrite, found none of {', '.join(MARKERS)}")


def _replace(temporary: Path, path: Path, aside: Path) -> None:
    """Move ``temporary`` to ``path``; what stood there takes its name, or is put back if that fails."""
    stood = path.exists()
    if stood and _exchange(temporary, path):
        return
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


def _exchange(a: Path, b: Path) -> bool:
    """Let two entries of a file system change their names in one step; False where that is not possible."""
    libc: Any = ctypes.CDLL(None) if sys.platform in ("linux", "darwin") else None
    names = os.fsencode(a), os.fsencode(b)
    if hasattr(libc, "renameat2"):
        # AT_FDCWD is -100 (linux/fcntl.h), RENAME_EXCHANGE is 2 (linux/fs.h)
        return libc.renameat2(-100, names[0], -100, names[1], 2) == 0
    if hasattr(libc, "renamex_np"):
        return libc.renamex_np(*names, 2) == 0  # RENAME_SWAP is 2 (macOS, sys/stdio.h)
    return False


# -------------------- the disk


@contextmanager
def named_failure(path: Path) -> Iterator[None]:
    """Let an error of writing name the path and the cause; torch and safetensors say neither of a full disk."""
    try:
        yield
    except OSError as error:
        of_disk = error.errno in (errno.ENOSPC, errno.EROFS, errno.EIO, getattr(errno, "EDQUOT", None))
        if error.errno is None or not (of_disk or error.filename is None):
            raise
        # of the disk: what cannot be written is ``path``, not the hidden file that happened to be the last straw
        raise OSError(error.errno, error.strerror, str(path)) from error
    except Exception as error:
        # of the writers of torch.save and of safetensors, neither of which raises an OSError
        of_writer = any(word in str(error) for word in ("inline_container", "PytorchStreamWriter", "I/O error"))
        if not of_writer:
            raise
        if shutil.disk_usage(path.parent).free < FULL:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error
        raise OSError(errno.EIO, f"could not be written ({error})", str(path)) from error


def unwritable(targets: Mapping[str, tuple[Path, int]]) -> str | None:
    """Why what is to be written at the end of a run cannot be; None if it can.

    Args:
        targets: option -> file or folder, which need not exist yet, and its size in bytes. What goes to one file system
            has to fit into it together.
    """
    needed: dict[int, int] = {}
    for option, (path, size) in targets.items():
        there = next(parent for parent in path.absolute().parents if parent.exists())
        try:
            with tempfile.TemporaryFile(dir=there):
                device, free = os.stat(there).st_dev, shutil.disk_usage(there).free
        except OSError as error:
            return f"{option}: {path}: cannot be written ({error.strerror or error}: {there})"
        needed[device] = needed.get(device, 0) + size
        if needed[device] > free:
            return (
                f"{option}: {path}: the end of the run needs {needed[device] / 1e9:,.2f} GB on {there}, where "
                f"{free / 1e9:,.2f} GB are free; make room, choose another place, or --checkpoint.at_end false"
            )
    return None


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
