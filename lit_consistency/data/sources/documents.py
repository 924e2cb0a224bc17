"""Where the text of pretraining comes from: documents, one by one.

A source yields documents in a fixed order and identifies them by its fingerprint; it knows nothing of tokens. It gives
up random access: documents are read once, when their tokens are written to disk (tokens/tokenize.py). Documents of
white space alone are left out, and counted.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_info
from tokenizers import Tokenizer

from lit_consistency.data.sources.files import (
    PACKED,
    find_files,
    fingerprint_files,
    read_json_lines,
    read_parquet,
    read_separated,
    read_text,
    take_text,
)
from lit_consistency.data.sources.hold_out import HoldOut, Part, counted
from lit_consistency.data.sources.separators import guess_separator
from lit_consistency.records.extras import require

FIELDS = ("text", "content", "document", "body", "raw_content", "story")
"""Fields that hold the text of a document, in the order in which they are looked for."""


class Source(ABC):
    """Documents of text in a fixed order.

    Attributes:
        n_blank: documents of white space alone that the latest pass has left out.
    """

    n_blank = 0

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yields every document once, in the same order at every call."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the documents depend on: kind, options, files with size and sha256."""

    def numbered(self) -> Iterator[tuple[int, str]]:
        """Yields every document with its number, counted from 1."""
        yield from enumerate(self.documents(), start=1)

    @property
    def shown_as(self) -> str:
        """What names and messages call the documents."""
        return type(self).__name__

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the text, or None; used where neither the user nor the model names one."""
        return None

    def about(self) -> str:
        """What the documents are and how many, for a message that too few of them are left."""
        return f"{type(self).__name__}: {counted(self.documents(), 'document')}"


class _FileSource(Source):
    """Documents of files: which files, which of their documents are held out, the fingerprint."""

    suffixes: tuple[str, ...]

    def __init__(self, path: str, part: Part, validation_share: float) -> None:
        self.path = str(path)
        self.hold_out = HoldOut(part, validation_share)
        self.files = find_files("path", self.path, self.suffixes)

    def documents(self) -> Iterator[str]:
        """Yields the documents of the part, file after file in the order of their paths."""
        self.n_blank = 0
        for file in self.files:
            for text in self._read(file):
                if not text.strip():
                    self.n_blank += 1
                elif self.hold_out.keeps(text):
                    yield text

    def fingerprint(self) -> dict[str, Any]:
        """Kind, options and files."""
        files = fingerprint_files(self.files)
        return {"kind": type(self).__name__, **self._options(), **self.hold_out.fingerprint(), "files": files}

    def about(self) -> str:
        """With path and options; the documents are those of all parts."""
        options = "".join(f", {key} = {value!r}" for key, value in self._options().items())
        whole = (text for file in self.files for text in self._read(file) if text.strip())
        n_files = counted(self.files, "file")
        return f"path = {self.path} ({n_files}{options}): {counted(whole, 'document')}{self.hold_out.about()}"

    @abstractmethod
    def _options(self) -> dict[str, Any]:
        """The options that change the documents, beside the files."""

    @abstractmethod
    def _read(self, file: Path) -> Iterator[str]:
        """The documents of one file."""


class TextFiles(_FileSource):
    r"""Plain text in UTF-8: one document per file, or several divided by a separator.

    Args:
        path: A file, a folder (its .txt and .md files, also .gz and .zst, with subfolders) or a glob pattern.
        separator: Text between two documents of one file, such as two blank lines, ``"\n\n\n"`` in YAML. None: a file
            is a document.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, by their text; 0 < share < 1 where ``part`` is not ``all``.
    """

    suffixes = tuple(name + packed for name in (".txt", ".md") for packed in ("", *PACKED))

    def __init__(
        self, path: str, separator: str | None = None, part: Part = "all", validation_share: float = 0.0
    ) -> None:
        if separator == "":
            raise ValueError("separator = '': expected at least one character, or null for one document per file")
        self.separator = separator
        super().__init__(path, part, validation_share)

    def _options(self) -> dict[str, Any]:
        return {"separator": self.separator}

    def _read(self, file: Path) -> Iterator[str]:
        if self.separator is None:
            yield read_text(file)
        else:
            yield from filter(None, read_separated(file, self.separator))  # nothing stands behind the last one


class JsonLines(_FileSource):
    """JSON Lines: every line is an object, one of its fields is a document.

    Args:
        path: A file, a folder (its .jsonl, .jsonl.gz and .jsonl.zst files, with subfolders) or a glob pattern.
        field: Name of the field that holds the text.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, by their text; 0 < share < 1 where ``part`` is not ``all``.
    """

    suffixes = tuple(".jsonl" + packed for packed in ("", *PACKED))

    def __init__(self, path: str, field: str = "text", part: Part = "all", validation_share: float = 0.0) -> None:
        self.field = field
        super().__init__(path, part, validation_share)

    def _options(self) -> dict[str, Any]:
        return {"field": self.field}

    def _read(self, file: Path) -> Iterator[str]:
        for place, value in read_json_lines(file):
            yield take_text(value, self.field, place)


class Parquet(_FileSource):
    """Parquet files with a column of text; needs the extra ``hf``.

    Args:
        path: A file, a folder (its .parquet files, with subfolders) or a glob pattern.
        field: Name of the column that holds the text.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, by their text; 0 < share < 1 where ``part`` is not ``all``.
    """

    suffixes = (".parquet",)

    def __init__(self, path: str, field: str = "text", part: Part = "all", validation_share: float = 0.0) -> None:
        require("pyarrow", "Parquet")
        self.field = field
        super().__init__(path, part, validation_share)

    def _options(self) -> dict[str, Any]:
        return {"field": self.field}

    def _read(self, file: Path) -> Iterator[str]:
        for place, value in read_parquet(file, [self.field]):
            yield take_text(value, self.field, place)


class DocumentFiles(_FileSource):
    r"""Text in files of any kind, each read by its ending: .txt and .md, .jsonl, .parquet; all but the last packed too.

    Args:
        path: A file, a folder (its .txt, .md, .jsonl and .parquet files, also .gz and .zst, with subfolders) or a glob
            pattern. Parquet and .zst need the extra ``hf``.
        separator: Text between two documents of a .txt or .md file, as ``"\n\n\n"`` in YAML; None: a file is a
            document; ``auto``: guessed from the files, and said.
        field: Of the rows of .jsonl and .parquet files, the one that holds the text; None: the first of ``FIELDS`` that
            a row has.
        part: Everything, what trains, or what is held out for validation.
        validation_share: Share of documents held out, by their text; 0 < share < 1 where ``part`` is not ``all``.
    """

    suffixes = (*TextFiles.suffixes, *JsonLines.suffixes, *Parquet.suffixes)

    def __init__(
        self,
        path: str,
        separator: str | None = "auto",
        field: str | None = None,
        part: Part = "all",
        validation_share: float = 0.0,
    ) -> None:
        if separator == "":
            raise ValueError("separator = '': expected at least one character, auto, or null for one document per file")
        super().__init__(path, part, validation_share)
        self.field = field
        self.separator = separator
        for file in self.files:
            if not file.name.endswith(self.suffixes):
                raise ValueError(f"path = {file}: expected a file that ends in {', '.join(self.suffixes)}")
            if file.suffix == ".parquet":
                require("pyarrow", "DocumentFiles with .parquet files")
        texts = [file for file in self.files if file.name.endswith(TextFiles.suffixes)]
        if separator == "auto":
            self.separator, why = guess_separator(texts) if texts else (None, "")
            if texts:
                rank_zero_info(f"path = {path}: {counted(texts, 'file')} of text, separator: {why} (separator = auto)")

    def _options(self) -> dict[str, Any]:
        return {"separator": self.separator, "field": self.field}

    def _read(self, file: Path) -> Iterator[str]:
        if file.name.endswith(TextFiles.suffixes):
            # nothing stands behind the last separator
            texts = [read_text(file)] if self.separator is None else filter(None, read_separated(file, self.separator))
            yield from texts
            return
        columns = None if self.field is None else [self.field]
        for place, row in read_parquet(file, columns) if file.suffix == ".parquet" else read_json_lines(file):
            yield take_text(row, self.field or _text_field(row, place), place)


def _text_field(row: Any, place: str) -> str:
    """The field that holds a row's text; where the row has none of ``FIELDS``, the error names what it has."""
    fields = row if isinstance(row, dict) else {}
    name = next((name for name in FIELDS if fields.get(name) is not None), None)
    if name is None and fields:
        raise ValueError(
            f"{place}: fields {', '.join(map(repr, fields))}; expected one of {', '.join(FIELDS)}, or `field`"
        )
    return name or FIELDS[0]


class HeldOutDocuments(Source):
    """One side of the documents of any source, divided by their text.

    Args:
        source: The documents.
        part: What trains, or what is held out.
        validation_share: Share of documents held out.
    """

    def __init__(self, source: Source, part: Part, validation_share: float) -> None:
        self.whole = source
        self.hold_out = HoldOut(part, validation_share)

    def documents(self) -> Iterator[str]:
        """Yields the documents of the part."""
        yield from filter(self.hold_out.keeps, self.whole.documents())
        self.n_blank = self.whole.n_blank

    def fingerprint(self) -> dict[str, Any]:
        """The part, and what the documents depend on."""
        return {"kind": "HeldOutDocuments", **self.hold_out.fingerprint(), "source": self.whole.fingerprint()}

    def about(self) -> str:
        """That of the source, and which side of it this is."""
        return f"{self.whole.about()}{self.hold_out.about()}"

    def default_tokenizer(self) -> Tokenizer | None:
        """That of the source."""
        return self.whole.default_tokenizer()
