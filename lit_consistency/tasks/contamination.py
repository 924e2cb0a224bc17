"""Evaluation rows that stand in the training data: a run of words that both share.

A row counts as found where any 13 consecutive words of its question and answer stand in one training document, or, for
a row of 5 to 12 words, all of them; shorter rows are not looked for. Words are compared in lower case and without
punctuation (13 words: Brown et al., arXiv 2005.14165, appendix C). Hashes of 64 bits stand for the words; the memory
grows with the evaluation set, not with the training data. Given up: paraphrases and translations; a text that was
changed in every twelfth word is not found.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lit_consistency.data.sources.documents import TextFiles
from lit_consistency.data.sources.files import PACKED, find_files, fingerprint_files, parse_json, read_text
from lit_consistency.data.sources.rows import ENDINGS, READERS
from lit_consistency.records.extras import require

N_WORDS = 13
LEAST_WORDS = 5
BATCH = 1 << 18
MOST_WORDS = 1 << 20
"""Hashes kept in memory, about 100 bytes each."""
MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 over the golden ratio, odd: Knuth, TAOCP 3, 6.4
SUFFIXES = (*TextFiles.suffixes, *ENDINGS)


class Overlap:
    """Finds texts in documents.

    Args:
        texts: of the evaluation rows.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        self.n_texts = len(texts)
        hashes: dict[int, list[np.ndarray]] = {}
        owners: dict[int, list[np.ndarray]] = {}
        for index, text in enumerate(texts):
            words = _words(text)
            n = min(len(words), N_WORDS)
            if n >= LEAST_WORDS:
                hashes.setdefault(n, []).append(_runs(words, n))
                owners.setdefault(n, []).append(np.full(len(words) - n + 1, index))
        self._grams: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for n in hashes:
            grams, order = np.concatenate(hashes[n]), np.concatenate(owners[n])
            by_hash = np.argsort(grams, kind="stable")
            self._grams[n] = (grams[by_hash], order[by_hash])

    def found_in(self, documents: Iterable[str]) -> list[int]:
        """Indices of the texts that stand in the documents, sorted."""
        hit = np.zeros(self.n_texts, dtype=bool)
        for words in _batches(documents):
            for n, (hashes, owners) in self._grams.items():
                if len(words) < n:
                    continue
                runs = _runs(words, n)
                # of the evaluation set's sorted hashes, those that a run of the training data equals
                place = np.minimum(np.searchsorted(hashes, runs), len(hashes) - 1)
                there = np.unique(runs[hashes[place] == runs])
                for start, stop in zip(
                    np.searchsorted(hashes, there), np.searchsorted(hashes, there, side="right"), strict=True
                ):
                    hit[owners[start:stop]] = True
        return np.flatnonzero(hit).tolist()


def training_documents(path: str) -> Iterator[str]:
    """The texts of training data: text files, or rows of all that ``RowFiles`` reads, with all their texts joined.

    Raises:
        ValueError: there is no text in them, or a file cannot be read.
    """
    has_text = False
    for file in find_files("train_data", path, SUFFIXES):
        is_text = file.name.endswith(TextFiles.suffixes)
        texts = [read_text(file)] if is_text else ("\n".join(_texts(row)) for row in _rows(file))
        for text in texts:
            has_text = has_text or bool(text.strip())
            yield text
    if not has_text:
        raise ValueError(f"train_data = {path}: holds no text; expected the data that the model was trained on")


def training_fingerprint(path: str) -> Any:
    """Name, size and hash of the files of training data."""
    return fingerprint_files(find_files("train_data", path, SUFFIXES))


def _rows(file: Path) -> Iterator[Any]:
    if file.suffix == ".parquet":
        require("pyarrow", "train_data in .parquet files")
    kind = (file.with_suffix("") if file.suffix in PACKED else file).suffix
    if kind in READERS and kind != ".json":
        yield from (row for _, row in READERS[kind](file))
    else:  # a list, or an object with lists
        content = parse_json(read_text(file), str(file))
        lists = [v for v in content.values() if isinstance(v, list)] if isinstance(content, dict) else []
        for rows in lists or [content if isinstance(content, list) else [content]]:
            yield from rows


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, (list, dict)):
        for entry in value.values() if isinstance(value, dict) else value:
            yield from _texts(entry)


def _batches(documents: Iterable[str]) -> Iterator[np.ndarray]:
    """Hashed words of many documents in a row, a hash that no word has between any two of them."""
    parts: list[np.ndarray] = []
    n_words = 0
    for number, document in enumerate(documents):
        parts += [_words(document), np.asarray([HASHES[f" {number}"]], dtype=np.uint64)]
        n_words += len(parts[-2])
        if n_words >= BATCH:
            yield np.concatenate(parts)
            parts, n_words = [], 0
    if parts:
        yield np.concatenate(parts)


class _Hashes(dict[str, int]):
    """64-bit hashes of words, each computed once; a lookup costs no call of Python."""

    def __missing__(self, word: str) -> int:
        if len(self) >= MOST_WORDS:
            self.clear()
        self[word] = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=8).digest(), "big")
        return self[word]


HASHES = _Hashes()


def _words(text: str) -> np.ndarray:
    words = re.findall(r"\w+", text.casefold())
    return np.fromiter(map(HASHES.__getitem__, words), dtype=np.uint64, count=len(words))


def _runs(words: np.ndarray, n: int) -> np.ndarray:
    """A hash of every run of n words: sum of word times multiplier to the power of its place, modulo 2^64."""
    hashes = np.zeros(len(words) - n + 1, dtype=np.uint64)
    factor = np.uint64(1)
    with np.errstate(over="ignore"):
        for place in range(n):
            hashes += words[place : len(words) - n + 1 + place] * factor
            factor = factor * MULTIPLIER
    return hashes
