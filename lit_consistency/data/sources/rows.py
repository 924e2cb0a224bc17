"""Where the rows of finetuning come from: conversations, one by one.

Every kind of row becomes a ``Conversation``, which knows its file and line, so that an error can name them. It gives up
random access: rows are read in order, once for every use.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from lit_consistency.data.sources.conversations import (
    READING,
    Conversation,
    check_columns,
    conversation_of,
    held_out_by,
)
from lit_consistency.data.sources.files import (
    PACKED,
    find_files,
    fingerprint_files,
    read_json_lines,
    read_json_list,
    read_parquet,
    read_table,
)
from lit_consistency.data.sources.hold_out import HoldOut, Part, counted
from lit_consistency.records.extras import require

__all__ = ["Conversation", "RowFiles", "Rows"]

Reader = Callable[[Path], Iterator[tuple[str, Any]]]

READERS: dict[str, Reader] = {
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json_list,
    ".csv": read_table,
    ".tsv": read_table,
    ".parquet": read_parquet,
}
ENDINGS = (*READERS, *(name + packed for name in READERS if name != ".parquet" for packed in PACKED))


class Rows(ABC):
    """Conversations in a fixed order.

    Attributes:
        prompt_style: In which the prompts are written already, as those of a task, so that what is trained is what is
            asked; None: they are words that a base's own style is for.
    """

    prompt_style: str | None = None

    @abstractmethod
    def rows(self) -> Iterator[Conversation]:
        """Yields every row once, in the same order at every call."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the rows depend on: kind, options, files with size and sha256."""

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the rows, or None; used where neither the user nor the model names one."""
        return None

    def about(self) -> str:
        """What the rows are and how many, for a message that too few of them are left."""
        return f"{type(self).__name__}: {counted(self.rows(), 'row')}"


class ReadRows(Rows):
    """Rows as they stand somewhere, read by their fields: which columns, which of them are held out."""

    def __init__(self, columns: dict[str, str] | None, part: Part, validation_share: float) -> None:
        check_columns(columns)
        self.columns = columns
        self.hold_out = HoldOut(part, validation_share, by="prompt")

    @abstractmethod
    def read(self) -> Iterator[tuple[str, Any]]:
        """Every row as (place, fields)."""

    def rows(self) -> Iterator[Conversation]:
        """Yields the rows of the part; ValueError names the place of a bad one, or a column that no row has."""
        missing = set(self.columns.values()) if self.columns else set()
        place = ""
        for place, value in self.read():
            if missing and isinstance(value, dict):
                missing -= value.keys()
            row = conversation_of(value, place, self.columns)
            if self.hold_out.keeps(held_out_by(row.messages)):
                yield row
        if missing and place:
            raise ValueError(f"columns = {self.columns}: no row up to {place} has {', '.join(sorted(missing))}")

    def _read_as(self) -> dict[str, Any]:
        """How the rows are read, as JSON, for the fingerprint."""
        columns = {"columns": self.columns} if self.columns else {}
        return {"reading": READING, **columns, **self.hold_out.fingerprint()}


class RowFiles(ReadRows):
    """Rows in .jsonl, .json (a list), .csv, .tsv or .parquet files; the format of each row is detected by its fields.

    Known formats: ``messages`` or ``conversations`` (lists of turns), ``instruction``/``output`` with ``input`` or
    ``context`` and ``history``, ``prompt``/``completion`` (texts or lists of turns), ``query``/``response``,
    ``problem``/``solution``, ``question``/``answer``, ``text`` and some more (``FORMATS``). Text files may be packed:
    .jsonl.gz, .jsonl.zst. Parquet and .zst need the extra ``hf``.

    Args:
        path: A file, a folder (with subfolders) or a glob pattern.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of prompts held out with all their answers; 0 < share < 1 where ``part`` is not ``all``.
        columns: For any other format: ``prompt`` and ``completion``, ``messages``, or ``text``, beside them ``system``,
            ``input``, ``history``, ``reasoning_content``, ``tools``, ``id`` -> the name of the column. Others are not
            read.
    """

    def __init__(
        self,
        path: str,
        part: Part = "all",
        validation_share: float = 0.0,
        columns: dict[str, str] | None = None,
    ) -> None:
        super().__init__(columns, part, validation_share)
        self.path = str(path)
        self.files = find_files("path", self.path, ENDINGS)
        for file in self.files:
            if not file.name.endswith(ENDINGS):
                raise ValueError(f"path = {file}: expected a file that ends in {', '.join(ENDINGS)}")
            if file.suffix == ".parquet":
                require("pyarrow", "RowFiles with .parquet files")

    def read(self) -> Iterator[tuple[str, Any]]:
        """Every row of every file, in the order of their paths, as (``file:line``, fields)."""
        for file in self.files:
            unpacked = file.with_suffix("") if file.suffix in PACKED else file
            yield from READERS[unpacked.suffix](file)

    def fingerprint(self) -> dict[str, Any]:
        """Kind, options and files."""
        return {"kind": "RowFiles", **self._read_as(), "files": fingerprint_files(self.files)}

    def about(self) -> str:
        """With the path; the rows are those of all parts."""
        return f"path = {self.path}: {counted(self.read(), 'row')}{self.hold_out.about()}"


class HeldOutRows(Rows):
    """One side of rows of any kind, divided by their prompts.

    Args:
        rows: The rows.
        part: What trains, or what is held out.
        validation_share: Share of prompts held out with all their answers.
    """

    def __init__(self, rows: Rows, part: Part, validation_share: float) -> None:
        self.whole = rows
        self.prompt_style = rows.prompt_style
        self.hold_out = HoldOut(part, validation_share, by="prompt")

    def rows(self) -> Iterator[Conversation]:
        """Yields the rows of the part."""
        return (row for row in self.whole.rows() if self.hold_out.keeps(held_out_by(row.messages)))

    def fingerprint(self) -> dict[str, Any]:
        """The part, and what the rows depend on."""
        return {"kind": "HeldOutRows", **self.hold_out.fingerprint(), "rows": self.whole.fingerprint()}

    def about(self) -> str:
        """That of the rows, and which side of them this is."""
        return f"{self.whole.about()}{self.hold_out.about()}"

    def default_tokenizer(self) -> Tokenizer | None:
        """That of the rows."""
        return self.whole.default_tokenizer()
