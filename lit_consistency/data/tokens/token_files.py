"""Tokens on disk: written once as a stream, then mapped into memory by every process.

A folder holds `tokens.bin` (uint16 or uint32), for SFT `supervised.bin` (one byte per token), `offsets.npy` (n + 1
document boundaries, int64) and `meta.json`, written last. It gives up compression and random writing: a token costs
two bytes (four from a vocabulary of 65,536 on), one more for SFT, and the page cache serves all ranks and workers of
a machine.
"""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1


class ShardWriter:
    """Appends documents to the files of a folder; who moves the folder into place brings it to the disk (cache.py).

    Args:
        folder: An existing, empty folder.
        vocab_size: One more than the largest token id; decides the width of a token.
        masked: Whether documents come with a mask of supervised tokens.
    """

    def __init__(self, folder: Path, vocab_size: int, masked: bool) -> None:
        self.folder = folder
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115 (closed by __exit__)
        self._supervised = open(folder / "supervised.bin", "wb") if masked else None  # noqa: SIM115
        self._lengths: list[int] = []
        self.n_tokens = 0

    def add(self, tokens: np.ndarray | list[int], supervised: np.ndarray | None = None) -> None:
        """Appends a document: token ids (T,), and its mask (T,) where the shard is masked."""
        self._tokens.write(np.asarray(tokens).astype(self.dtype).tobytes())
        if self._supervised is not None:
            assert supervised is not None
            self._supervised.write(np.asarray(supervised, dtype=np.uint8).tobytes())
        self._lengths.append(len(tokens))
        self.n_tokens += len(tokens)

    def finish(self, meta: dict[str, Any]) -> None:
        """Writes what is buffered, offsets and meta.json.

        Args:
            meta: JSON to keep beside the tokens; `fingerprint` is compared when the shard is opened.
        """
        offsets = np.zeros(len(self._lengths) + 1, dtype=np.int64)
        np.cumsum(self._lengths, out=offsets[1:])
        for stream in filter(None, (self._tokens, self._supervised)):
            stream.flush()
        with open(self.folder / "offsets.npy", "wb") as stream:
            np.save(stream, offsets)
        sizes = {file.name: file.stat().st_size for file in sorted(self.folder.iterdir())}
        counts = {"n_documents": len(self._lengths), "n_tokens": self.n_tokens}
        content = {"format": FORMAT, "dtype": self.dtype.name, "sizes": sizes, **counts, **meta}
        with open(self.folder / "meta.json", "wb") as stream:
            stream.write(json.dumps(content, indent=1).encode())

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tokens.close()
        if self._supervised is not None:
            self._supervised.close()


class Shard(NamedTuple):
    """Tokens of all documents, mapped into memory.

    Attributes:
        tokens: (n_tokens,) uint16 or uint32.
        supervised: (n_tokens,) bool, None where every token is learned.
        offsets: (n_documents + 1,) int64; document i is tokens[offsets[i] : offsets[i + 1]].
        meta: Contents of meta.json.
    """

    tokens: np.ndarray
    supervised: np.ndarray | None
    offsets: np.ndarray
    meta: dict[str, Any]


def open_shard(folder: Path, fingerprint: dict[str, Any]) -> Shard | None:
    """The shard in a folder, or None where it is absent, incomplete or made from something else.

    Args:
        folder: Where a `ShardWriter` has written.
        fingerprint: What the tokens must have been made from.
    """
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        wanted = json.loads(json.dumps(fingerprint))  # as it comes back from a file: tuples are lists
        whole = meta["format"] == FORMAT and meta["fingerprint"] == wanted
        whole = whole and all((folder / name).stat().st_size == size for name, size in meta["sizes"].items())
        if not whole:
            return None
        offsets = np.load(folder / "offsets.npy")
    except (OSError, ValueError, KeyError):
        return None
    if len(offsets) != meta["n_documents"] + 1 or offsets[-1] != meta["n_tokens"]:
        return None
    tokens = _map(folder / "tokens.bin", np.dtype(meta["dtype"]))
    masked = "supervised.bin" in meta["sizes"]
    return Shard(tokens, _map(folder / "supervised.bin", np.dtype(bool)) if masked else None, offsets, meta)


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    # an empty file cannot be mapped
    return np.memmap(file, dtype=dtype, mode="r") if file.stat().st_size else np.empty(0, dtype=dtype)
