"""The tokenizer of a folder: LitGPT's ``Tokenizer`` with its identity, texts in batches, and text behind a prompt.

What a text's tokens are depends on the files alone (``model/tokenizer_files.py``), not on the folder's name as in
LitGPT. BOS is put before a text that does not begin with it, so a prompt style or a chat template that writes BOS has
it once; other special tokens of a post-processor are left out. ``vocab_size`` counts added tokens too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import litgpt.tokenizer
import tokenizers
import torch
from filelock import FileLock
from torch import Tensor

from lit_consistency.model.tokenizer_files import (
    adds_bos,
    bos_text,
    chat_template_text,
    read_generation_config,
    read_tokenizer_config,
)
from lit_consistency.records.atomic import new_file
from lit_consistency.records.extras import require
from lit_consistency.records.fingerprints import sha256, sha256_of_text
from lit_consistency.records.model_folder import VOCABULARIES
from lit_consistency.records.shipped import looked_in

# what LitGPT and the chat template read besides tokenizer_config.json; a change in one of them changes the tokens
HASHED_FILES = (*VOCABULARIES, "generation_config.json", "chat_template.jinja")

# what transformers hands to a chat template by these names
SPECIAL = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")

EOS = "<|endoftext|>"
PAD = "<|pad|>"

ANCHOR = 8
"""Tokens of a prompt behind which a continuation is decoded: the spaces of a text depend on its neighbours alone."""
BROKEN = "\ufffd"
"""What bytes decode to that are no whole character; a character of UTF-8 has up to 4 bytes."""


class Tokenizer(litgpt.tokenizer.Tokenizer):
    """LitGPT's tokenizer with its folder.

    Args:
        folder: Holds `tokenizer.json` or `tokenizer.model`, and mostly `tokenizer_config.json`.

    Attributes:
        use_bos: Whether BOS opens a text.
        bos_id: Its token, or None.
        eos_id: The token that ends a document.

    Raises:
        FileNotFoundError: The folder or the tokenizer's file is not there.
        ValueError: The configuration has no `tokenizer_class`, or names no end-of-sequence token; or there is a
            `tokenizer.model` alone and the package sentencepiece is not installed.
    """

    bos_id: int | None
    eos_id: int

    def __init__(self, folder: Path | str) -> None:
        self.folder = Path(folder)
        if not any((self.folder / name).is_file() for name in VOCABULARIES):
            raise FileNotFoundError(
                f"tokenizer_dir = {folder}: expected a folder with tokenizer.json or tokenizer.model{looked_in(folder)}"
            )
        if self.config and "tokenizer_class" not in self.config:  # LitGPT would fail with a bare KeyError
            raise ValueError(
                f"{self.folder / 'tokenizer_config.json'}: no key 'tokenizer_class'; expected the class's name"
            )
        if not (self.folder / "tokenizer.json").is_file():
            require("sentencepiece", f"tokenizer_dir = {folder}: tokenizer.model")
        try:
            super().__init__(self.folder)
        except (Exception, RuntimeError) as error:  # `tokenizers` raises Exception itself
            file = next(self.folder / name for name in VOCABULARIES if (self.folder / name).is_file())
            raise ValueError(f"{file}: cannot be read, expected a whole tokenizer ({error})") from error
        if self.bos_id is None and (bos := bos_text(self.folder)) is not None:
            self.bos_id = self.token_to_id(bos)
        ends: Any = self.eos_id
        if ends is None:
            raise ValueError(
                f"tokenizer_dir = {folder}: expected an eos_token in tokenizer_config.json, documents end by it"
            )
        self.eos_id = ends[0] if isinstance(ends, list) else ends  # generation_config.json may name several

    def check_if_bos_token_used(self, checkpoint_dir: Path) -> bool:
        """By the files; LitGPT's own goes by the folder's name first."""
        return adds_bos(checkpoint_dir)

    @cached_property
    def config(self) -> dict[str, Any]:
        """Contents of tokenizer_config.json, empty without the file."""
        return read_tokenizer_config(self.folder)

    @cached_property
    def vocab_size(self) -> int:
        """One more than the largest token id; LitGPT's own number leaves out added tokens, which a model needs too."""
        if self.backend == "huggingface":
            return max(self.processor.get_vocab(with_added_tokens=True).values()) + 1
        return self.processor.vocab_size()

    def ids_without_token(self, n: int) -> list[int]:
        """Ids below ``n``, the rows of a model, that no token has: those of a padded vocabulary, and gaps in one."""
        if self.backend != "huggingface":
            return list(range(self.vocab_size, n))
        return sorted(set(range(n)) - set(self.processor.get_vocab(with_added_tokens=True).values()))

    @cached_property
    def chat_template(self) -> str | None:
        """The Jinja template of the folder."""
        return chat_template_text(self.folder)

    @cached_property
    def special_texts(self) -> dict[str, str]:
        """Texts of bos_token, eos_token and so on, as far as the configuration names them."""
        named = {f"{key}_token": self.config.get(f"{key}_token") for key in SPECIAL}
        texts = {key: value["content"] if isinstance(value, dict) else value for key, value in named.items()}
        return {key: value for key, value in texts.items() if value is not None}

    @cached_property
    def special_ids(self) -> frozenset[int]:
        """Special tokens, which show nothing in decoded text."""
        if self.backend == "huggingface":
            added = self.processor.get_added_tokens_decoder()
            return frozenset(token for token, entry in added.items() if entry.special)
        return frozenset(token for token in (self.bos_id, self.eos_id) if token is not None)

    @cached_property
    def special_vocabulary(self) -> dict[str, int]:
        """Texts that the tokenizer turns into special tokens wherever they stand, and these; none: tokenizer.model."""
        if self.backend != "huggingface":
            return {}
        added, named = self.processor.get_added_tokens_decoder(), self.special_texts.values()
        return {entry.content: token for token, entry in added.items() if entry.special or entry.content in named}

    @cached_property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end a generation: ``eos_id``, and ``eos_token_id`` of generation_config.json, one or several."""
        more = read_generation_config(self.folder).get("eos_token_id")
        return frozenset({self.eos_id, *(more if isinstance(more, list) else [] if more is None else [more])})

    def fingerprint(self) -> dict[str, Any]:
        """What token ids depend on: the files, the configuration, and the tokens at a text's ends.

        A copy that only states what the original leaves to be found (``copy_tokenizer``) has the same fingerprint.
        """
        files = [self.folder / name for name in HASHED_FILES]
        hashes = {file.name: sha256(file) for file in files if file.is_file()}
        config = {key: value for key, value in self.config.items() if key != "tokenizer_class"}
        config["add_bos_token"] = self.use_bos
        if config.get("bos_token") is None:
            config["bos_token"] = bos_text(self.folder)
        hashes["tokenizer_config.json"] = sha256_of_text(json.dumps(config, sort_keys=True))
        return {"files": hashes, "bos_id": self.bos_id if self.use_bos else None, "eos_id": self.eos_id}

    # -------------------- text to tokens

    def encode(
        self,
        string: str,
        device: torch.device | None = None,
        bos: bool | None = None,
        eos: bool = False,
        max_length: int = -1,
    ) -> Tensor:
        """Token ids (T,) int32 of a text.

        Args:
            string: The text.
            device: Where the ids go.
            bos: Whether BOS opens it; None takes ``use_bos``. A text that begins with BOS is given no second one, and
                keeps its own; LitGPT drops it where ``bos`` is off.
            eos: Whether EOS ends it.
            max_length: Tokens that are kept; -1: all.
        """
        ids = self.encode_batch([string], bos)[0]
        if eos and ids[-1:] != [self.eos_id]:
            ids = [*ids, self.eos_id]
        return torch.tensor(ids[:max_length] if max_length > 0 else ids, dtype=torch.int, device=device)

    def encode_batch(self, texts: Sequence[str], bos: bool | None = None) -> list[list[int]]:
        """Token ids of many texts, in parallel threads; ``bos`` as in ``encode``."""
        if self.backend == "huggingface":
            encodings = self.processor.encode_batch_fast(list(texts), add_special_tokens=False)
            ids = [encoding.ids for encoding in encodings]
        else:
            ids = self.processor.encode(list(texts))
        return [self.opened(tokens, bos) for tokens in ids]

    def opened(self, ids: list[int], bos: bool | None = None) -> list[int]:
        """Token ids with BOS before them where it is asked for and they do not begin with it."""
        if not (self.use_bos if bos is None else bos):
            return ids
        if self.bos_id is None:
            raise ValueError(f"tokenizer_dir = {self.folder}: bos = true: expected a bos_token in the configuration")
        return ids if ids[:1] == [self.bos_id] else [self.bos_id, *ids]

    def encode_documents(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole documents: BOS where the tokenizer adds it, the text, EOS."""
        return [[*tokens, self.eos_id] for tokens in self.encode_batch(texts)]

    # -------------------- tokens to text

    def decode_tokens(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of token ids that stand at the beginning of a text; special tokens show where they are asked for."""
        if self.backend == "huggingface":
            return self.processor.decode(list(tokens), skip_special_tokens=not special)
        return self.processor.decode(list(tokens))

    def anchor(self, before: Sequence[int], special: bool = False) -> list[int]:
        """The last tokens of a text, as many as the decoding of what follows may depend on."""
        shown = [token for token in before if special or token not in self.special_ids]
        for n in range(ANCHOR, ANCHOR + 4):  # from the beginning of a character on
            if not self.decode_tokens(shown[-n:], special).startswith(BROKEN):
                break
        return shown[-n:]

    def decode_after(self, before: Sequence[int], tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens that follow others.

        Decoded alone, a continuation may lose its first space: tokenizers that mark a word's beginning by a space drop
        that of the first word. Both are decoded together, and the text of what stands before is cut off.

        Args:
            before: Tokens before them, or what ``anchor`` keeps of those.
            tokens: The continuation.
            special: Whether special tokens show in the text.
        """
        anchor = self.anchor(before, special)
        while True:
            head, whole = self.decode_tokens(anchor, special), self.decode_tokens([*anchor, *tokens], special)
            # of a character that is completed by the continuation, all belongs to the continuation
            for start in (head, head.rstrip(BROKEN)):
                if whole.startswith(start):
                    return whole[len(start) :]
            # a broken character spoils the bytes before it where bytes are tokens: decode behind other tokens
            anchor = anchor[:-1]


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
