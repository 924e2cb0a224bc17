from __future__ import annotations

import json
import shutil
from pathlib import Path

import litgpt.tokenizer
import pytest
import tokenizers

from lit_consistency.data.tokens.tokenizer import Tokenizer, store_tokenizer, write_tokenizer
from tests.data.helpers import text_of


def test_documents_end_with_eos_and_hold_the_text(tokenizer: Tokenizer) -> None:
    texts = ["the day", "größer 日本", "<|endoftext|> inside", ""]
    for text, tokens in zip(texts, tokenizer.encode_documents(texts), strict=True):
        assert text_of(tokenizer, tokens) == text + "<|endoftext|>"


def test_bos_opens_documents_where_the_configuration_wants_it(tokenizer_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(tokenizer_folder, tmp_path / "bos")
    config = json.loads((tmp_path / "bos" / "tokenizer_config.json").read_text())
    (tmp_path / "bos" / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    with_bos = Tokenizer(tmp_path / "bos")
    assert text_of(with_bos, with_bos.encode_documents(["the day"])[0]) == "<s>the day<|endoftext|>"
    assert with_bos.fingerprint() != Tokenizer(tokenizer_folder).fingerprint()


def test_vocabulary_counts_added_tokens(tokenizer_folder: Path, tmp_path: Path) -> None:
    raw = tokenizers.Tokenizer.from_file(str(tokenizer_folder / "tokenizer.json"))
    before = raw.get_vocab_size()
    raw.add_special_tokens(["<|later|>"])
    write_tokenizer(raw, tmp_path / "grown")
    assert Tokenizer(tmp_path / "grown").vocab_size == before + 1
    assert Tokenizer(tmp_path / "grown").token_to_id("<|later|>") == before


def test_a_written_tokenizer_is_one_for_litgpt(raw_tokenizer: tokenizers.Tokenizer, tmp_path: Path) -> None:
    folder = store_tokenizer(raw_tokenizer, tmp_path)
    assert store_tokenizer(raw_tokenizer, tmp_path) == folder
    plain = litgpt.tokenizer.Tokenizer(folder)
    assert plain.decode(plain.encode("the question")) == "the question"
    assert plain.eos_id == raw_tokenizer.token_to_id("<|endoftext|>")


def test_a_tokenizer_without_end_of_text_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no token <\|endoftext\|>"):
        write_tokenizer(tokenizers.Tokenizer(tokenizers.models.BPE()), tmp_path)


def test_a_wrong_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="tokenizer_dir = .*expected a folder with tokenizer.json"):
        Tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"eos_token": "<|endoftext|>"}, "no key 'tokenizer_class'"),
        ({"tokenizer_class": "PreTrainedTokenizerFast"}, "expected an eos_token in tokenizer_config.json"),
    ],
)
def test_a_configuration_that_lacks_something_is_named(
    tokenizer_folder: Path, tmp_path: Path, config: dict[str, str], message: str
) -> None:
    shutil.copy(tokenizer_folder / "tokenizer.json", tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=message):
        Tokenizer(tmp_path)


def test_chat_template_is_found_in_its_three_places(tokenizer_folder: Path, tmp_path: Path) -> None:
    assert Tokenizer(tokenizer_folder).chat_template is None
    folder = shutil.copytree(tokenizer_folder, tmp_path / "chat")
    config = json.loads((folder / "tokenizer_config.json").read_text())
    several = [{"name": "tool_use", "template": "a"}, {"name": "default", "template": "b"}]
    for template, found in (("text", "text"), (several, "b")):
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": template}))
        assert Tokenizer(folder).chat_template == found
    (folder / "chat_template.jinja").write_text("file")
    assert Tokenizer(folder).chat_template == "file"
