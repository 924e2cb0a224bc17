"""Checkpoints that survive a kill, a full disk and a flipped bit.

Lightning writes to a temporary place and moves: a kill or a full disk in the move destroys the previous good file, and
a flipped bit loads without a word. Here: a file beside it, fsync, a rename (records/atomic.py), and last a manifest
with the size and SHA-256 of what was written. A checkpoint without a matching manifest does not count.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import CheckpointIO

from lit_consistency.checkpointing.manifest import CheckpointError, describe, manifest_of, verify
from lit_consistency.checkpointing.sharded import read_folder, read_meta
from lit_consistency.records.atomic import flush, new_file, remove_leftovers, write_text


class AtomicCheckpointIO(CheckpointIO):
    """Write a file whole or not at all; read it only when its hash is right, and only tensors and plain values."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any | None = None) -> None:
        """Write, flush to the disk, move into place, then write the manifest.

        Raises:
            CheckpointError: naming the path and the cause (disk full, read-only, no permission); what was there stays.
        """
        path = Path(path)
        try:
            remove_leftovers(path.parent)
            with new_file(path) as temporary:
                with open(temporary, "wb") as file:
                    torch.save(checkpoint, file)
                flush(temporary)
                manifest = describe(temporary)
                # the file that stands there counts until the very moment it is replaced
                manifest_of(path).unlink(missing_ok=True)
            write_text(manifest_of(path), json.dumps({path.name: manifest}))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(f"could not save the checkpoint {path}: {error}") from error

    def load_checkpoint(self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None) -> dict[str, Any]:
        """Verify, then read without running any code from the file.

        Raises:
            CheckpointError: when the file is missing, incomplete or altered.
        """
        verify(Path(path))
        if Path(path).is_dir():  # written by a sharded run
            return read_folder(Path(path))
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: Any) -> None:
        """Remove the manifest first: a checkpoint that is half removed does not count."""
        path = Path(path)
        manifest_of(path).unlink(missing_ok=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


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
    named = [path for path in folder.glob("step-*.ckpt") if path.stem.removeprefix("step-").isdigit()]
    return sorted(named, key=step_of)


def step_of(path: Path) -> int:
    """The optimizer step in a checkpoint's name."""
    return int(path.stem.removeprefix("step-"))


def named_checkpoint(path: Path) -> Path:
    """The checkpoint that a path names: itself, or that of the step where it ends in ``checkpoints/step-100``."""
    step = path.name.removeprefix("step-")
    if path.exists() or path.name == step or not step.isdigit():
        return path
    return path.with_name(f"step-{int(step):08d}.ckpt")


def config_of(path: Path) -> str:
    """The configuration that made a checkpoint, as YAML."""
    if path.is_dir():
        return read_meta(path)["config"]
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)["config"]
