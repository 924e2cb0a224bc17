"""Rows of files of every kind."""

from __future__ import annotations

import gzip
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from lit_consistency.data.sources.documents import TextFiles
from lit_consistency.records.fingerprints import fingerprint_of
from lit_consistency.tasks import TaskData, TextTask
from lit_consistency.tasks.rows import fingerprint, read_rows
from tests.tasks.tiny import write_lines

ROWS = [{"q": "a"}, {"q": "b"}]


def rows_of(path: Path | str, **options: Any) -> list[tuple[str, str]]:
    data = TaskData(path=str(path), **options)
    task = TextTask(name="t", data=data, text="{q}")
    return [(row.id, row.fields["q"]) for row in read_rows(task, data)]


def expected(name: str) -> list[tuple[str, str]]:
    return [(f"{name}:1", "a"), (f"{name}:2", "b")]


def test_json_lines_lists_and_records(tmp_path: Path) -> None:
    assert rows_of(write_lines(tmp_path / "x.jsonl", ROWS)) == expected("x.jsonl")
    (tmp_path / "x.json").write_text(json.dumps(ROWS))
    assert rows_of(tmp_path / "x.json") == expected("x.json")
    (tmp_path / "y.json").write_text(json.dumps({"Definition": ["do"], "Instances": ROWS}))
    assert rows_of(tmp_path / "y.json", records="Instances") == expected("y.json")
    (tmp_path / "x.jsonl.gz").write_bytes(gzip.compress((tmp_path / "x.jsonl").read_bytes()))
    assert rows_of(tmp_path / "x.jsonl.gz") == expected("x.jsonl.gz")


def test_csv_with_and_without_a_header(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('q,r\na,"1,\n2"\nb,2\n')
    assert rows_of(tmp_path / "x.csv") == expected("x.csv")
    (tmp_path / "y.csv").write_text("a,1\nb,2\n")
    assert rows_of(tmp_path / "y.csv", columns=("q", "r")) == expected("y.csv")
    (tmp_path / "z.csv").write_text("q,r\na\n")
    with pytest.raises(ValueError, match=r"z\.csv:1: 1 columns; expected 2: q, r"):
        rows_of(tmp_path / "z.csv")


def test_a_zip_gives_the_members_that_are_asked_for(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name in ("data/b.jsonl", "data/a.jsonl", "other/c.jsonl", "__MACOSX/data/a.jsonl"):
            archive.writestr(name, '{"q": "a"}\n{"q": "b"}\n')
    assert rows_of(tmp_path / "x.zip", member="data/*.jsonl") == [*expected("a.jsonl"), *expected("b.jsonl")]


def test_texts_are_divided_and_parquet_is_read(tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text("first\n\n\nsecond\n\n\n \n\n\nthird")
    data = TaskData(path=str(tmp_path / "x.txt"), separator="\n\n\n")
    task = TextTask(name="t", data=data, text="{text}")
    assert [(r.id, r.fields["text"]) for r in read_rows(task, data)] == [
        ("x.txt:1", "first"),
        ("x.txt:2", "second"),
        ("x.txt:4", "third"),
    ]
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "x.parquet")
    assert rows_of(tmp_path / "x.parquet") == expected("x.parquet")


BAD = {
    "bad.jsonl": (b'{"q": "a"}\n{"q"\n', r"bad\.jsonl:2: not JSON"),
    "bad.json": (b'{"q": "a"}', r"bad\.json: a JSON dict; expected a list of rows, or `records`"),
    "list.jsonl": (b"[1]\n", r"list\.jsonl:1: a list; expected an object with fields"),
    "latin.jsonl": (b'{"q": "\xe4"}\n', r"latin\.jsonl: not UTF-8"),
    "empty.jsonl": (b"\n", r"empty\.jsonl: holds no row"),
    "not.jsonl.gz": (b"text", r"not\.jsonl\.gz: cannot be unpacked"),
    "x.xml": (b"<a/>", r"x\.xml: expected a name that ends in one of \.jsonl"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_named_with_its_row(name: str, tmp_path: Path) -> None:
    content, message = BAD[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        rows_of(tmp_path / name)


def test_a_file_that_is_not_there_and_an_id_that_is_there_twice(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nowhere"):
        rows_of(tmp_path / "nowhere.jsonl")
    data = TaskData(path=str(write_lines(tmp_path / "x.jsonl", [{"q": "a"}, {"q": "a"}])))
    task = TextTask(name="t", data=data, text="{q}", id="{q}")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: id 'a' is that of .*x\.jsonl:1 too"):
        read_rows(task, data)


def test_the_fingerprint_is_of_the_content(tmp_path: Path) -> None:
    first = fingerprint(TaskData(path=str(write_lines(tmp_path / "x.jsonl", ROWS))))
    (tmp_path / "other").mkdir()
    assert fingerprint(TaskData(path=str(write_lines(tmp_path / "other" / "x.jsonl", ROWS)))) == first
    assert fingerprint(TaskData(path=str(write_lines(tmp_path / "x.jsonl", ROWS[:1])))) != first


def test_the_same_file_read_in_another_way_has_another_fingerprint(tmp_path: Path) -> None:
    path = tmp_path / "x.txt"
    path.write_text("first\n\nsecond\n\nthird")
    ways: list[dict[str, Any]] = [{}, {"separator": "\n\n"}, {"separator": "\n"}, {"member": "x.*"}]
    ways += [{"part": part, "validation_share": share} for part, share in (("train", 0.3), ("validation", 0.3))]
    ways += [{"part": "validation", "validation_share": 0.4}, {"columns": ("q",)}, {"records": "q"}]
    marks = [fingerprint_of(fingerprint(TaskData(path=str(path), **way))) for way in ways]
    assert len(set(marks)) == len(ways)


def test_a_part_of_a_text_is_what_training_leaves_out(tmp_path: Path) -> None:
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "x.txt").write_text("\n\n".join(f"document {i}" for i in range(40)))
    options: dict[str, Any] = {"separator": "\n\n", "validation_share": 0.3}
    ids, texts = {}, {}
    for part in ("train", "validation"):
        data = TaskData(path=str(tmp_path / "here" / "x.txt"), part=part, **options)
        rows = read_rows(TextTask(name="t", data=data), data)
        expected = TextFiles(str(tmp_path / "here" / "x.txt"), "\n\n", part, 0.3)  # type: ignore[arg-type]
        texts[part] = [row.fields["text"] for row in rows]
        assert texts[part] == list(expected.documents())
        ids[part] = [row.id for row in rows]
        moved = TaskData(path=str(tmp_path / "there" / "x.txt"), part=part, **options)
        assert [row.id for row in read_rows(TextTask(name="t", data=moved), moved)] == ids[part], "wherever it stands"
    assert len(texts["train"]) + len(texts["validation"]) == 40
    assert 0 < len(texts["validation"]) < 40


def test_a_folder_in_the_layout_of_the_hub_is_read_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_lines(tmp_path / "hub" / "english" / "test.jsonl", ROWS)
    write_lines(tmp_path / "hub" / "french" / "test.jsonl", ROWS[:1])
    data = TaskData(hub=str(tmp_path / "hub"), split="test", data_dir="english")
    task = TextTask(name="t", data=data, text="{q}")
    assert [(row.id, row.fields["q"]) for row in read_rows(task, data)] == [
        ("english/test:1", "a"),
        ("english/test:2", "b"),
    ]
    assert fingerprint(data)["n_rows"] == 2
