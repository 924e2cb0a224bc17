from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lit_consistency.data.tokens import tokenize as tokenization
from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.data.tokens.token_files import Shard, open_shard
from lit_consistency.data.tokens.tokenize import (
    conversation_fingerprint,
    document_fingerprint,
    write_conversations,
    write_documents,
)
from lit_consistency.data.tokens.tokenizer import Tokenizer
from tests.data.helpers import ListRows, ListSource, text_of

TEXTS = ["the day", "größer als 日本", "a" * 50, "the answer"]


def documents(shard: Shard, tokenizer: Tokenizer) -> list[str]:
    return [text_of(tokenizer, shard.tokens[a:b]) for a, b in zip(shard.offsets, shard.offsets[1:], strict=False)]


def conversations(folder: Path, tokenizer: Tokenizer, pairs: list[tuple[str, str]], block_size: int) -> Shard:
    rows, encoder = ListRows(pairs), PromptEncoder(tokenizer)
    write_conversations(folder, rows, encoder, tokenizer, block_size, "truncate", "rows")
    shard = open_shard(folder, conversation_fingerprint(rows, encoder, tokenizer, block_size, "truncate"))
    assert shard is not None
    return shard


@pytest.mark.parametrize("batch", [1, 3, 1024])
def test_documents_do_not_depend_on_the_batch(
    batch: int, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenization, "BATCH_DOCUMENTS", batch)
    write_documents(tmp_path, ListSource(TEXTS), tokenizer, "text")
    shard = open_shard(tmp_path, document_fingerprint(ListSource(TEXTS), tokenizer))
    assert shard is not None
    assert documents(shard, tokenizer) == [text + "<|endoftext|>" for text in TEXTS]
    assert shard.meta["n_bytes"] == sum(len(text.encode()) for text in TEXTS)


def test_a_batch_is_full_by_characters_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "BATCH_CHARACTERS", 10)
    batches = list(tokenization._batches(["a" * 4, "b" * 6, "c" * 30, "d"]))
    assert [len(batch) for batch in batches] == [2, 1, 1]


def test_too_long_rows_are_cut_and_counted_and_dropped_without_an_answer(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pairs = [("the day ", "the"), ("x" * 4, "y" * 20), ("z" * 30, "the"), ("", "the day")]
    shard = conversations(tmp_path, tokenizer, pairs, block_size=8)
    assert documents(shard, tokenizer) == ["the day the<|endoftext|>", "xxxxyyyyy", "the day<|endoftext|>"]
    assert (shard.meta["n_truncated"], shard.meta["n_dropped"]) == (2, 1)
    assert np.diff(shard.offsets).max() == 9


def test_a_row_that_just_fits_is_whole(tmp_path: Path, tokenizer: Tokenizer) -> None:
    shard = conversations(tmp_path, tokenizer, [("xxxx", "yyyy")], block_size=8)
    assert documents(shard, tokenizer) == ["xxxxyyyy<|endoftext|>"]
    assert shard.meta["n_truncated"] == 0


def test_too_long_rows_are_refused_by_place(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = ListRows([("the", "day"), ("x" * 20, "y")])
    with pytest.raises(
        ValueError, match=r"list:2: 22 tokens; expected at most 9 \(block_size \+ 1\), or too_long: trunc"
    ):
        write_conversations(tmp_path, rows, PromptEncoder(tokenizer), tokenizer, 8, "refuse", "rows")


def test_every_option_that_changes_tokens_is_in_the_fingerprint(tokenizer: Tokenizer) -> None:
    rows = ListRows([("a", "b")])
    encoders = [PromptEncoder(tokenizer), PromptEncoder(tokenizer, "alpaca"), PromptEncoder(tokenizer, loss_on="all")]
    prints = [conversation_fingerprint(rows, encoder, tokenizer, 8, "truncate") for encoder in encoders]
    prints.append(conversation_fingerprint(rows, encoders[0], tokenizer, 9, "truncate"))
    prints.append(conversation_fingerprint(rows, encoders[0], tokenizer, 8, "refuse"))
    prints.append(conversation_fingerprint(ListRows([("a", "c")]), encoders[0], tokenizer, 8, "truncate"))
    assert all(a != b for i, a in enumerate(prints) for b in prints[:i])
