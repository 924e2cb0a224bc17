"""The tokenizer of a folder: LitGPT's `Tokenizer`, its identity, and documents encoded in batches.

LitGPT's class is used as it is, so that what we train on is what `litgpt generate` feeds. Three things are added: the
folder is remembered (the saved model copies its files), `vocab_size` counts added tokens too, and mistakes are told
in words.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import litgpt.tokenizer
import tokenizers
from filelock import FileLock

from lit_consistency.records.atomic import new_file
from lit_consistency.records.fingerprints import sha256, sha256_of_text

# what LitGPT and the chat template read; any change in one of them changes the tokens
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "generation_config.json",
    "chat_template.jinja",
)

EOS = "<|endoftext|>"
PAD = "<|pad|>"


class Tokenizer(litgpt.tokenizer.Tokenizer):
    """LitGPT's tokenizer with its folder.

    Args:
        folder: Holds `tokenizer.json` or `tokenizer.model`, and mostly `tokenizer_config.json`.

    Raises:
        FileNotFoundError: The folder or the tokenizer's file is not there.
        ValueError: The configuration has no `tokenizer_class`, or names no end-of-sequence token.
    """

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
            raise FileNotFoundError(
                f"tokenizer_dir = {folder}: expected a folder with tokenizer.json or tokenizer.model"
            )
        if self.config and "tokenizer_class" not in self.config:  # LitGPT would fail with a bare KeyError
            raise ValueError(
                f"{self.folder / 'tokenizer_config.json'}: no key 'tokenizer_class'; expected the class's name"
            )
        super().__init__(self.folder)
        if self.eos_id is None:
            raise ValueError(
                f"tokenizer_dir = {folder}: expected an eos_token in tokenizer_config.json, documents end by it"
            )

    @cached_property
    def config(self) -> dict[str, Any]:
        """Contents of tokenizer_config.json, empty without the file."""
        file = self.folder / "tokenizer_config.json"
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id; LitGPT's own number leaves out added tokens, which a model needs too."""
        if self.backend == "huggingface":
            return max(self.processor.get_vocab(with_added_tokens=True).values()) + 1
        return self.processor.vocab_size()

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template: chat_template.jinja, or `chat_template` of the configuration (`default`, of several)."""
        file = self.folder / "chat_template.jinja"
        if file.is_file():
            return file.read_text(encoding="utf-8")
        found = self.config.get("chat_template")
        if isinstance(found, list):
            found = {entry["name"]: entry["template"] for entry in found}.get("default")
        return found

    @cached_property
    def special_texts(self) -> dict[str, str]:
        """Texts of bos_token, eos_token, pad_token and unk_token, as far as the configuration names them."""
        named = {key: self.config.get(key) for key in ("bos_token", "eos_token", "pad_token", "unk_token")}
        texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
        return {key: value for key, value in texts.items() if value is not None}

    def fingerprint(self) -> dict[str, Any]:
        """What token ids depend on: the files, and the ids at the ends, for which LitGPT looks at the folder's name."""
        files = [self.folder / name for name in TOKENIZER_FILES]
        hashes = {file.name: sha256(file) for file in files if file.is_file()}
        return {"files": hashes, "bos_id": self.bos_id if self.use_bos else None, "eos_id": self.eos_id}

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole documents: BOS where the model wants it, the text, EOS; in parallel threads."""
        if self.backend == "huggingface":
            ids = [encoding.ids for encoding in self.processor.encode_batch_fast(list(texts), add_special_tokens=False)]
        else:
            ids = self.processor.encode(list(texts))
        start = [self.bos_id] if self.use_bos and self.bos_id is not None else []
        return [[*start, *document, self.eos_id] for document in ids]


def write_tokenizer(tokenizer: tokenizers.Tokenizer, folder: Path) -> None:
    """Writes tokenizer.json and the tokenizer_config.json that LitGPT asks for; `<|endoftext|>` ends a sequence.

    Raises:
        ValueError: The tokenizer has no token `<|endoftext|>`.
    """
    if tokenizer.token_to_id(EOS) is None:
        raise ValueError(f"the data's own tokenizer has no token {EOS}; expected it as the end of sequence")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": EOS}
    if tokenizer.token_to_id(PAD) is not None:
        config["pad_token"] = PAD
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with new_file(folder / "tokenizer.json") as temporary:
        tokenizer.save(str(temporary))


def store_tokenizer(tokenizer: tokenizers.Tokenizer, cache_dir: Path) -> Path:
    """A folder of the cache that holds the tokenizer, named by its content; written where it is not there."""
    name = sha256_of_text(tokenizer.to_str())[:24]
    folder = cache_dir / "tokenizers" / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.parent / f"{name}.lock"):
        if not (folder / "tokenizer.json").is_file():
            write_tokenizer(tokenizer, folder)
    return folder
