"""Paths inside a folder that a class describes."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol


class Folder(Protocol):
    """What has a path."""

    path: Path


class Inside:
    """A path inside a folder, made when it is asked for: a study makes thousands of these objects for a file each.

    Args:
        name: of the file or folder.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: Folder, kind: type | None = None) -> Path:
        return folder.path / self.name
