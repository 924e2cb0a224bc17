from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import litgpt.tokenizer
import pytest
import sentencepiece
import tokenizers

from lit_consistency.data.tokens.tokenizer import Tokenizer, store_tokenizer, write_tokenizer
from lit_consistency.model import copy_tokenizer
from tests.data.helpers import text_of
from tests.data.tokens.families import llama2_like, llama3_like, metaspace


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


ENDS = [
    (llama3_like, {}, True),
    (llama3_like, {"add_bos_token": False}, False),
    (llama3_like, {"bos_token": None}, True),
    (llama2_like, {}, True),
    (llama2_like, {"add_bos_token": False}, False),
    (llama2_like, {"tokenizer_class": "GemmaTokenizerFast"}, True),
]


@pytest.mark.parametrize(("family", "config", "has_bos"), ENDS)
@pytest.mark.parametrize("name", ["base", "Llama-3-8B", "renamed"])
def test_a_saved_or_renamed_tokenizer_gives_the_tokens_of_its_base_here_and_in_litgpt(
    family: Callable[..., Path], config: dict[str, Any], has_bos: bool, name: str, tmp_path: Path
) -> None:
    base = Tokenizer(family(tmp_path / name, **config))
    (tmp_path / "saved").mkdir()
    copy_tokenizer(base.folder, tmp_path / "saved")
    renamed = (tmp_path / "saved").rename(tmp_path / "tuned")
    bare = base.processor.encode("the day", add_special_tokens=False).ids
    opening = [base.bos_id] if has_bos else []
    assert base.encode("the day").tolist() == opening + bare
    for tokenizer in (Tokenizer(renamed), litgpt.tokenizer.Tokenizer(renamed)):
        for text in ("the day", "", " the\nday é"):
            assert tokenizer.encode(text).tolist() == base.encode(text).tolist()
            assert (
                tokenizer.encode(text, bos=False, eos=True).tolist() == base.encode(text, bos=False, eos=True).tolist()
            )
    assert Tokenizer(renamed).fingerprint() == base.fingerprint()


def test_litgpt_guesses_by_the_name_of_the_folder_and_we_do_not(tmp_path: Path) -> None:
    folders = [llama3_like(tmp_path / name) for name in ("Llama-3-8B", "tuned")]
    assert [litgpt.tokenizer.Tokenizer(folder).use_bos for folder in folders] == [True, False]
    assert [Tokenizer(folder).use_bos for folder in folders] == [True, True]


def test_a_text_that_begins_with_bos_is_given_no_second_one_and_keeps_its_own(tmp_path: Path) -> None:
    for name, config, bos in (("adds", {}, True), ("adds_none", {"add_bos_token": False}, False)):
        tokenizer = Tokenizer(llama3_like(tmp_path / name, **config))
        assert (tokenizer.encode("the day")[0] == tokenizer.bos_id) == bos
        ids = tokenizer.encode("<|begin_of_text|>the day").tolist()
        assert (ids.count(tokenizer.bos_id), ids[0]) == (1, tokenizer.bos_id)


def test_ends_of_a_generation_are_those_of_all_files(tmp_path: Path) -> None:
    folder = llama3_like(tmp_path / "one")
    tokenizer = Tokenizer(folder)
    eos, eot = tokenizer.eos_id, tokenizer.token_to_id("<|eot_id|>")
    assert tokenizer.end_ids == {eos}
    for value in (eot, [eos, eot]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
        assert Tokenizer(folder).end_ids == {eos, eot}
        assert Tokenizer(folder).eos_id == eos
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "eos_token": None}))
    assert Tokenizer(folder).eos_id == eos, "the first of a list is that of documents"


CODE = ["    return x", "  x", "x", " é日 x", "", "\n    x"]


@pytest.mark.parametrize("family", [llama2_like, metaspace, llama3_like])
@pytest.mark.parametrize("prompt", ["def f(x):\n", "def f(x):", "a é", "日" * 9, "x"])
def test_a_continuation_keeps_its_spaces_behind_its_prompt(
    family: Callable[[Path], Path], prompt: str, tmp_path: Path
) -> None:
    tokenizer = Tokenizer(family(tmp_path))
    before = tokenizer.encode(prompt).tolist()
    lost = 0
    for text in CODE:
        whole = tokenizer.encode(prompt + text).tolist()
        assert whole[: len(before)] == before
        tokens = whole[len(before) :]
        assert tokenizer.decode_after(before, tokens) == text
        assert tokenizer.decode_after(tokenizer.anchor(before), tokens) == text
        lost += tokenizer.decode_tokens(tokens) != text
        for n in range(len(tokens)):  # as it grows, up to a character that is not whole yet
            grown = tokenizer.decode_after(before, tokens[:n]).rstrip("\ufffd")
            assert text.startswith(grown) or "\ufffd" in grown
    assert lost == (0 if family is llama3_like else 3), "decoded alone, what begins with a space loses it"


@pytest.mark.parametrize("family", [llama2_like, llama3_like])
def test_a_character_in_two_parts_belongs_to_the_continuation(family: Callable[[Path], Path], tmp_path: Path) -> None:
    tokenizer = Tokenizer(family(tmp_path))
    ids = tokenizer.encode("a日b").tolist()
    n = ids.index(tokenizer.encode("b").tolist()[-1])
    assert tokenizer.decode_after(ids[: n - 1], ids[n - 1 :]) == "日b"


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


def test_a_tokenizer_of_sentencepiece_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It needs a package of the extra `hf`, whose absence is said before LitGPT fails to import it."""
    lines = ["the llama eats the grass of the hill", "and the salt of the sea"] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_prefix=f"{tmp_path}/tokenizer", vocab_size=21, minloglevel=2
    )
    tokenizer = Tokenizer(tmp_path)
    tokens = tokenizer.encode("the llama eats").tolist()
    assert tokenizer.decode_tokens(tokens) == "the llama eats"
    assert tokenizer.ids_without_token(24) == [21, 22, 23]
    monkeypatch.setattr("lit_consistency.records.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"tokenizer.model needs the package sentencepiece; .*lit_consistency\[hf\]"):
        Tokenizer(tmp_path)
