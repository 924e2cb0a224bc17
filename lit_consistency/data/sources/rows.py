"""Where the rows of finetuning come from: conversations, one by one.

Every kind of row becomes a ``Conversation``, which knows its file and line, so that an error can name them. It gives up
random access: rows are read in order, once for every use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer

from lit_consistency.data.sources.conversations import held_out_by, messages_of
from lit_consistency.data.sources.files import (
    find_files,
    fingerprint_files,
    read_json_lines,
    read_json_list,
    read_parquet,
)
from lit_consistency.data.sources.hold_out import HoldOut, Part
from lit_consistency.records.extras import require


class Conversation(NamedTuple):
    """One conversation.

    Attributes:
        messages: Turns ``{"role": "system" | "user" | "assistant", "content": text}``; at least one is the assistant's.
            A user's turn may also have ``instruction`` and ``input``, for prompt styles that write them apart;
            ``content`` holds both.
        place: Where the row stands, ``file:line`` or ``world:index``, for messages to the user.
    """

    messages: list[dict[str, str]]
    place: str


class Rows(ABC):
    """Conversations in a fixed order."""

    @abstractmethod
    def rows(self) -> Iterator[Conversation]:
        """Yields every row once, in the same order at every call."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the rows depend on: kind, options, files with size and sha256."""

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the rows, or None; used where neither the user nor the model names one."""
        return None


class RowFiles(Rows):
    """Rows in .jsonl, .json (a list) or .parquet files (extra ``hf``); the kind of each row is detected by its fields.

    Known kinds: ``messages`` (role, content), ``conversations`` (from, value), ``instruction``/``input``/``output``,
    ``prompt``/``completion`` or ``response``, ``question``/``answer``.

    Args:
        path: A file, a folder (with subfolders) or a glob pattern.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of prompts held out with all their answers; 0 < share < 1 where ``part`` is not ``all``.
    """

    readers = {".jsonl": read_json_lines, ".json": read_json_list, ".parquet": read_parquet}

    def __init__(self, path: str, part: Part = "all", validation_share: float = 0.0) -> None:
        self.path = str(path)
        self.hold_out = HoldOut(part, validation_share, by="prompt")
        self.files = find_files("path", self.path, tuple(self.readers))
        for file in self.files:
            if file.suffix not in self.readers:
                raise ValueError(f"path = {file}: expected a file that ends in {', '.join(self.readers)}")
        if any(file.suffix == ".parquet" for file in self.files):
            require("pyarrow", "RowFiles with .parquet files")

    def rows(self) -> Iterator[Conversation]:
        """Yields the rows of the part, file after file; ValueError names file and row of a bad one."""
        for file in self.files:
            for place, value in self.readers[file.suffix](file):
                messages = messages_of(value, place)
                if self.hold_out.keeps(held_out_by(messages)):
                    yield Conversation(messages, place)

    def fingerprint(self) -> dict[str, Any]:
        """Kind, options and files."""
        return {"kind": "RowFiles", **self.hold_out.fingerprint(), "files": fingerprint_files(self.files)}
