"""The rows of a task's data, each with an id that does not depend on the order: files, the hub, or a world.

A row is a mapping of fields. Two fields are added: ``_file``, the name of its file without the ending (MMLU's
subject), and what ``extract`` finds. The id is the file's name and the row's number, or what the task's ``id`` says.
"""

from __future__ import annotations

import csv
import gzip
import io
import re
import zipfile
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Any, cast

from lit_consistency.data.sources.documents import TextFiles
from lit_consistency.data.sources.files import find_files, fingerprint_files, parse_json, read_parquet
from lit_consistency.data.sources.hold_out import Part
from lit_consistency.data.sources.hub import HubRows
from lit_consistency.records.bounded import bounded
from lit_consistency.records.extras import require
from lit_consistency.tasks.question import TaskRow
from lit_consistency.tasks.task import Task
from lit_consistency.tasks.task_data import TaskData
from lit_consistency.tasks.templates import as_text, look_up, render
from lit_consistency.tasks.world import world_rows

SUFFIXES = (".jsonl", ".json", ".csv", ".txt", ".parquet", ".gz", ".zip")
READ_AS = ("member", "records", "columns", "separator", "part", "validation_share")
"""How the rows of files are read; the same files read in another way are other rows."""


def read_rows(task: Task, data: TaskData) -> list[TaskRow]:
    """All rows of the data, in the order of the files.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a row is bad, has no field that ``extract`` reads, or there is none at all; names file and row.
    """
    rows: list[TaskRow] = []
    seen: dict[str, str] = {}
    for id_, place, fields in _raw_rows(data):
        if not isinstance(fields, dict):
            raise ValueError(f"{place}: a {type(fields).__name__}; expected an object with fields")
        fields = {**fields, "_file": re.sub(r":\d+$", "", PurePosixPath(id_).name).split(".")[0]}
        for name, pattern in task.extract.items():
            fields |= _extract(fields, name, pattern, place)
        row = TaskRow(render(task.id, fields, place) if task.id else id_, place, fields)
        if row.id in seen:
            raise ValueError(f"{place}: id {row.id!r} is that of {seen[row.id]} too; expected one id per row")
        seen[row.id] = place
        rows.append(row)
    if not rows:
        raise ValueError(f"{data.origin}: holds no row; task {task.name} has nothing to score")
    return rows


def fingerprint(data: TaskData) -> Any:
    """What the rows depend on, as JSON: hashes of the files, the hub's name and revision, the fields of the world."""
    if data.hub:
        hub = _hub(data)  # of rows as they stand: how SFTData reads conversations is of no account
        return {**hub.identity(), **hub.hold_out.fingerprint()}
    if data.world is not None:
        views = {"probes": data.probes, "documents": data.documents, "pairs": data.pairs}
        return {**data.world.fingerprint(), **views}
    held = data.source if data.source is not None else data.rows
    if held is not None:
        return held.fingerprint()
    read_as = {key: getattr(data, key) for key in READ_AS if getattr(data, key)}
    return {"files": fingerprint_files(find_files("path", str(data.path), SUFFIXES)), **read_as}


def _extract(fields: dict[str, Any], name: str, pattern: str, place: str) -> dict[str, str]:
    text = as_text(look_up(fields, name, place), name, place)
    with bounded(f"{place}: extract.{name} = {pattern!r}"):
        match = re.search(pattern, text, re.DOTALL)
    if match is None:
        raise ValueError(f"{place}: {name} does not match extract.{name} = {pattern!r}")
    return {key: value or "" for key, value in match.groupdict().items()}


def _raw_rows(data: TaskData) -> Iterator[tuple[str, str, Any]]:
    """(id, place, fields) of every row."""
    if data.hub:
        return _hub_rows(data)
    if data.world is not None:
        return ((place, place, fields) for place, fields in world_rows(data))
    source = data.source
    if data.part != "all":
        source = TextFiles(str(data.path), data.separator, cast(Part, data.part), data.validation_share)
    if source is not None:
        name = PurePosixPath(data.origin).name  # wherever the files stand, the ids are the same
        return ((f"{name}:{number}", f"{data.origin}:{number}", {"text": text}) for number, text in source.numbered())
    return _file_rows(data)


# -------------------- the hub


