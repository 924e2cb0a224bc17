"""Where the text of pretraining comes from: the contract of a source of documents.

A source hands out documents one by one and says, by its fingerprint, which ones they are; it knows nothing of tokens. It gives up random access:
documents are read once, in order, when the tokens are written to disk (`shards.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from typing import Any

from tokenizers import Tokenizer


class Source(ABC):
    """Documents of text in a fixed order."""

    @abstractmethod
    def documents(self) -> Iterator[str]:
        """Yields every document once, in the same order at every call."""

    @abstractmethod
    def fingerprint(self) -> dict[str, Any]:
        """Says in JSON what the documents depend on: kind, options, files with size and sha256."""

    def default_tokenizer(self) -> Tokenizer | None:
        """The tokenizer that belongs to the text, or None; used where neither the user nor the model names one."""
        return None
