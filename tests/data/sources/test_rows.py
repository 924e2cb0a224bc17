from __future__ import annotations

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
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(ValueError, match=r"a\.csv: expected a file that ends in \.jsonl, \.json, \.parquet"):
        RowFiles(str(tmp_path / "a.csv"))


def test_json_that_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    with pytest.raises(ValueError, match=r"a\.json: a JSON dict; expected a list of rows"):
        list(RowFiles(str(tmp_path / "a.json")).rows())
