"""Hashes that tell whether two things are the same: of a file, of what a number depends on; seeds from names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any


def sha256(file: Path) -> str:
    """SHA-256 of a file's content, as hexadecimal digits."""
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while block := stream.read(1 << 20):  # hashlib.file_digest does the same from Python 3.11 on
            digest.update(block)
    return digest.hexdigest()


def sha256_once(file: Path) -> str:
    """As ``sha256``; read once a process as long as the file keeps its size and times."""
    return _sha256_at(str(file), *stamp(file))


def stamp(file: Path) -> list[int]:
    """What the file system says of a file's content: size, times of its last change and of that of its inode, inode."""
    stat = file.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]


@lru_cache(maxsize=4096)
def _sha256_at(path: str, *stamp: int) -> str:
    return sha256(Path(path))


def sha256_of_text(text: str) -> str:
    """SHA-256 of a text in UTF-8; half a character, which JSON can spell, counts too."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def fingerprint_of(parts: Any, sort_keys: bool = False) -> str:
    """SHA-256 of the JSON of what a result depends on.

    Args:
        parts: anything; what is no JSON goes by its text.
        sort_keys: whether the order of keys is of no account; that of a task's fields is.
    """
    return sha256_of_text(json.dumps(parts, default=str, sort_keys=sort_keys))


PACKAGE = Path(__file__).resolve().parents[1]


def package_sources() -> dict[str, str]:
    """Path within this package -> SHA-256, of every source file."""
    return {str(file.relative_to(PACKAGE)): sha256_once(file) for file in sorted(PACKAGE.rglob("*.py"))}


def sources_written_at() -> float:
    """When the youngest of them was written, in seconds since 1970."""
    return max(file.stat().st_mtime for file in PACKAGE.rglob("*.py"))


def sha256_of_parts(parts: Iterable[bytes | memoryview]) -> str:
    """SHA-256 of some bytes, each with its length, so that it tells where they were divided."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(f"{memoryview(part).nbytes}:".encode())
        digest.update(part)
    return digest.hexdigest()


def seed_of(*parts: object) -> int:
    """A seed below 2^64 that is the same in every process and on every machine."""
    return int(sha256_of_text("\0".join(map(str, parts)))[:16], 16)
