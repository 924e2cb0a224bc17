"""Real rows and text; set LIT_CONSISTENCY_TEST_DATA to a folder that holds text/, sft/ and tokenizers/."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from lit_consistency.data import JsonLines, PretrainData, RowFiles, SFTData, TextFiles
from tests.data.helpers import text_of

pytestmark = pytest.mark.shared


@pytest.fixture(scope="module")
def root() -> Path:
    folder = Path(os.environ.get("LIT_CONSISTENCY_TEST_DATA", ""))
    if "LIT_CONSISTENCY_TEST_DATA" not in os.environ or not folder.is_dir():
        pytest.skip("LIT_CONSISTENCY_TEST_DATA is not set to a folder")
    return folder


def test_every_row_of_gsm8k_is_its_question_and_answer(root: Path) -> None:
    rows = RowFiles(str(root / "sft" / "gsm8k" / "test.jsonl"))
    tokenizer_dir = root / "tokenizers" / "bpe4096"
    data = SFTData(rows, tokenizer_dir=tokenizer_dir, packing=False, micro_batch_size=4, global_batch_size=4)
    data.setup()
    stats = data.stats()["train"]
    assert (stats["n_documents"], stats["n_dropped"]) == (1319, 0)
    shard = data._shards["train"]
    first = slice(0, shard.offsets[1])
    question, answer = (message["content"] for message in next(rows.rows()).messages)
    assert text_of(data.tokenizer, shard.tokens[first]) == f"{question}{answer}<|endoftext|>"
    assert shard.supervised is not None
    assert text_of(data.tokenizer, shard.tokens[first][shard.supervised[first]]) == f"{answer}<|endoftext|>"


@pytest.mark.parametrize("name", ["dolly_1k/*.jsonl", "metamath_pmc/*.jsonl", "gpteacher/*.json"])
def test_rows_of_other_kinds_are_detected(root: Path, name: str) -> None:
    rows = list(RowFiles(str(root / "sft" / name)).rows())
    assert len(rows) >= 500
    assert all(row.messages[-1]["role"] == "assistant" for row in rows)


def test_text_comes_back_from_its_tokens(root: Path) -> None:
    source = TextFiles(str(root / "text" / "wikitext2" / "wiki.test.txt"))
    data = PretrainData(source, tokenizer_dir=root / "tokenizers" / "bpe4096", block_size=256)
    data.setup()
    shard = data._shards["train"]
    assert text_of(data.tokenizer, shard.tokens[:-1]) == next(source.documents())
    assert np.array_equal(shard.tokens[-1:], [data.tokenizer.eos_id])


def test_facts_are_json_lines(root: Path) -> None:
    with pytest.raises(ValueError, match=r"facts\.jsonl:1: no field 'text'"):
        next(JsonLines(str(root / "text" / "factbook" / "facts.jsonl")).documents())
