"""What ``predict`` says of rows: the user's own names and texts, however the rows are packed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lit_consistency.data import PretrainData, RowFiles, SFTData
from lit_consistency.data.predicted import Predictions
from lit_consistency.data.token_data import TokenData
from tests.data.helpers import ListSource, write_jsonl

ROWS: list[dict[str, Any]] = [
    {"prompt": "the question", "completion": " the answer", "id": "first"},
    {"prompt": "z" * 40, "completion": "nothing of it is left", "id": "lost"},
    {"prompt": "the day", "completion": " größer", "idx": 7},
    {"prompt": "the", "completion": "y" * 60},
    {
        "messages": [
            {"role": "user", "content": "and"},
            {"role": "assistant", "content": " one"},
            {"role": "user", "content": "or"},
            {"role": "assistant", "content": " two"},
        ]
    },
]


def lines(data: TokenData, choice: int | None = None) -> tuple[list[dict[str, Any]], str]:
    """The lines for a model that chooses every right token, or one token everywhere."""
    data.setup("predict")
    predictions = Predictions(data)
    written = []
    for i in range(len(predictions.rows)):
        row = predictions.rows[i]
        for document in np.unique(row.documents):
            targets = row.targets[(row.documents == document) & (row.targets != -100)].tolist()
            greedy = targets if choice is None else [choice] * len(targets)
            predicted = {"row": i, "document": int(document), "nll": 1.0, "n_tokens": len(targets)}
            written.append(predictions.line({**predicted, "targets": targets, "greedy": greedy}))
    return [line for _, line in sorted(written, key=lambda pair: pair[0])], predictions.summary_line()


@pytest.mark.parametrize("packing", [True, False])
def test_a_row_is_called_by_its_own_name_and_texts(packing: bool, tokenizer_folder: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", ROWS)
    data = SFTData(RowFiles(str(file)), tokenizer_dir=tokenizer_folder, block_size=32, packing=packing)
    data.cache_dir = tmp_path / "cache"
    said, summary = lines(data)
    assert [line["id"] for line in said] == ["first", 7, f"{file}:4", f"{file}:5"]
    assert [line["place"] for line in said] == [f"{file}:{number}" for number in (1, 3, 4, 5)]
    assert [line["prompt"] for line in said] == ["the question", "the day", "the", "and"]
    kept = said[2]["answer"]
    assert set(kept) == {"y"}
    assert said[2]["n_cut"] == 61 - len(kept), "61: the end of the row is cut too"
    assert [line["answer"] for line in said] == [" the answer", " größer", kept, " one\n\n two"]
    assert all(line["first_choice"] == line["answer"] and line["exact"] for line in said)
    assert summary == f"4 rows; left out, as nothing of them is left to learn: 1 ({file}:2)"
    other = data.tokenizer.encode("x").tolist()[0]
    said, _ = lines(data, choice=other)
    assert said[0]["first_choice"] == "x" * said[0]["n_tokens"]
    assert not said[0]["exact"]


def test_pieces_of_a_document_are_told_apart(tokenizer_folder: Path, tmp_path: Path) -> None:
    texts = ["the question and the answer of the day", "and", "z" * 20]
    data = PretrainData(ListSource(texts), tokenizer_dir=tokenizer_folder, block_size=8, cache_dir=tmp_path / "cache")
    said, summary = lines(data)
    assert summary == "3 documents"
    tokenizer = data.tokenizer
    for number, text in enumerate(texts):
        pieces = [line for line in said if line["document"] == number]
        tokens = [*tokenizer.encode(text).tolist(), tokenizer.eos_id]
        assert sorted(target for piece in pieces for target in piece["targets"]) == sorted(tokens[1:])
        for piece in pieces:
            start = piece["first_token"]
            assert piece["targets"] == tokens[start + 1 : start + 1 + piece["n_tokens"]]
            assert piece["text"] == tokenizer.decode_tokens(tokens[start : start + piece["n_tokens"] + 1])


def test_a_column_map_names_the_rows(tokenizer_folder: Path, tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [{"q": "the", "a": "day", "key": 3}])
    rows = RowFiles(str(file), columns={"prompt": "q", "completion": "a", "id": "key"})
    assert [row.id for row in rows.rows()] == [3]
    assert [row.unused for row in rows.rows()] == [()]
