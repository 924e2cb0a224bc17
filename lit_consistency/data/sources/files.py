"""Files of text, JSON, CSV and Parquet: which ones a path means, their fingerprints, and their lines.

The fingerprint of a file is its name, size and SHA-256, without its folder, so a folder that moves keeps its tokens.
Hashing reads every byte once per process, of more than a gigabyte once for all (``records/known_hashes.py``); that is
the price of noticing a file that was edited and kept its size and date. A file of text may be packed by gzip (.gz) or
Zstandard (.zst, which pyarrow unpacks); it is unpacked while it is read, and its fingerprint is that of the packed
file.
"""

from __future__ import annotations

import csv
import glob
import gzip
import io
import json
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

from lightning.pytorch.utilities import rank_zero_warn

from lit_consistency.records.extras import require
from lit_consistency.records.known_hashes import sha256_each
from lit_consistency.records.shipped import looked_in, on_this_machine

PACKED = (".gz", ".zst")
NAMED = 5
"""Files that a message names; the rest is counted."""


LONGEST = 1 << 30
"""Characters of a document, of which a tokenizer makes a hundred times as many bytes; no book has as many."""


def find_files(key: str, path: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a path means: itself, all files of a folder with one of the suffixes, or all that match a pattern.

    Args:
        key: The option the path was given for; error messages name it.
        path: A file, a folder (read with its subfolders) or a glob pattern (``**`` goes into subfolders).
        suffixes: Which files of a folder count, such as ``.txt`` or ``.jsonl.gz``. Files that are left out are named in
            a warning, except hidden ones.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: Nothing is there.
        ValueError: The path is an address, or a file is packed as .zst, and pyarrow is absent.
    """
    given = on_this_machine(key, path).expanduser()
    if given.is_file():
        files, expected = [given], ""
    elif given.is_dir():
        every = [file for file in given.rglob("*") if file.is_file()]
        files = [file for file in every if file.name.endswith(tuple(suffixes))]
        _say_left_out(key, given, [file for file in every if not file.name.endswith(tuple(suffixes))], suffixes)
        expected = f"a folder that holds {' or '.join(suffixes)} files"
    else:
        files = [Path(match) for match in glob.glob(str(given), recursive=True) if Path(match).is_file()]
        expected = "an existing file or folder, or a pattern that matches a file"
    if not files:
        raise FileNotFoundError(f"{key} = {path}: nothing found; expected {expected}{looked_in(path)}")
    for file in files:
        if file.suffix == ".zst":
            require("pyarrow", f"{file.name}, a .zst file,")
    return sorted(files)


def fingerprint_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of each file."""
    hashes = sha256_each(files)
    return [
        {"name": file.name, "size": file.stat().st_size, "sha256": digest}
        for file, digest in zip(files, hashes, strict=True)
    ]


@contextmanager
def open_text(file: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Opens a file as UTF-8 text, unpacked where its name ends in .gz or .zst.

    Args:
        file: The file.
        newline: As of ``open``.

    Raises:
        ValueError: While it is read: the text is not UTF-8, or what is packed is damaged; names the file.
    """
    packed: Any
    if file.suffix == ".zst":
        from pyarrow import input_stream

        packed = input_stream(str(file), compression="zstd")
    else:
        packed = (gzip.open if file.suffix == ".gz" else open)(file, "rb")  # closed with the stream
    with io.TextIOWrapper(packed, encoding="utf-8-sig", newline=newline) as stream:  # a byte order mark is no text
        try:
            yield stream
        except UnicodeDecodeError as error:
            raise ValueError(f"{file}: not UTF-8 ({error.reason}); expected text in UTF-8") from None
        except (OSError, EOFError, zlib.error) as error:
            if file.suffix not in PACKED:
                raise
            raise ValueError(f"{file}: cannot be unpacked ({error}); expected a whole {file.suffix} file") from None


def read_text(file: Path) -> str:
    """The whole file as text; ValueError where it is not UTF-8, or longer than ``LONGEST``."""
    text = ""
    if is_short := file.stat().st_size <= 4 * LONGEST:  # bytes of a character, at most
        with open_text(file) as stream:
            text = stream.read()
    if not is_short or len(text) > LONGEST:
        raise ValueError(
            f"{file}: more than {LONGEST:,} characters to be read at once; expected JSON as .jsonl, or a text with a "
            "separator that stands between its documents"
        )
    return text


def read_separated(file: Path, separator: str) -> Iterator[str]:
    """The texts of a file between separators, of which one at a time is in memory."""
    rest = ""
    with open_text(file) as stream:
        while block := stream.read(1 << 24):
            *texts, rest = (rest + block).split(separator)
            yield from texts
            if len(rest) > LONGEST:
                raise ValueError(
                    f"{file}: more than {LONGEST:,} characters without the separator {separator!r}; expected one that "
                    "stands between its documents"
                )
    yield rest


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Every line that is not blank as (``file:line``, value); ValueError names the line that is not JSON."""
    with open_text(file) as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                place = f"{file}:{number}"
                yield place, parse_json(line, place)


def read_json_list(file: Path) -> Iterator[tuple[str, Any]]:
    """Every element of a JSON list as (``file:row``, value), rows counted from 1."""
    text = read_text(file)
    try:
        rows = parse_json(text, str(file))
    except ValueError as error:
        if _is_json_lines(text):
            raise ValueError(
                f"{file}: a JSON value on each line; expected one list of rows, or the ending .jsonl"
            ) from None
        raise error
    del text  # not held beside its rows
    if not isinstance(rows, list):
        raise ValueError(f"{file}: a JSON {type(rows).__name__}; expected a list of rows")
    for number, row in enumerate(rows, start=1):
        yield f"{file}:{number}", row


def _is_json_lines(text: str) -> bool:
    """Whether the first two lines that are not blank are JSON objects, each for itself."""
    first = list(islice((line for line in io.StringIO(text) if line.strip()), 2))
    try:
        return len(first) == 2 and all(isinstance(parse_json(line, ""), dict) for line in first)
    except ValueError:
        return False


def read_table(file: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Every row of a .csv or .tsv file with a header as (``file:line``, values), the line on which the row begins.

    Raises:
        ValueError: A row has more or fewer fields than the header, or two columns have one name.
    """
    csv.field_size_limit(1 << 30)  # 128 KiB by default, less than a long answer
    with open_text(file, newline="") as stream:
        rows = csv.reader(stream, delimiter="\t" if ".tsv" in file.suffixes else ",", strict=True)
        place = f"{file}:1"
        try:
            columns = next(rows, [])
            if len(set(columns)) < len(columns):
                twice = next(name for name in columns if columns.count(name) > 1)
                raise ValueError(f"{place}: column {twice!r} occurs twice; expected a header of different names")
            place = f"{file}:{rows.line_num + 1}"
            for row in rows:
                if row and len(row) != len(columns):  # a blank line is no row
                    names = ", ".join(columns)
                    raise ValueError(f"{place}: {len(row)} fields; expected the {len(columns)} of the header: {names}")
                if row:
                    yield place, dict(zip(columns, row, strict=True))
                place = f"{file}:{rows.line_num + 1}"
        except csv.Error as error:
            raise ValueError(f"{place}: {error}; expected rows as a spreadsheet writes them") from None


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a Parquet file as (``file:row``, values), counted from 1; a few thousand rows are in memory."""
    # extra ``hf``; the caller has checked it by ``require``
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.ParquetFile(file)
        if columns is not None and (missing := sorted(set(columns) - set(table.schema_arrow.names))):
            raise ValueError(f"{file}: no column {missing[0]!r}; expected one of {', '.join(table.schema_arrow.names)}")
        number = 0
        for batch in table.iter_batches(batch_size=4096, columns=columns):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}:{number}", row
    # pyarrow's messages do not say of which file they speak
    except (ArrowException, OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{file}: cannot be read ({error}); expected a whole Parquet file") from None


def take_text(fields: Any, name: str, place: str) -> str:
    """The text in a field of a row that stands at ``place``, such as ``file:line``.

    Raises:
        ValueError: The row is no object, has no such field, or the field is no text; names ``place``.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"{place}: a {type(fields).__name__}; expected an object with the field {name!r}")
    if name not in fields:
        raise ValueError(f"{place}: no field {name!r}; it has {', '.join(map(repr, fields)) or 'no fields'}")
    value = fields[name]
    if not isinstance(value, str):
        raise ValueError(f"{place}: {name} is a {type(value).__name__}; expected text")
    try:
        value.encode()
    except UnicodeEncodeError:  # JSON can spell half a character, a lone surrogate
        raise ValueError(f"{place}: {name} holds half a character; expected text that UTF-8 can hold") from None
    return value


def parse_json(text: str, place: str) -> Any:
    """The value of a JSON text.

    Raises:
        ValueError: It is none, is nested or has digits without end, or a key of it occurs twice; names ``place``.
    """
    try:
        return DECODER.decode(text)
    except KeyError as error:
        raise ValueError(f"{place}: key {error} occurs twice in one object; expected it once") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: not JSON ({error})") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):  # JSON leaves open which value counts, so one would be lost without a word
        keys = [key for key, _ in pairs]
        raise KeyError(next(key for key in keys if keys.count(key) > 1))
    return fields


DECODER = json.JSONDecoder(object_pairs_hook=_object)
"""Made once: ``json.loads`` with a hook makes one for every text, which takes half as long again as a short row."""


def _say_left_out(key: str, folder: Path, files: Sequence[Path], suffixes: Sequence[str]) -> None:
    names = [file.relative_to(folder) for file in sorted(files)]
    shown = [name.as_posix() for name in names if not any(part.startswith(".") for part in name.parts)]
    if shown:
        count = "1 file" if len(shown) == 1 else f"{len(shown):,} files"
        rest = f" and {len(shown) - NAMED:,} more" if len(shown) > NAMED else ""
        rank_zero_warn(
            f"{key} = {folder}: leaves out {count}, not ending in {', '.join(suffixes)}: "
            f"{', '.join(shown[:NAMED])}{rest}"
        )
