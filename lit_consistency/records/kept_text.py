"""Texts that are kept because making them takes time: found by a hash of all that they depend on, checked when read.

Any number of processes may keep the same text at once; a text that is damaged is as one that is not there.
"""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

from lit_consistency.records.atomic import write_text
from lit_consistency.records.fingerprints import sha256_of_text


def read_kept(file: Path) -> str | None:
    """The text of a file, if it is as it was written."""
    try:
        digest, _, text = file.read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return text if digest == sha256_of_text(text) else None


def keep(file: Path, text: str, most: int) -> None:
    """Write the text, and remove the oldest of its folder; where nothing can be written it is not kept.

    Args:
        file: ends in ``.txt``.
        text: what ``read_kept`` will give back.
        most: texts in the folder.
    """
    with suppress(OSError, ValueError):
        write_text(file, f"{sha256_of_text(text)}\n{text}")
    with suppress(OSError):  # another process may have removed one
        for old in sorted(file.parent.glob("*.txt"), key=os.path.getmtime)[:-most]:
            old.unlink(missing_ok=True)
