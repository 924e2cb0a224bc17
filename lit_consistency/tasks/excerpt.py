"""What of a large corpus's held-out documents is scored, kept on disk: else every start of a run reads all of them.

Of documents with ``max_bytes`` the beginnings of some are scored (``text.py``). Which ones, and how much of each, needs
the lengths of all, so the corpus is read twice, by the first process that asks; what it keeps is a few hundred
kilobytes. Questions, their names and their numbers are those of the documents themselves.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from lit_consistency.data.sources.documents import Source
from lit_consistency.records.atomic import write_json
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.tasks.text import even_shares

READ_AT_EACH_START = 1 << 28
"""Bytes of text, trained on and held out, which take some seconds."""


class Excerpt(Source):
    """The documents of a source that ``TextTask`` would score within ``max_bytes``, cut as it cuts them.

    Args:
        source: The documents.
        max_bytes: Of all of them together.
        cache_dir: Folder of the data's cache.
    """

    def __init__(self, source: Source, max_bytes: int, cache_dir: Path) -> None:
        self.source = source
        self.max_bytes = max_bytes
        self.cache_dir = cache_dir

    @property
    def shown_as(self) -> str:
        """As the documents are named."""
        return self.source.shown_as

    def documents(self) -> Iterator[str]:
        """Yields what is kept of the documents that are."""
        return (text for _, text in self.numbered())

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yields them with the numbers that they have among all documents."""
        of = {"excerpt": self.max_bytes, "source": self.fingerprint()}
        file = self.cache_dir / "excerpts" / f"{fingerprint_of(of, sort_keys=True)[:24]}.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):
            if not file.is_file():
                write_json(file, self._taken())
        return ((int(number), str(text)) for number, text in json.loads(file.read_text(encoding="utf-8")))

    def fingerprint(self) -> dict[str, Any]:
        """That of the documents, of which these are a function."""
        return self.source.fingerprint()

    def _taken(self) -> list[tuple[int, str]]:
        lengths = np.fromiter((len(text.encode()) for text in self.source.documents()), dtype=np.int64)
        shares = even_shares(lengths.tolist(), self.max_bytes)
        documents = zip(self.source.numbered(), shares, strict=True)
        cut = ((number, text.encode()[:share].decode(errors="ignore")) for (number, text), share in documents if share)
        return [(number, text) for number, text in cut if text]
