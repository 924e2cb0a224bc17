"""Where the rows of finetuning come from: the contract of a source of conversations.

Every kind of row becomes the same thing, a list of messages with the place it came from, so that an error can name the file and the row. It gives up
random access, as `sources.py` does.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any, NamedTuple

from tokenizers import Tokenizer


class Row(NamedTuple):
    """One conversation.

    Attributes:
        messages: Turns `{"role": "system" | "user" | "assistant", "content": text}`; at least one is the assistant's.
        place: Where the row stands, `file:line` or `world:index`, for messages to the user.
    """

    messages: list[dict[str, str]]
    place: str


class Rows(ABC):
    """Conversations in a fixed order."""

    @abstractmethod
    def rows(self) -> Iterator[Row]:
        """Yields every row once, in the same order at every call."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the rows depend on: kind, options, files with size and sha256."""

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the rows, or None; used where neither the user nor the model names one."""
        return None
