"""Configurations and bases that come with the package, found from any folder.

What stands beside the user goes first, so a copy that was changed is the one that counts. Then the clone from which
this package is run is asked, then what a wheel has installed.
"""

from __future__ import annotations

import sysconfig
from functools import cache
from pathlib import Path

FOLDERS = ("configs", "checkpoints/lit_consistency")
"""What comes with the package, by the names that it has in a clone."""


def shipped(path: Path | str) -> Path:
    """Where a file or folder stands.

    Args:
        path: relative to the working directory, as ``configs/quickstart.yaml``, or absolute.

    Returns:
        The path as it is, if something stands there or the package brings nothing of this name; else that of the
        package.
    """
    path = Path(path)
    ours = any(path.as_posix().startswith(f"{folder}/") or path.as_posix() == folder for folder in FOLDERS)
    if path.exists() or not ours:
        return path
    found = [root / path for root in _roots() if (root / path).exists()]
    return found[0] if found else path


@cache
def _roots() -> tuple[Path, ...]:
    """A clone, and where a wheel's data files go."""
    return Path(__file__).resolve().parents[2], Path(sysconfig.get_path("data")) / "share" / "lit_consistency"