def _hub(data: TaskData) -> HubRows:
    assert data.hub is not None
    assert data.split is not None
    return HubRows(data.hub, data.split, data.config, data.revision, data_dir=data.data_dir)


def _hub_rows(data: TaskData) -> Iterator[tuple[str, str, Any]]:
    for number, (place, row) in enumerate(_hub(data).read(), start=1):
        yield f"{data.config or data.data_dir or data.hub}/{data.split}:{number}", place, row


# -------------------- files


def _file_rows(data: TaskData) -> Iterator[tuple[str, str, Any]]:
    """(id, place, fields) of every row; ids are relative to what the files have in common."""
    files = find_files("path", str(data.path), SUFFIXES)
    for file in files:
        name = file.name if len(files) == 1 else f"{file.parent.name}/{file.name}"
        if file.suffix == ".zip":
            yield from _zip_rows(file, data)
        elif data.member is None or fnmatch(file.as_posix(), f"*{data.member}"):
            if file.suffix == ".parquet":
                require("pyarrow", "a task with .parquet files")
                rows: Iterable[tuple[str, Any]] = read_parquet(file)
            else:
                rows = _parse(file.read_bytes(), str(file), data)
            yield from _numbered(name, rows)


def _zip_rows(file: Path, data: TaskData) -> Iterator[tuple[str, str, Any]]:
    with zipfile.ZipFile(file) as archive:
        names = sorted(n for n in archive.namelist() if fnmatch(n, data.member or "*") and not n.endswith("/"))
        for name in names:
            if not any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(name).parts):
                yield from _numbered(PurePosixPath(name).name, _parse(archive.read(name), f"{file}!{name}", data))


def _numbered(name: str, rows: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, str, Any]]:
    for place, row in rows:
        yield f"{name}:{place.rpartition(':')[2]}", place, row


def _parse(content: bytes, name: str, data: TaskData) -> Iterator[tuple[str, Any]]:
    """The rows of a file's content as (`file:line`, fields)."""
    kind = PurePosixPath(name).suffix
    if kind == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError) as error:
            raise ValueError(f"{name}: cannot be unpacked ({error})") from None
        kind = PurePosixPath(name).with_suffix("").suffix
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not UTF-8 ({error.reason}); expected text in UTF-8") from None
    readers = {".jsonl": _json_lines, ".json": _json_records, ".csv": _csv, ".txt": _documents}
    if kind not in readers:
        raise ValueError(f"{name}: expected a name that ends in one of {', '.join(SUFFIXES)}")
    return readers[kind](text, name, data)


def _json_lines(text: str, name: str, data: TaskData) -> Iterator[tuple[str, Any]]:
    # not splitlines: JSON may hold U+2028 and U+0085 as they are
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield f"{name}:{number}", parse_json(line, f"{name}:{number}")


def _json_records(text: str, name: str, data: TaskData) -> Iterator[tuple[str, Any]]:
    content = parse_json(text, name)
    shared: dict[str, Any] = {}
    if data.records is not None:
        if not isinstance(content, dict) or data.records not in content:
            raise ValueError(f"{name}: no field {data.records!r}; expected an object with the list of rows there")
        shared = {key: value for key, value in content.items() if key != data.records}
        content = content[data.records]
    if not isinstance(content, list):
        raise ValueError(f"{name}: a JSON {type(content).__name__}; expected a list of rows, or `records` to name it")
    for number, row in enumerate(content, start=1):
        yield f"{name}:{number}", {**shared, **row} if isinstance(row, dict) else row


def _csv(text: str, name: str, data: TaskData) -> Iterator[tuple[str, Any]]:
    rows = csv.reader(io.StringIO(text, newline=""))
    columns = list(data.columns) or next(rows, [])
    for number, row in enumerate(rows, start=1):
        if len(row) != len(columns):
            raise ValueError(f"{name}:{number}: {len(row)} columns; expected {len(columns)}: {', '.join(columns)}")
        yield f"{name}:{number}", dict(zip(columns, row, strict=True))


def _documents(text: str, name: str, data: TaskData) -> Iterator[tuple[str, Any]]:
    parts = [text] if data.separator is None else text.split(data.separator)
    for number, part in enumerate(parts, start=1):
        if part.strip():
            yield f"{name}:{number}", {"text": part}
