"""Where paths are looked for: in the working directory, beside the file that names them, then in the package.

What stands beside the user goes first, so a copy that was changed is the one that counts. Of a file of YAML, the paths
that are not there are looked for beside the file and become absolute where they are found; all others stay as they are,
so that a file means the same as ever. Of the package, the clone from which it is run is asked, then what a wheel has
installed.
"""

from __future__ import annotations

import glob
import re
import sysconfig
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

FOLDERS = ("configs", "checkpoints/lit_consistency")
"""What comes with the package, by the names that it has in a clone."""
NOT_READ = (
    "cache_dir",
    "cells",
    "default_root_dir",
    "dirpath",
    "export_harness",
    "final_dir",
    "member",
    "name",
    "out_dir",
    "output",
    "root",
    "save_dir",
    "to",
)
"""Keys of what is written, of names, and of what lies within an archive: never looked for."""
FOLDER_KEYS = ("checkpoint_dir", "data_dir", "model", "path", "tokenizer_dir")
"""Keys of which a single word may be a folder; elsewhere it is a name, as that of a stage or a task."""
VARIANT = re.compile(r"(.+\.ya?ml)([:/].+)?")
"""Of several tasks in a file one is named behind it."""
ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
"""Of another machine; a single letter is a drive."""
STEP = re.compile(r"step-\d+")
"""Of a run, whose checkpoint of this step is found by its number."""


def shipped(path: Path | str) -> Path:
    """Where a file or folder stands.

    Args:
        path: relative to the working directory, as ``configs/quickstart.yaml``, or absolute.

    Returns:
        The path as it is, if something stands there or the package brings nothing of this name; else that of the
        package.
    """
    path = Path(path)
    if path.exists() or not _is_ours(path):
        return path
    found = [root / path for root in _roots() if (root / path).exists()]
    return found[0] if found else path


def on_this_machine(key: str, path: Path | str) -> Path:
    """A path that is no address; ``s3://bucket`` would be a folder called ``s3:``.

    Args:
        key: the option that the path was given for.
        path: what was given; a Path has lost one of the two slashes.

    Raises:
        ValueError: it is an address.
    """
    if ADDRESS.match(str(path)):
        raise ValueError(
            f"{key} = {path}: an address; expected a path on this machine: copy what lies elsewhere (`aws s3 sync`, "
            "`gcloud storage rsync`, `rclone copy`) or mount it; sets of the Hugging Face hub are read by HubDataset "
            "and HubRows"
        )
    return Path(path)


# -------------------- beside the file that names them

_nowhere: dict[str, list[Path]] = {}  # path -> folders of the files that name it, beside which it is not


def beside(content: Any, folder: Path, here: Path, key: str = "") -> Any:
    """What a file holds, with the full path of all that stands beside the file and not in the working directory.

    Args:
        content: of the file, nested.
        folder: of the file, absolute.
        here: the working directory, absolute.
        key: under which the content stands.
    """
    if isinstance(content, Mapping):
        return {name: beside(value, folder, here, str(name).rpartition(".")[2]) for name, value in content.items()}
    if isinstance(content, list):
        return [beside(value, folder, here, key) for value in content]
    if not isinstance(content, str) or not _may_be_path(content, key):
        return content
    variant = VARIANT.fullmatch(content)
    path, rest = (variant[1], variant[2] or "") if variant else (content, "")
    if folder == here or _is_there(here, path, key):
        return content
    if _is_there(folder, path, key):
        pattern = any(character in path for character in "*?[")
        return f"{Path(glob.escape(str(folder)) if pattern else folder) / path}{rest}"
    known = _nowhere.setdefault(str(Path(path)), [])
    known.extend([folder] if folder not in known else [])
    return content


def looked_in(path: Path | str) -> str:
    """The places where a path was looked for, as the end of a message; empty where only the working directory was."""
    places = [f"beside the file that names it, in {folder}" for folder in _nowhere.get(str(Path(path)), [])]
    places += [f"in the package, in {root}" for root in _roots() if _is_ours(Path(path))]
    return f"; looked for in the working directory, {', '.join(places)}" if places else ""


def _may_be_path(text: str, key: str) -> bool:
    if key in NOT_READ or key == "class_path" or len(text) > 500 or text.startswith(("~", "/")) or "\n" in text:
        return False
    return "/" in text or bool(Path(text).suffix) or key in FOLDER_KEYS


def _is_there(folder: Path, text: str, key: str) -> bool:
    path = folder / text
    try:
        if any(character in text for character in "*?["):
            return any(
                Path(match).is_file() for match in glob.iglob(f"{glob.escape(str(folder))}/{text}", recursive=True)
            )
        if STEP.fullmatch(path.name) and path.parent.is_dir():
            return True
        return path.exists() if "/" in text or key in FOLDER_KEYS else path.is_file()
    except (OSError, ValueError):  # a text that no file can be called by
        return False


# -------------------- in the package


def _is_ours(path: Path) -> bool:
    return any(path.as_posix().startswith(f"{folder}/") or path.as_posix() == folder for folder in FOLDERS)


@cache
def _roots() -> tuple[Path, ...]:
    """A clone, and where a wheel's data files go."""
    return Path(__file__).resolve().parents[2], Path(sysconfig.get_path("data")) / "share" / "lit_consistency"
