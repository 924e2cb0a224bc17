"""Hashes of files too large to be read at every start: remembered, as git's index does, by what the file system says.

Files of up to ``READ_EACH_TIME`` bytes in all are read whenever they are asked for. Of more, one is read again only
when its size, its times or its inode are others than when it was hashed; the time of the last change of the inode
(``ctime``) is among them, which no program can set back. Given up: a bit that a disk turns by itself is not noticed in
a file that large. A file that was written less than two seconds ago is let rest first: on file systems with coarse
times a later change could look like none (git calls such entries racily clean).

Hashes stand in ``$XDG_CACHE_HOME/lit_consistency/hashes``, a file for each folder; who writes at once overwrites the
other, and what is lost is hashed again.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lit_consistency.records.atomic import write_json
from lit_consistency.records.fingerprints import sha256_of_text, sha256_once, stamp

READ_EACH_TIME = 1 << 30
"""Bytes, which take a second."""
COARSEST = 2.0
"""Seconds between two times that every usual file system tells apart; FAT has the coarsest."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/lit_consistency``, by default under ``~/.cache``.

    Source: https://specifications.freedesktop.org/basedir-spec/latest/
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lit_consistency"


def sha256_each(files: Sequence[Path]) -> list[str]:
    """SHA-256 of every file, as hexadecimal digits, without reading large ones that are known."""
    if sum(file.stat().st_size for file in files) <= READ_EACH_TIME:
        return [sha256_once(file) for file in files]
    of_folder: dict[Path, dict[str, str]] = {}
    for file in files:
        of_folder.setdefault(file.absolute().parent, {})[file.name] = ""
    for folder, names in of_folder.items():
        _hash_folder(folder, names)
    return [of_folder[file.absolute().parent][file.name] for file in files]


def _hash_folder(folder: Path, names: dict[str, str]) -> None:
    """Fill in the hashes of files of a folder, and remember what had to be read."""
    index = cache_folder() / "hashes" / f"{sha256_of_text(str(folder))[:24]}.json"
    known = _read(index)
    read = {}
    for name in names:
        file = folder / name
        before = stamp(file)
        entry = known.get(name)
        if entry is not None and entry[:-1] == before:
            names[name] = entry[-1]
            continue
        rests = _let_rest(file)
        names[name] = sha256_once(file)
        if rests and stamp(file) == before:  # else it was written meanwhile
            read[name] = [*before, names[name]]
    if read:
        with suppress(OSError):  # a cache that cannot be written costs time alone
            index.parent.mkdir(parents=True, exist_ok=True)
            write_json(index, {**_read(index), **read})


def _let_rest(file: Path) -> bool:
    """Wait until a later change would have another time; False where the clock of the file system is ahead of ours."""
    stat = file.stat()
    age = time.time() - max(stat.st_mtime, stat.st_ctime)
    if 0 <= age < COARSEST:
        time.sleep(COARSEST - age)
    return age >= 0


def _read(index: Path) -> dict[str, list]:
    """Name -> stamp and hash; a damaged index knows nothing."""
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {name: entry for name, entry in entries if isinstance(entry, list) and len(entry) == 5}
