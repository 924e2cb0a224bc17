from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from lit_consistency.data.sources.documents import HeldOutDocuments, JsonLines, Parquet, TextFiles
from tests.data.helpers import write_jsonl


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "Texte und Bücher"
    (folder / "sub").mkdir(parents=True)
    (folder / "b.txt").write_text("second", encoding="utf-8")
    (folder / "a.txt").write_text("first\n\n\nthird\n\n\n \n\n\n", encoding="utf-8")
    (folder / "sub" / "c.txt").write_text("größer", encoding="utf-8")
    (folder / ".hidden").write_bytes(b"\xff")
    return folder


def test_a_file_is_a_document(folder: Path) -> None:
    assert list(TextFiles(str(folder / "b.txt")).documents()) == ["second"]


def test_a_folder_is_read_with_its_subfolders_in_order(folder: Path) -> None:
    source = TextFiles(str(folder), separator="\n\n\n")
    assert list(source.documents()) == ["first", "third", "second", "größer"]


def test_a_folder_says_which_of_its_files_it_leaves_out(folder: Path) -> None:
    (folder / "sub" / "ignored.pdf").write_bytes(b"\xff")
    with pytest.warns(UserWarning, match=r"leaves out 1 file, not ending in \.txt, .*: sub/ignored\.pdf$"):
        assert len(list(TextFiles(str(folder)).documents())) == 3
    for i in range(6):
        (folder / f"{i}.csv").touch()
    with pytest.warns(UserWarning, match=r"leaves out 7 files, .*: 0\.csv, 1\.csv, 2\.csv, 3\.csv, 4\.csv and 2 more$"):
        TextFiles(str(folder))


@pytest.mark.parametrize(("separator", "n"), [(None, 11), (None, 41), ("|", 11)])
def test_a_document_too_long_for_memory_is_refused_by_its_file(
    separator: str | None, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_consistency.data.sources.files.LONGEST", 10)
    file = tmp_path / "a.txt"
    file.write_text("x" * 10 + ("|" if separator else ""))
    assert list(TextFiles(str(file), separator).documents()) == ["x" * 10]
    file.write_text("x" * n)
    with pytest.raises(ValueError, match=r"a.txt: more than 10 characters .*; expected .*stands between its documents"):
        list(TextFiles(str(file), separator).documents())


def test_packed_text_is_read(folder: Path) -> None:
    with gzip.open(folder / "d.txt.gz", "wt", encoding="utf-8") as stream:
        stream.write("größer")
    assert list(TextFiles(str(folder / "d.txt.gz")).documents()) == ["größer"]


def test_a_pattern_chooses_files(folder: Path) -> None:
    assert list(TextFiles(str(folder / "**" / "[bc].txt")).documents()) == ["second", "größer"]


def test_separator_across_blocks_of_reading(tmp_path: Path) -> None:
    parts = ["a" * ((1 << 24) - 1), "b" * 10, "c"]
    (tmp_path / "long.txt").write_text("|-|".join(parts))
    assert list(TextFiles(str(tmp_path / "long.txt"), separator="|-|").documents()) == parts


def test_json_lines_and_parquet_give_the_same_documents(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = ["one", "zwei ü", "three"]
    write_jsonl(tmp_path / "a.jsonl", [{"body": text, "n": 1} for text in texts])
    parquet.write_table(arrow.table({"body": texts, "n": [1, 2, 3]}), tmp_path / "a.parquet")
    assert list(JsonLines(str(tmp_path / "a.jsonl"), field="body").documents()) == texts
    assert list(Parquet(str(tmp_path / "a.parquet"), field="body").documents()) == texts


def test_parts_are_disjoint_and_whole(folder: Path) -> None:
    parts = [
        set(TextFiles(str(folder), "\n\n\n", part=part, validation_share=0.5).documents())
        for part in ("train", "validation")
    ]
    assert parts[0] | parts[1] == {"first", "second", "third", "größer"}
    assert not parts[0] & parts[1]


def test_fingerprint_follows_content_and_options_and_not_the_place(folder: Path) -> None:
    first = TextFiles(str(folder)).fingerprint()
    assert TextFiles(str(folder), separator="\n").fingerprint() != first
    assert TextFiles(str(folder), part="train", validation_share=0.1).fingerprint() != first
    moved = folder.rename(folder.parent / "moved")
    assert TextFiles(str(moved)).fingerprint() == first
    status = (moved / "b.txt").stat()
    (moved / "b.txt").write_text("SECOND")
    os.utime(moved / "b.txt", ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert TextFiles(str(moved)).fingerprint() != first


@pytest.mark.parametrize("source", [TextFiles, JsonLines, Parquet])
def test_a_wrong_path_is_refused_at_once(source: type, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"path = .*nowhere.*expected an existing file or folder"):
        source(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="expected a folder that holds"):
        source(str(tmp_path / "empty"))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"txt": "x"}', r"a.jsonl:2: no field 'text'; it has 'txt'"),
        ('{"text": 5}', r"a.jsonl:2: text is a int; expected text"),
        ("[1]", r"a.jsonl:2: a list; expected an object"),
        ("{", r"a.jsonl:2: not JSON"),
        ("[" * 100_000, r"a.jsonl:2: not JSON \(maximum recursion"),
        ('{"text": ' + "9" * 5000 + "}", r"a.jsonl:2: not JSON \(Exceeds the limit"),
        ('{"text": "\\ud800"}', r"a.jsonl:2: text holds half a character"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "fine"}\n' + line + "\n")
    with pytest.raises(ValueError, match=message):
        list(JsonLines(str(tmp_path / "a.jsonl")).documents())


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"body": ["x"]}), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="no column 'text'; expected one of body"):
        list(Parquet(str(tmp_path / "a.parquet")).documents())


def test_parquet_without_pyarrow_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lit_consistency.records.extras.find_spec", lambda module: None)
    with pytest.raises(ValueError, match=r"Parquet needs the package pyarrow.*lit_consistency\[hf\]"):
        Parquet(str(tmp_path))


def test_text_that_is_not_utf8_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.txt").write_bytes("größer".encode("latin-1"))
    for separator in (None, "\n"):
        with pytest.raises(ValueError, match=r"latin.txt: not UTF-8"):
            list(TextFiles(str(tmp_path / "latin.txt"), separator=separator).documents())


def test_an_empty_separator_is_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match="separator = '': expected at least one character"):
        TextFiles(str(folder), separator="")


def test_documents_of_white_space_are_left_out_and_counted(folder: Path) -> None:
    source = TextFiles(str(folder), separator="\n\n\n")
    whole = HeldOutDocuments(source, "train", 0.5)
    for _ in range(2):  # of the latest pass, not of all
        assert len(list(source.documents())) == 4
        list(whole.documents())
        assert source.n_blank == whole.n_blank == 1
