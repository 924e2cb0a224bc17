"""Files of text, JSON and Parquet: which ones a path means, their fingerprints, and their lines.

The fingerprint of a file is its name, size and SHA-256, without its folder, so a folder that moves keeps its tokens.
Hashing reads every byte once per process; that is the price of noticing a file that was edited and kept its size and
date.
"""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lit_consistency.records.fingerprints import sha256_once


def find_files(key: str, path: str, suffixes: Sequence[str]) -> list[Path]:
    """The files that a path means: itself, all files of a folder with one of the suffixes, or all that match a pattern.

    Args:
        key: The option the path was given for; error messages name it.
        path: A file, a folder (read with its subfolders) or a glob pattern (``**`` goes into subfolders).
        suffixes: Which files of a folder count, such as ``.txt``.

    Returns:
        The files, sorted by path.

    Raises:
        FileNotFoundError: Nothing is there.
    """
    given = Path(path).expanduser()
    if given.is_file():
        return [given]
    if given.is_dir():
        files = [file for file in given.rglob("*") if file.is_file() and file.suffix in suffixes]
        expected = f"a folder that holds {' or '.join(suffixes)} files"
    else:
        files = [Path(match) for match in glob.glob(str(given), recursive=True) if Path(match).is_file()]
        expected = "an existing file or folder, or a pattern that matches a file"
    if not files:
        raise FileNotFoundError(f"{key} = {path}: nothing found; expected {expected}")
    return sorted(files)


def fingerprint_files(files: Sequence[Path]) -> list[dict[str, Any]]:
    """Name, size in bytes and SHA-256 of each file."""
    return [{"name": file.name, "size": file.stat().st_size, "sha256": sha256_once(file)} for file in files]


def read_text(file: Path) -> str:
    """The whole file as text; ValueError where it is not UTF-8."""
    try:
        return file.read_text(encoding="utf-8-sig")  # a byte order mark is no text
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None


def read_separated(file: Path, separator: str) -> Iterator[str]:
    """The texts of a file between separators, of which one at a time is in memory."""
    rest = ""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            while block := stream.read(1 << 24):
                *texts, rest = (rest + block).split(separator)
                yield from texts
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None
    yield rest


def read_json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    """Every line that is not blank as (``file:line``, value); ValueError names the line that is not JSON."""
    try:
        with open(file, encoding="utf-8-sig") as stream:
            for number, line in enumerate(stream, start=1):
                if line.strip():
                    place = f"{file}:{number}"
                    yield place, _parse_json(line, place)
    except UnicodeDecodeError as error:
        raise _not_utf8(file, error) from None


def read_json_list(file: Path) -> Iterator[tuple[str, Any]]:
    """Every element of a JSON list as (``file:row``, value), rows counted from 1."""
    rows = _parse_json(read_text(file), str(file))
    if not isinstance(rows, list):
        raise ValueError(f"{file}: a JSON {type(rows).__name__}; expected a list of rows")
    for number, row in enumerate(rows, start=1):
        yield f"{file}:{number}", row


def read_parquet(file: Path, columns: Sequence[str] | None = None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every row of a Parquet file as (``file:row``, values), counted from 1; a few thousand rows are in memory."""
    from pyarrow import parquet  # extra ``hf``; the caller has checked it by ``require``

    table = parquet.ParquetFile(file)
    if columns is not None and (missing := sorted(set(columns) - set(table.schema_arrow.names))):
        raise ValueError(f"{file}: no column {missing[0]!r}; expected one of {', '.join(table.schema_arrow.names)}")
    number = 0
    for batch in table.iter_batches(batch_size=4096, columns=columns):
        for row in batch.to_pylist():
            number += 1
            yield f"{file}:{number}", row


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


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{place}: not JSON ({error})") from None


def _not_utf8(file: Path, error: UnicodeDecodeError) -> ValueError:
    return ValueError(f"{file}: not UTF-8 ({error.reason}); expected text in UTF-8")
