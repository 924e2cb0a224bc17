"""Hashes that tell whether two things are the same: of a file, of what a number depends on; seeds from names."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(stream)


def _digest(stream: Any) -> str:
    digest = hashlib.sha256()  # Python 3.10 has no file_digest
    while block := stream.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def fingerprint_of(parts: Any) -> str:
    """sha256 of the JSON of what a result depends on; the order counts, as that of a task's fields does."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def seed_of(*parts: object) -> int:
    """A seed that is the same in every process and on every machine."""
    return int.from_bytes(hashlib.sha256("\0".join(map(str, parts)).encode()).digest()[:8], "big")
