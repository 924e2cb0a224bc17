"""Shards by the fingerprint of what they were made from: opened when they are there, made once when they are not.

The folder's name is a hash of the fingerprint, so a changed file, tokenizer or option leads elsewhere and nothing is
ever overwritten. A lock lets one process work while others wait; the folder appears by one rename, so what is there
was whole once; its hashes are compared when it is opened, by one process of a machine, and what is damaged is named and
made anew. It gives up cleaning: old shards stay until the user removes them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from filelock import FileLock

from lit_consistency.data.tokens.token_files import FORMAT, DamagedShard, Shard, open_shard
from lit_consistency.records.atomic import remove_leftovers, replaced_folder
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.records.known_hashes import cache_folder
from lit_consistency.records.processes import is_first_here


def default_cache_dir() -> Path:
    """`$XDG_CACHE_HOME/lit_consistency/tokens`, by default under `~/.cache`."""
    return cache_folder() / "tokens"


def digest(fingerprint: dict[str, Any]) -> str:
    """SHA-256 of a fingerprint and of the format of shards, independent of the order of keys."""
    return fingerprint_of({"format": FORMAT, "of": fingerprint}, sort_keys=True)


def folder_of(cache_dir: Path, fingerprint: dict[str, Any]) -> Path:
    """Where the shard of a fingerprint stands."""
    return cache_dir / digest(fingerprint)[:24]


def open_or_build(cache_dir: Path, fingerprint: dict[str, Any], build: Callable[[Path], None]) -> Shard:
    """The shard of a fingerprint; made first where it is absent or broken.

    Args:
        cache_dir: Folder of all shards; made if need be.
        fingerprint: What the tokens depend on, as JSON.
        build: Writes a shard into the empty folder it is given.

    Raises:
        ValueError, OSError: What `build` raised; nothing is left behind then.
    """
    folder = folder_of(cache_dir, fingerprint)
    verify = is_first_here()
    with suppress(DamagedShard):
        if (shard := open_shard(folder, fingerprint, verify)) is not None:
            return shard
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(cache_dir / f"{folder.name}.lock"):
        try:
            if (shard := open_shard(folder, fingerprint, verify)) is not None:
                return shard  # another process made it while this one waited
        except DamagedShard as error:
            warnings.warn(f"{error}; the tokens are made anew", stacklevel=2)
        remove_leftovers(cache_dir, folder.name)
        with replaced_folder(folder) as unfinished:  # what stands there is broken, else it would have opened
            build(unfinished)
    shard = open_shard(folder, fingerprint)
    assert shard is not None, f"{folder} was just written and does not open"
    return shard
