"""The tokenizer of a world."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from litgpt.tokenizer import Tokenizer as LitTokenizer

from lit_consistency.data.tokens.tokenizer import write_tokenizer
from lit_consistency.data.worlds.vocabulary import EOS_TOKEN, PAD_TOKEN, word_tokenizer

TEXT = "Ana was born in Kelburg. Is it 12 or 7?"


def test_special_tokens_come_first_then_bytes_then_words_in_order() -> None:
    tokenizer = word_tokenizer([TEXT])
    assert tokenizer.token_to_id(PAD_TOKEN) == 0
    assert tokenizer.token_to_id(EOS_TOKEN) == 1
    words = ["ĠAna", "Ġwas", "Ġborn", "Ġin", "ĠKelburg", "ĠIs", "Ġit", "Ġ12", "Ġor", "Ġ7"]
    assert [tokenizer.id_to_token(i) for i in range(258, tokenizer.get_vocab_size())] == words
    assert len({tokenizer.id_to_token(i) for i in range(2, 258)}) == 256
    assert tokenizer.encode(TEXT).tokens == [*words[:5], ".", *words[5:], "?"]


@pytest.mark.parametrize("text", ["Zürich, 東京 & co.\n\n### Response:\n", "ana", "", "a  b", "Kelburgs born"])
def test_foreign_text_falls_into_bytes_and_round_trips(text: str) -> None:
    tokenizer = word_tokenizer([TEXT])
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_a_word_is_the_same_token_at_the_beginning_and_inside() -> None:
    tokenizer = word_tokenizer([TEXT])
    assert tokenizer.encode("Kelburg born").ids == tokenizer.encode(" Kelburg").ids + tokenizer.encode("born").ids


def test_end_of_text_in_a_text_is_the_special_token() -> None:
    tokenizer = word_tokenizer([TEXT])
    assert tokenizer.encode(f"Ana{EOS_TOKEN}Ana").ids == [258, 1, 258]


def test_litgpt_reads_the_folder(tmp_path: Path) -> None:
    tokenizer = word_tokenizer([TEXT])
    write_tokenizer(tokenizer, tmp_path / "new" / "folder")
    read = LitTokenizer(tmp_path / "new" / "folder")
    assert (read.eos_id, read.bos_id, read.use_bos) == (1, None, False)
    assert read.vocab_size == tokenizer.get_vocab_size()
    assert read.encode(TEXT, eos=True).tolist() == [*tokenizer.encode(TEXT).ids, 1]
    assert read.decode(read.encode(TEXT)) == TEXT


def test_transformers_reads_the_folder(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="extra hf is not installed")
    tokenizer = word_tokenizer([TEXT])
    write_tokenizer(tokenizer, tmp_path)
    read = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert read(TEXT)["input_ids"] == tokenizer.encode(TEXT).ids
    assert read.decode(read(TEXT)["input_ids"]) == TEXT
    assert (read.eos_token_id, read.pad_token_id) == (1, 0)


def test_the_same_words_write_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_tokenizer(word_tokenizer([TEXT]), tmp_path / name)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert json.loads((tmp_path / "a" / "tokenizer_config.json").read_text())["eos_token"] == EOS_TOKEN
