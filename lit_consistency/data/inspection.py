"""Rows looked at as training would take them: lengths, what is cut, dropped and refused, duplicates, leakage.

The rows go through ``tokenize_row``, as in ``SFTData``; nothing is written. Where training stops at the first bad row,
looking goes on, as far as the file can be read. Two rows are one where all turns and tools are equal; a prompt is what
stands before the first answer, up to white space, by which rows are held out (``held_out_by``).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources.conversations import DetectedFormat, detected_formats, held_out_by
from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.data.tokens.tokenize import TokenizedRow, tokenize_row
from lit_consistency.records.fingerprints import seed_of

PERCENTILES = (50, 75, 90, 95, 99, 100)


@dataclass
class Inspection:
    """What one set of rows holds.

    Attributes:
        block_size: Places of a training row.
        lengths: Tokens of every row, before any is cut.
        learned: Of those, how many are learned.
        kept: Of the learned ones, how many are left when rows are cut.
        n_dropped: Rows of which nothing is left to learn.
        n_special_text: Rows with the text of a special token, which is text.
        refused: What is wrong -> the rows' messages, with their places; training stops at the first one.
        unread: Why reading stopped before the end; empty where it did not.
        formats: As what the rows were read.
        rows: Numbers that stand for rows -> how often each occurs.
        prompts: The same of prompts.
    """

    block_size: int
    lengths: list[int] = field(default_factory=list)
    learned: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    n_dropped: int = 0
    n_special_text: int = 0
    refused: dict[str, list[str]] = field(default_factory=dict)
    unread: str = ""
    formats: list[DetectedFormat] = field(default_factory=list)
    rows: Counter[int] = field(default_factory=Counter)
    prompts: Counter[int] = field(default_factory=Counter)

    @property
    def n_rows(self) -> int:
        """Rows that were read."""
        return self.rows.total()

    @property
    def n_truncated(self) -> int:
        """Rows that are cut."""
        return sum(length > self.block_size + 1 for length in self.lengths)

    @property
    def n_tokens_cut(self) -> int:
        """Tokens that are cut off."""
        return sum(max(length - self.block_size - 1, 0) for length in self.lengths)

    @property
    def n_refused(self) -> int:
        """Rows at which training would stop."""
        return sum(map(len, self.refused.values()))

    def percentiles(self) -> list[tuple[int, int, int]]:
        """(Percentile, length that so many rows do not exceed, tokens that are cut of a row so long)."""
        lengths = np.percentile(self.lengths, PERCENTILES, method="inverted_cdf").astype(int)
        return [(p, n, max(n - self.block_size - 1, 0)) for p, n in zip(PERCENTILES, lengths.tolist(), strict=True)]

    def repeated(self) -> tuple[int, int]:
        """Rows that stand there before, and rows whose prompt does; the first are among the second."""
        return self.rows.total() - len(self.rows), self.prompts.total() - len(self.prompts)

    def leaked_from(self, train: Inspection) -> tuple[int, int]:
        """Rows that are trained on too, and rows whose prompt is; the first are among the second."""
        rows = sum(n for row, n in self.rows.items() if row in train.rows)
        return rows, sum(n for prompt, n in self.prompts.items() if prompt in train.prompts)


def inspect_rows(
    rows: Rows, data: SFTData, limit: int = 0, seen: Callable[[Conversation, TokenizedRow], None] | None = None
) -> Inspection:
    """Looks at rows.

    Args:
        rows: The rows.
        data: How they would be trained on.
        limit: Rows at most; 0: all.
        seen: Is given every row that can be trained on, as soon as it is tokenized.
    """
    result = Inspection(data.block_size)
    encoder = data.encoder()
    light: list[Conversation] = []  # the turns of a million rows are not kept
    for row in _read(rows, limit, result):
        light.append(row._replace(messages=[], tools=None))
        result.rows[seed_of(json.dumps([row.messages, row.tools], sort_keys=True, default=str))] += 1
        result.prompts[seed_of(held_out_by(row.messages))] += 1
        try:
            tokenized = tokenize_row(row, encoder, data.block_size, data.too_long)
        except ValueError as error:
            message = str(error)
            result.refused.setdefault(message.removeprefix(f"{row.place}: "), []).append(row.place)
            continue
        _count(result, tokenized)
        if seen is not None:
            seen(row, tokenized)
    result.formats = detected_formats(light)
    return result


def _read(rows: Rows, limit: int, result: Inspection) -> Iterator[Conversation]:
    try:
        yield from islice(rows.rows(), limit or None)
    except ValueError as error:
        result.unread = str(error)


def _count(result: Inspection, row: TokenizedRow) -> None:
    result.lengths.append(len(row.whole.tokens))
    # the first token is never a target
    result.learned.append(int(row.whole.supervised[1:].sum()))
    result.kept.append(int(row.example.supervised[1:].sum()))
    result.n_dropped += not row.is_learned
    result.n_special_text += row.whole.special_text
