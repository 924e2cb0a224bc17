"""Checkpoints that survive a kill, a full disk and a flipped bit.

Lightning writes to a temporary place and moves: a kill or a full disk in the move destroys the previous good file, and
a flipped bit loads without a word. Here: a temporary file in the same folder, fsync, ``os.replace``, and last a
manifest with the size and SHA-256 of what was written. A checkpoint without a matching manifest does not count.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lit_consistency.model.folder import flush

MANIFEST = ".manifest.json"
TEMPORARY = ".tmp-"


class CheckpointError(ValueError):
    """A checkpoint that is not there, not complete or not what was written."""


class AtomicCheckpointIO(CheckpointIO):
    """Write a file whole or not at all; read it only when its hash is right, and only tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, move into place, then write the manifest.

        Raises:
            CheckpointError: naming the path and the cause (disk full, read-only, no permission); what was there stays.
        """
        path = Path(path)
        temporary = path.with_name(TEMPORARY + path.name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent)
            with open(temporary, "wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            manifest = describe(temporary)
            manifest_of(path).unlink(missing_ok=True)
            os.replace(temporary, path)
            flush(path.parent)
            write_atomically(manifest_of(path), json.dumps({path.name: manifest}))
        except (OSError, RuntimeError) as error:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise CheckpointError(f"could not save the checkpoint {path}: {error}") from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Verify, then read without running any code from the file.

        Raises:
            CheckpointError: when the file is missing, incomplete or altered.
        """
        verify(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the manifest first: a checkpoint that is half removed does not count."""
        path = Path(path)
        manifest_of(path).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def verify(path: Path) -> None:
    """CheckpointError unless the checkpoint is there and every file of it has the size and hash of the manifest."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not manifest_of(path).is_file():
        raise CheckpointError(f"{path}: no manifest {manifest_of(path).name}: the save was not finished")
    try:
        manifest = json.loads(manifest_of(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{manifest_of(path)}: not readable: {error}") from error
    for name, expected in manifest.items():
        file = path / name if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, expected {expected['bytes']}")
        if (found := sha256(file)) != expected["sha256"]:
            raise CheckpointError(f"{file}: sha256 {found}, expected {expected['sha256']}")


def newest_valid(folder: Path, among: list[Path] | None = None) -> tuple[Path | None, list[str]]:
    """The newest checkpoint of the folder, or of those given, that verifies, and why each newer one was skipped."""
    skipped = []
    for path in reversed(checkpoints(folder) if among is None else among):
        try:
            verify(path)
        except (CheckpointError, OSError) as error:
            skipped.append(str(error))
        else:
            return path, skipped
    return None, skipped


def checkpoints(folder: Path) -> list[Path]:
    """Checkpoints of the folder, oldest first; whether they are valid is not looked at."""
    found = [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(found, key=step_of)


def has_manifest(path: Path) -> bool:
    """Whether the save of a checkpoint was finished."""
    return manifest_of(path).is_file()


def step_of(path: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def write_manifest(path: Path) -> None:
    """Describe a checkpoint folder (distributed checkpoints) after all of its files are on disk."""
    files = {str(file.relative_to(path)): describe(file) for file in sorted(path.rglob("*")) if file.is_file()}
    write_atomically(manifest_of(path), json.dumps(files))


def write_atomically(path: Path, text: str) -> None:
    """Replace a small text file in one step; the new content is on the disk before the old is gone."""
    temporary = path.with_name(TEMPORARY + path.name)
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    flush(path.parent)


def describe(file: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of saves that were killed."""
    for file in folder.glob(TEMPORARY + "*"):
        with contextlib.suppress(OSError):
            shutil.rmtree(file) if file.is_dir() else file.unlink()


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def manifest_of(path: Path) -> Path:
    """Where the manifest of a checkpoint stands: beside it."""
    return path.with_name(path.name + MANIFEST)
