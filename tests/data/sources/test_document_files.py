"""A folder of text of any kind: which files, what divides their documents, what is said where none are left."""

from __future__ import annotations

import gzip
import logging
from pathlib import Path

import pytest

from lit_consistency.data import DocumentFiles, JsonLines, PretrainData, TextFiles
from lit_consistency.data.sources.separators import guess_separator
from tests.data.helpers import write_jsonl

PARAGRAPHS = [f"Paragraph {i}\nhas two lines." for i in range(120)]


def write(file: Path, text: str) -> Path:
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("texts", "separator"),
    [
        (["one<|endoftext|>two"], "<|endoftext|>"),
        (["one\n\ntwo</s>three\n\nfour"], "</s>"),
        (["a file\n\n\nof many"] * 100, None),
        (["\n\n\n".join(PARAGRAPHS)], "\n\n\n"),
        (["\n\n".join(PARAGRAPHS[:60]), "\n\n".join(PARAGRAPHS[60:])], "\n\n"),
        (["\n\n\n".join(PARAGRAPHS[:20]) + "\n\n" + "\n\n".join(PARAGRAPHS[20:])], "\n\n"),  # chapters are too few
        (["\n\n\n".join("\n\n".join(PARAGRAPHS[i : i + 3]) for i in range(0, 120, 3))], "\n\n\n"),  # 40 articles
        ([" \n".join(f"paragraph {i}\n" for i in range(120))], "\n \n"),
        (["\n".join(f"line {i}" for i in range(200))], "\n"),
        (["\n\n".join(PARAGRAPHS[:12])], "\n\n"),
        (["one line"], None),
    ],
)
def test_the_separator_is_guessed(texts: list[str], separator: str | None, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{i}.txt", text) for i, text in enumerate(texts)]
    assert guess_separator(files)[0] == separator


def test_a_mixed_folder_is_read_each_file_by_its_ending(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(tmp_path / "a.txt", "\n\n".join(PARAGRAPHS))
    write(tmp_path / "b.md", "# heading\n\nwords")
    write_jsonl(tmp_path / "c.jsonl", [{"title": "t", "text": "x"}, {"content": "y"}])
    with gzip.open(tmp_path / "d.jsonl.gz", "wt") as stream:
        stream.write('{"text": "z"}\n')
    with caplog.at_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero"):
        source = DocumentFiles(str(tmp_path))
    (said,) = caplog.messages
    assert "2 files of text, separator: a blank line, by which there are 122 documents" in said
    assert list(source.documents()) == [*PARAGRAPHS, "# heading", "words", "x", "y", "z"]
    assert source.fingerprint() == DocumentFiles(str(tmp_path), separator="\n\n").fingerprint(), (
        "what was guessed counts"
    )
    # each kind as its own class reads it
    assert list(DocumentFiles(str(tmp_path / "b.md"), None).documents()) == list(
        TextFiles(str(tmp_path / "b.md")).documents()
    )
    assert list(DocumentFiles(str(tmp_path / "d.jsonl.gz")).documents()) == list(
        JsonLines(str(tmp_path / "d.jsonl.gz")).documents()
    )


def test_parquet_is_read_too(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"id": [1], "body": ["x"]}), tmp_path / "a.parquet")
    assert list(DocumentFiles(str(tmp_path)).documents()) == ["x"]
    assert list(DocumentFiles(str(tmp_path), field="body").documents()) == ["x"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"title": "x", "date": 3}',
            r"a.jsonl:1: fields 'title', 'date'; expected one of text, content, .* or `field`",
        ),
        ("[1]", r"a.jsonl:1: a list; expected an object with the field 'text'"),
    ],
)
def test_a_row_without_text_is_named(line: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        list(DocumentFiles(str(write(tmp_path / "a.jsonl", line))).documents())


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"path = .*a.csv: expected a file that ends in .txt, "):
        DocumentFiles(str(write(tmp_path / "a.csv", "x")))


def test_where_nothing_is_left_files_documents_separator_and_share_are_named(
    tmp_path: Path, tokenizer_folder: Path
) -> None:
    write(tmp_path / "one.txt", "the day")
    data = PretrainData(DocumentFiles(str(tmp_path / "one.txt")), validation_share=0.02, tokenizer_dir=tokenizer_folder)
    data.cache_dir = tmp_path / "cache"
    message = (
        r"data, validation: nothing to learn from: path = .*one.txt \(1 file, separator = None, field = None\): 1 "
    )
    message += "document, divided by validation_share = 0.02, part validation; expected more, or .* separator or share"
    with pytest.raises(ValueError, match=message):
        data.prepare_data()


def test_one_path_trains_and_validates(tmp_path: Path, tokenizer_folder: Path) -> None:
    write(tmp_path / "all.txt", "\n\n".join(PARAGRAPHS))
    data = PretrainData(
        DocumentFiles(str(tmp_path)), validation_share=0.05, tokenizer_dir=tokenizer_folder, global_batch_size=8
    )
    data.cache_dir = tmp_path / "cache"
    data.setup()
    counts = {name: part["n_documents"] for name, part in data.stats().items()}
    assert counts["train"] + counts["validation"] == len(PARAGRAPHS)
    assert 0 < counts["validation"] < 20
