"""Helpers of several tests of data/."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.data.tokens.prompts import Example
from lit_consistency.data.tokens.tokenizer import Tokenizer


def write_jsonl(file: Path, rows: list[Any]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def text_of(tokenizer: Tokenizer, tokens: Any) -> str:
    return tokenizer.processor.decode([int(token) for token in tokens], skip_special_tokens=False)


def learned(tokenizer: Tokenizer, example: Example) -> list[str]:
    """The supervised pieces of an example as texts, one per run of the mask."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], example.supervised.astype(np.int8), [0]))))
    return [text_of(tokenizer, example.tokens[a:b]) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


class ListSource(Source):
    """Documents from a list."""

    def __init__(self, texts: list[str]) -> None:
        self.texts = texts

    def documents(self) -> Iterator[str]:
        yield from self.texts

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "ListSource", "texts": self.texts}


class ListRows(Rows):
    """Pairs of prompt and completion from a list."""

    def __init__(self, pairs: list[tuple[str, str]]) -> None:
        self.pairs = pairs

    def rows(self) -> Iterator[Conversation]:
        for number, (prompt, completion) in enumerate(self.pairs, start=1):
            yield Conversation([user(prompt), assistant(completion)], f"list:{number}")

    def fingerprint(self) -> dict[str, Any]:
        return {"kind": "ListRows", "pairs": self.pairs}


def row_ids(batch: dict[str, Tensor]) -> list[int]:
    """First token of every row that is not padding; tests give each row its own."""
    return [int(row[0]) for row, document in zip(batch["tokens"], batch["documents"], strict=True) if document[0] >= 0]
