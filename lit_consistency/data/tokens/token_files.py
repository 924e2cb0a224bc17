"""Tokens on disk: written once as a stream, then mapped into memory by every process.

A folder holds `tokens.bin` (uint16 or uint32), for SFT `supervised.bin` (one byte per token), `offsets.npy` (n + 1
document boundaries, int64) and `meta.json`, written last, with the SHA-256 of the others. It gives up compression and
random writing: a token costs two bytes (four from a vocabulary of 65,536 on), one more for SFT, and the page cache
serves all ranks and workers of a machine.
"""

from __future__ import annotations

import json
from array import array
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.records.fingerprints import sha256
from lit_consistency.records.known_hashes import sha256_each

FORMAT = 2
"""2: with hashes."""


class DamagedShard(ValueError):
    """A shard whose files are not those that were written."""


class ShardWriter:
    """Appends documents to the files of a folder; who moves the folder into place brings it to the disk (cache.py).

    Args:
        folder: An existing, empty folder.
        vocab_size: One more than the largest token id; decides the width of a token.
        masked: Whether documents come with a mask of supervised tokens.
    """

    def __init__(self, folder: Path, vocab_size: int, masked: bool) -> None:
        self.folder = folder
        self.vocab_size = vocab_size
        self.dtype = np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)
        self._tokens = open(folder / "tokens.bin", "wb")  # noqa: SIM115 (closed by __exit__)
        self._supervised = open(folder / "supervised.bin", "wb") if masked else None  # noqa: SIM115
        self._lengths = array("q")  # eight bytes a document
        self.n_tokens = 0

    def add(self, tokens: np.ndarray | list[int], supervised: np.ndarray | None = None) -> None:
        """Appends a document: token ids (T,), and its mask (T,) where the shard is masked.

        Raises:
            ValueError: An id is not in the vocabulary.
        """
        ids = np.asarray(tokens, dtype=np.int64)
        if len(ids) and not 0 <= ids.min() <= ids.max() < self.vocab_size:
            raise ValueError(
                f"document {len(self._lengths)}: token ids {ids.min()} to {ids.max()}: expected 0 to "
                f"{self.vocab_size - 1}, those of the tokenizer"
            )
        self._tokens.write(ids.astype(self.dtype).tobytes())
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
        np.cumsum(np.asarray(self._lengths, dtype=np.int64), out=offsets[1:])
        for stream in filter(None, (self._tokens, self._supervised)):
            stream.flush()
        with open(self.folder / "offsets.npy", "wb") as stream:
            np.save(stream, offsets)
        files = sorted(self.folder.iterdir())
        sizes = {file.name: file.stat().st_size for file in files}
        hashes = {file.name: sha256(file) for file in files}
        counts = {"n_documents": len(self._lengths), "n_tokens": self.n_tokens}
        content = {"format": FORMAT, "dtype": self.dtype.name, "sizes": sizes, "sha256": hashes, **counts, **meta}
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


def open_shard(folder: Path, fingerprint: dict[str, Any], verify: bool = True) -> Shard | None:
    """The shard in a folder, or None where there is none, or one made from something else.

    Args:
        folder: Where a `ShardWriter` has written.
        fingerprint: What the tokens must have been made from.
        verify: Whether to compare the hashes of its files, at a second or two a gigabyte; of a larger shard, only when
            the file system says that something has changed (``records/known_hashes.py``).

    Raises:
        DamagedShard: The files are not those that were written.
    """
    if not folder.is_dir():
        return None
    try:
        meta = json.loads((folder / "meta.json").read_bytes())
        wanted = json.loads(json.dumps(fingerprint))  # as it comes back from a file: tuples are lists
        if meta["format"] != FORMAT or meta["fingerprint"] != wanted:
            return None
        files = {folder / name: name for name in meta["sizes"]}
        for file, name in files.items():
            _compare(file, "bytes", file.stat().st_size, meta["sizes"][name])
        hashes = sha256_each(list(files)) if verify else [meta["sha256"][name] for name in files.values()]
        for (file, name), digest in zip(files.items(), hashes, strict=True):
            _compare(file, "sha256", digest, meta["sha256"][name])
        # mapped: of 50 million documents they are 400 MB for each rank and worker
        offsets = np.asarray(np.load(folder / "offsets.npy", mmap_mode="r"))
        dtype = np.dtype(meta["dtype"])
        _compare(folder / "meta.json", "documents", len(offsets) - 1, meta["n_documents"])
        _compare(folder / "meta.json", "tokens", int(offsets[-1]), meta["n_tokens"])
        _compare(folder / "tokens.bin", "bytes", meta["sizes"]["tokens.bin"], meta["n_tokens"] * dtype.itemsize)
        tokens = _map(folder / "tokens.bin", dtype)
        masked = "supervised.bin" in meta["sizes"]
        return Shard(tokens, _map(folder / "supervised.bin", np.dtype(bool)) if masked else None, offsets, meta)
    except DamagedShard:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedShard(f"{folder}: cannot be read ({error!r})") from error


def _compare(file: Path, what: str, value: object, expected: object) -> None:
    if value != expected:
        raise DamagedShard(f"{file}: damaged: {what} {value}, expected {expected}")


def _map(file: Path, dtype: np.dtype) -> np.ndarray:
    # an empty file cannot be mapped; as a plain array, since every slice of a memmap asks whose memory it is
    return np.asarray(np.memmap(file, dtype=dtype, mode="r")) if file.stat().st_size else np.empty(0, dtype=dtype)
