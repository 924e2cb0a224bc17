"""What tells that a checkpoint is whole: beside it a manifest with the size and SHA-256 of every file of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from lit_consistency.records.atomic import write_text
from lit_consistency.records.fingerprints import sha256

MANIFEST = ".manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is not there, not complete or not what was written."""


def verify(path: Path) -> None:
    """CheckpointError unless the checkpoint is there and every file of it has the size and hash of the manifest."""
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if not manifest_of(path).is_file():
        raise CheckpointError(f"{path}: no manifest {manifest_of(path).name}: the save was not finished")
    manifest = _read(manifest_of(path))
    files = {str(file.relative_to(path)): file for file in path.rglob("*") if file.is_file()} if path.is_dir() else {}
    # a manifest vouches for what it names, and for nothing else that would be read
    if unnamed := sorted((files.keys() or {path.name}) - manifest.keys()):
        raise CheckpointError(f"{path}: {manifest_of(path).name} does not vouch for {unnamed[0]}")
    for name, expected in manifest.items():
        file = path / name if path.is_dir() else path
        if not file.is_file():
            raise CheckpointError(f"{file}: missing")
        if file.stat().st_size != expected["bytes"]:
            raise CheckpointError(f"{file}: {file.stat().st_size} bytes, expected {expected['bytes']}")
        if (digest := sha256(file)) != expected["sha256"]:
            raise CheckpointError(f"{file}: sha256 {digest}, expected {expected['sha256']}")


def _read(file: Path) -> dict[str, dict[str, Any]]:
    try:
        manifest = json.loads(file.read_text(encoding="utf-8"))
        if not all({"bytes", "sha256"} <= entry.keys() for entry in manifest.values()):
            raise ValueError("expected bytes and sha256 of every file")
    except (ValueError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file}: damaged: {error}") from error
    return manifest


def has_manifest(path: Path) -> bool:
    """Whether the save of a checkpoint was finished."""
    return manifest_of(path).is_file()


def write_manifest(path: Path) -> None:
    """Describe a checkpoint folder (distributed checkpoints) after all of its files are on disk."""
    files = {str(file.relative_to(path)): describe(file) for file in sorted(path.rglob("*")) if file.is_file()}
    write_text(manifest_of(path), json.dumps(files))


def describe(file: Path) -> dict[str, Any]:
    """Size and hash of a file."""
    return {"bytes": file.stat().st_size, "sha256": sha256(file)}


def manifest_of(path: Path) -> Path:
    """The manifest of a checkpoint stands beside it."""
    return path.with_name(path.name + MANIFEST)
