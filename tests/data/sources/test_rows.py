from __future__ import annotations

import gzip
import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.sources.rows import RowFiles
from tests.data.helpers import write_jsonl

ROWS: list[dict[str, Any]] = [{"question": f"{i}?", "answer": f"{i}."} for i in range(20)]


def test_the_three_file_types_give_the_same_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "a.json").write_text(json.dumps(ROWS))
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    read = [
        [row.messages for row in RowFiles(str(tmp_path / f"a.{kind}")).rows()] for kind in ("jsonl", "json", "parquet")
    ]
    assert read[0] == read[1] == read[2]
    assert read[0][3] == [{"role": "user", "content": "3?"}, {"role": "assistant", "content": "3."}]


def test_tables_and_packed_files_give_the_same_rows(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    lines = "".join(json.dumps(row) + "\n" for row in ROWS).encode()
    cells = [("question", "answer"), *(tuple(row.values()) for row in ROWS)]
    table = "\ufeff" + "".join('"{}","{}"\r\n'.format(*row) for row in cells)
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(lines[:200]) + gzip.compress(lines[200:]))
    (tmp_path / "b.jsonl.zst").write_bytes(arrow.compress(lines, codec="zstd", asbytes=True))
    (tmp_path / "c.csv").write_text(table)
    (tmp_path / "d.tsv").write_text(table.replace('","', '"\t"'))
    (tmp_path / "e.csv.gz").write_bytes(gzip.compress(table.encode()))
    (tmp_path / "f.ndjson").write_bytes(lines)
    files = sorted(tmp_path.iterdir())
    read = [[row.messages for row in RowFiles(str(file)).rows()] for file in files]
    assert len(read) == 6
    assert all(one == read[0] and len(one) == 20 for one in read)
    assert len(list(RowFiles(str(tmp_path)).rows())) == 120


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.jsonl", '{"prompt": "a", "prompt": "b", "completion": "c"}', r"a\.jsonl:1: key 'prompt' occurs twice"),
        ("a.jsonl", '{"messages": [{"role": "user", "role": "x"}]}', r"a\.jsonl:1: key 'role' occurs twice"),
        ("a.json", '{"text": "a"}\n\n{"text": "b"}\n', r"a\.json: a JSON value on each line; .* the ending \.jsonl"),
        ("a.json", '[{"text": "a"}]x', r"a\.json: not JSON"),
        ("a.jsonl", '{"prompt": null, "completion": "c", "x": null}', r"fields 'completion' \(null: 'prompt', 'x'\);"),
        ("a.parquet", "PAR1", r"a\.parquet: cannot be read \(.*\); expected a whole Parquet file"),
    ],
)
def test_a_file_that_would_lose_something_is_refused_by_name(
    tmp_path: Path, name: str, text: str, message: str
) -> None:
    if name.endswith(".parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        list(RowFiles(str(tmp_path / name)).rows())


def test_a_damaged_page_of_parquet_is_refused_by_the_name_of_its_file(tmp_path: Path) -> None:
    """The end of the file, which is read first, is whole."""
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "a.parquet"
    parquet.write_table(arrow.Table.from_pylist(ROWS), file, compression="zstd")
    content = bytearray(file.read_bytes())
    content[4:200] = bytes(196)
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.parquet: cannot be read"):
        list(RowFiles(str(file)).rows())


def test_cells_of_several_lines_and_of_any_length(tmp_path: Path) -> None:
    long = "y" * 200_000
    (tmp_path / "a.csv").write_text(f'prompt,completion,topic\n"a\nb","say ""{long}""",1\n\nc,d,2\n')
    rows = list(RowFiles(str(tmp_path / "a.csv")).rows())
    assert [message["content"] for message in rows[0].messages] == ["a\nb", f'say "{long}"']
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "5"]
    assert rows[1].unused == ("topic",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("prompt,completion\na,b,c\n", "a.csv:2: 3 fields; expected the 2 of the header: prompt, completion"),
        ("prompt,prompt\na,b\n", "a.csv:1: column 'prompt' occurs twice"),
        ('prompt,completion\na,"b\n', "a.csv:2: unexpected end of data; expected rows as a spreadsheet"),
        ("a;b\nx;y\n", "a.csv:2: fields 'a;b'; expected those of"),
    ],
)
def test_a_bad_table_is_named(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        list(RowFiles(str(tmp_path / "a.csv")).rows())


def test_a_damaged_packed_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow = pytest.importorskip("pyarrow")
    lines = json.dumps(ROWS[0]).encode() * 99
    for name, packed in (
        ("a.jsonl.gz", gzip.compress(lines)),
        ("a.jsonl.zst", arrow.compress(lines, codec="zstd", asbytes=True)),
    ):
        for damaged in (packed[:-9], b"no " + packed):
            (tmp_path / name).write_bytes(damaged)
            with pytest.raises(ValueError, match=f"{name}: cannot be unpacked"):
                list(RowFiles(str(tmp_path / name)).rows())
    monkeypatch.setattr("lit_consistency.records.extras.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"a\.jsonl\.zst, a \.zst file, needs the package pyarrow;"):
        RowFiles(str(tmp_path / "a.jsonl.zst"))


def test_columns_name_the_fields_and_a_column_that_no_row_has_is_refused(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "a.jsonl", [{"Q": "1?", "A": "1"}, {"Q": "2?", "A": "2", "S": "Be kind."}]))
    columns = {"prompt": "Q", "completion": "A", "system": "S"}
    assert [len(row.messages) for row in RowFiles(file, columns=columns).rows()] == [2, 3]
    assert RowFiles(file, columns=columns).fingerprint()["columns"] == columns
    with pytest.raises(ValueError, match=r"columns = .*: no row up to .*a\.jsonl:2 has sys"):
        list(RowFiles(file, columns={**columns, "system": "sys"}).rows())


def test_messages_in_parquet_are_read(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    parquet.write_table(arrow.Table.from_pylist([{"messages": messages}]), tmp_path / "a.parquet")
    assert [row.messages for row in RowFiles(str(tmp_path / "a.parquet")).rows()] == [messages]


def test_the_place_of_a_row_counts_lines_from_one(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text("\n" + json.dumps(ROWS[0]) + "\n\n" + json.dumps(ROWS[1]) + "\n")
    assert [row.place for row in RowFiles(str(file)).rows()] == [f"{file}:2", f"{file}:4"]


def test_a_bad_row_in_a_file_is_named(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "a.jsonl", [ROWS[0], {"question": "x", "answer": ""}])
    with pytest.raises(ValueError, match=r"a\.jsonl:2: turn 2: the completion is empty"):
        list(RowFiles(str(file)).rows())


def test_several_answers_to_one_question_are_on_one_side(tmp_path: Path) -> None:
    """Like MetaMath: 600 questions of 1 to 5 answers each, in another order; the share is near what was asked."""
    rows = [{"question": f"{i}?", "answer": f"{k}."} for i in range(600) for k in range(1 + i % 5)]
    random.Random(0).shuffle(rows)
    file = str(write_jsonl(tmp_path / "a.jsonl", rows))
    train, held_out = (
        [row.messages for row in RowFiles(file, part, 0.1).rows()]
        for part in ("train", "validation")  # type: ignore[arg-type]
    )
    assert len(train) + len(held_out) == len(rows)
    questions = [{messages[0]["content"] for messages in part} for part in (train, held_out)]
    assert not questions[0] & questions[1]
    # of the sizes 1 to 5 the mean square is 11: the deviation of a share by questions, in rows
    assert abs(len(held_out) - 0.1 * len(rows)) < 4 * math.sqrt(600 * 11 * 0.1 * 0.9)


def test_tokens_held_out_by_prompt_are_not_those_of_an_old_cache(tmp_path: Path) -> None:
    file = str(write_jsonl(tmp_path / "a.jsonl", ROWS))
    assert RowFiles(file, "train", 0.1).fingerprint()["by"] == "prompt"
    assert "by" not in RowFiles(file).fingerprint()


def test_a_wrong_path_or_type_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="path = .*nothing found"):
        RowFiles(str(tmp_path / "nowhere.jsonl"))
    (tmp_path / "a.pdf").write_text("x")
    with pytest.raises(ValueError, match=r"a\.pdf: expected a file that ends in \.jsonl, \.ndjson, \.json, \.csv"):
        RowFiles(str(tmp_path / "a.pdf"))


def test_json_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: a JSON dict; expected a list of rows"):
        list(RowFiles(str(tmp_path / "a.json")).rows())
