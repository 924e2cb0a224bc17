"""Text of special tokens inside data: text, and not the token.

A tokenizer turns ``<|im_end|>`` into the token wherever it stands, also in the words of a user, of a web page or of a
document about chat formats; the model would then be taught that a turn ends there. So the texts of special tokens are
hidden in the data (``hide``: each is one character of private use) before a prompt style or a template writes its own
around them, and ``encode`` encodes the hidden ones as ordinary text. For that it has a copy of the tokenizer in which
the special tokens are called otherwise: the whole text is encoded at once, as ever. Text without any takes the usual
way. Added tokens that are not special, such as ``<tool_call>`` in Qwen's tokenizers, are words and stay tokens.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import tokenizers

from lit_consistency.data.tokens.tokenizer import Tokenizer

# characters of plane 16, which is for private use, stand for special tokens: in data, and in the copy
HIDDEN, RENAMED = 0x100000, 0x108000
PRIVATE = re.compile(f"[{chr(HIDDEN)}-{chr(0x10FFFD)}]")


class Encoded(NamedTuple):
    """Token ids (T,) int64, and the places (T, 2) of each in the text: its first character, and behind its last."""

    ids: np.ndarray
    places: np.ndarray


class DataText:
    """Encodes text that comes from data.

    Args:
        tokenizer: Of the model.
        parse_special_tokens: Whether the text of a special token in data is the token after all.

    Raises:
        ValueError: ``parse_special_tokens`` with tokenizer.model, which never turns text into a control token.
    """

    def __init__(self, tokenizer: Tokenizer, parse_special_tokens: bool = False) -> None:
        if parse_special_tokens and tokenizer.backend != "huggingface":
            raise ValueError("parse_special_tokens = true: expected tokenizer.json; tokenizer.model parses none")
        self.tokenizer = tokenizer
        self.parse_special_tokens = parse_special_tokens
        special = sorted(tokenizer.special_vocabulary, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, special))) if special else None
        self._hidden = {text: chr(HIDDEN + i) for i, text in enumerate(special)}
        self._renamed = {text: chr(RENAMED + i) for i, text in enumerate(special)}

    def hide(self, value: Any, but: Sequence[str] = ()) -> Any:
        """A text, or the texts of nested lists and mappings, with the texts of special tokens hidden.

        Args:
            value: What comes from data; the same object is returned where nothing is to be hidden.
            but: Texts that are left, such as the tags of a thought where a template reads them.

        Raises:
            ValueError: The data also hold the characters of private use that are needed to hide.
        """
        pattern = self._pattern
        if self.parse_special_tokens or pattern is None or not any(map(pattern.search, _texts(value))):
            return value
        if any(map(PRIVATE.search, _texts(value))):
            raise ValueError(
                "text of a special token beside characters above U+FFFFF (private use); expected one of them"
            )

        def hidden(match: re.Match[str]) -> str:
            return match[0] if match[0] in but else self._hidden[match[0]]

        return _mapped(value, lambda text: pattern.sub(hidden, text))

    def encode(self, text: str) -> Encoded:
        """Tokens of a text in which ``hide`` has been at work, without BOS and EOS; needs tokenizer.json.

        Raises:
            ValueError: The tokenizer knows the text of a special token in no other way than as the token.
        """
        if not PRIVATE.search(text):
            encoding = self.tokenizer.processor.encode(text, add_special_tokens=False)
            return Encoded(np.asarray(encoding.ids, dtype=np.int64), _places(encoding))
        shown, origin = self._renamed_text(text)
        copy, ids_of = self._copy
        encoding = copy.encode(shown, add_special_tokens=False)
        ids = np.asarray([ids_of.get(token, token) for token in encoding.ids], dtype=np.int64)
        own = list(self.tokenizer.special_vocabulary.values())
        if np.isin(ids, own).sum() != len(PRIVATE.findall(shown)):
            raise ValueError("the tokenizer has no tokens but the special one for its text; expected data without it")
        first, behind = _places(encoding).T
        starts = origin[np.minimum(first, len(shown) - 1), 0]
        ends = np.where(behind > first, origin[behind - 1, 1], starts)
        return Encoded(ids, np.stack([starts, ends], axis=1))

    def encode_text(self, text: str, bos: bool | None = None, eos: bool = False) -> list[int]:
        """Token ids of a text in which ``hide`` has been at work; ``bos`` and ``eos`` as of ``Tokenizer.encode``."""
        if not PRIVATE.search(text):
            return self.tokenizer.encode(text, bos=bos, eos=eos).tolist()
        ids = self.tokenizer.opened(self.encode(text).ids.tolist(), bos)
        return [*ids, self.tokenizer.eos_id] if eos and ids[-1:] != [self.tokenizer.eos_id] else ids

    def encode_documents(self, texts: Sequence[str]) -> tuple[list[list[int]], int]:
        """Token ids of whole documents, each with EOS, and how many hold the text of a special token."""
        documents = self.tokenizer.encode_documents(texts)
        hidden = {i: text for i, text in enumerate(map(self.hide, texts)) if text is not texts[i]}
        for i, text in hidden.items():
            documents[i] = [*self.encode_text(text), self.tokenizer.eos_id]
        return documents, len(hidden)

    def _renamed_text(self, text: str) -> tuple[str, np.ndarray]:
        """The text as the copy takes it, and for each of its characters (2,) where it comes from."""
        assert self._pattern is not None
        texts = {character: special for special, character in self._hidden.items()}
        pieces, origin = [], []
        position = 0
        for match in re.finditer(f"{self._pattern.pattern}|{PRIVATE.pattern}", text):
            start, end = match.span()
            piece = texts[match[0]] if match[0] in texts else self._renamed[match[0]]
            pieces += [text[position:start], piece]
            origin += [(i, i + 1) for i in range(position, start)] + [(start, end)] * len(piece)
            position = end
        origin += [(i, i + 1) for i in range(position, len(text))]
        return "".join([*pieces, text[position:]]), np.asarray(origin, dtype=np.int64).reshape(-1, 2)

    @cached_property
    def _copy(self) -> tuple[tokenizers.Tokenizer, dict[int, int]]:
        """The tokenizer with its special tokens renamed, and the ids of the original by those of the copy."""
        state = json.loads(self.tokenizer.processor.to_str())
        state |= {"post_processor": None, "truncation": None, "padding": None}
        added = state["added_tokens"]
        original = [entry["id"] for entry in added]
        for entry in added:
            entry["content"] = self._renamed.get(entry["content"], entry["content"])
        copy = tokenizers.Tokenizer.from_str(json.dumps(state))
        ids = [copy.token_to_id(entry["content"]) for entry in added]
        assert len(set(copy.get_vocab().values())) == len(copy.get_vocab()), "two tokens of the copy have one id"
        return copy, dict(zip(ids, original, strict=True))


def _places(encoding: tokenizers.Encoding) -> np.ndarray:
    return np.asarray(encoding.offsets, dtype=np.int64).reshape(-1, 2)


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, entry in value.items():
            yield from _texts(key)
            yield from _texts(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts(entry)


def _mapped(value: Any, change: Any) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, dict):
        return {_mapped(key, change): _mapped(entry, change) for key, entry in value.items()}
    return [_mapped(entry, change) for entry in value] if isinstance(value, list | tuple) else value
