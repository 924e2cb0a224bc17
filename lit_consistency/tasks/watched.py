"""What is watched during a run: sets of items whose loss or accuracy tells what was learned and what was forgotten.

A set turns files, rows or a synthetic world into items; an item is a question with candidate answers (a text has one
candidate, itself). Scoring stands in evaluation/, the numbers in metrics/. Items are made once, at the start of the
run.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from litgpt.tokenizer import Tokenizer
from torch import Tensor, nn

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Row, Rows
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.prompts import PromptEncoder
from lit_consistency.inference.items import Candidate, Item, text_bytes


class Prepared(ABC):
    """A watched set read and tokenized for one model: measured again and again during a run.

    Attributes:
        metric: the number by which the set is judged, one of those that ``measure`` returns.
        items: questions with their right answers, at which the KL divergence from the base is taken.
    """

    metric: str
    items: list[Item]

    @property
    def chance(self) -> float:
        """Share of right answers by guessing among the candidates; 0 where the metric counts no choices."""
        if "accuracy" not in self.metric:
            return 0.0
        return sum(1 / len(item.candidates) for item in self.items) / len(self.items)

    @abstractmethod
    def measure(self, model: nn.Module, *, batch_tokens: int, device: torch.device) -> dict[str, float]:
        """The set's numbers by name, the same on every rank; every rank calls it.

        Args:
            model: in evaluation mode.
            batch_tokens: budget of tokens in one forward.
            device: where the model is.
        """


class WatchedSet(ABC):
    """A named set of items. ``metric`` is the number by which it is judged: ``loss`` or ``accuracy`` or ``exact``."""

    metric: str = "loss"

    def prepare(self, tokenizer: Tokenizer, context: int) -> Prepared | None:
        """The set with a measurement of its own, for a model that reads ``context`` tokens; None: items are scored."""
        return None

    @abstractmethod
    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """The items, in a fixed order; a candidate is at most ``block_size + 1`` tokens long."""

    def truth(self, tokenizer: Tokenizer) -> Tensor | None:
        """True log-probabilities (P, V) at the P supervised positions, where a world knows them."""
        return None


@dataclass
class RetainData:
    """Any number of named sets, watched for learning or for forgetting.

    Args:
        sets: name -> set; the name becomes ``learn/NAME`` or ``retain/NAME`` and ``forget/NAME`` in TensorBoard.
    """

    sets: dict[str, WatchedSet]

    def __post_init__(self) -> None:
        for name in self.sets:
            if not name or not name.replace("_", "").replace("-", "").isalnum():
                raise ValueError(f"sets: name {name!r}: expected letters, digits, '_' and '-' only")


class TextSet(WatchedSet):
    """Loss of held-out text: nats per token and bits per byte.

    Args:
        source: where the documents come from.
        max_bytes: how much text is scored, in UTF-8 bytes; the last document is cut there.
    """

    def __init__(self, source: Source, max_bytes: int = 100_000) -> None:
        check_positive("max_bytes", max_bytes)
        self.source = source
        self.max_bytes = max_bytes

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """Windows of ``block_size`` scored tokens; each window sees the last token of the one before it.

        The first token of a document has no context: it is not scored, and its bytes (``text_bytes``) do not count.
        """
        found = []
        for text in self._texts():
            tokens = np.asarray(tokenizer.encode(text, bos=False), dtype=np.int64)
            n_bytes = max(len(text.encode()) - text_bytes(tokenizer, tokens[:1]), 0)
            for start in range(0, len(tokens) - 1, block_size):
                window = tokens[start : start + block_size + 1]
                supervised = np.ones(len(window), dtype=bool)
                supervised[0] = False
                # bytes are summed over the whole set, so a document's bytes may all stand in its first window
                found.append(Item([Candidate(window, supervised, n_bytes if start == 0 else 0)], gold=0))
        return not_empty(found, f"{self.source.fingerprint()}")

    def _texts(self) -> Iterator[str]:
        left = self.max_bytes
        for text in self.source.documents():
            piece = text.encode()[:left].decode(errors="ignore")
            left -= len(piece.encode())
            if piece:
                yield piece
            if left <= 0 or len(piece) < len(text):
                return


class RowSet(WatchedSet):
    """Loss on the completions of instruction rows, and the share of completions predicted token by token.

    Args:
        rows: where the rows come from.
        prompt_style: as in SFTData; must be the style of the training rows to be comparable.
        max_rows: how many rows are scored.
        metric: the number by which the set is judged.
    """

    def __init__(self, rows: Rows, prompt_style: str = "default", max_rows: int = 200, metric: str = "loss") -> None:
        check_positive("max_rows", max_rows)
        check_choice("metric", metric, ("loss", "exact"))
        self.rows = rows
        self.prompt_style = prompt_style
        self.max_rows = max_rows
        self.metric = metric

    def items(self, tokenizer: Tokenizer, block_size: int) -> list[Item]:
        """One item a row; a row longer than the context is cut at its end, one without an answer left is skipped.

        The bytes of a row are those of its answers; of a row that is cut, those of the tokens that are left.
        """
        encoder = PromptEncoder(tokenizer, self.prompt_style)
        found = []
        for row in self.rows.rows():
            example = encoder.encode(row)
            tokens, supervised = example.tokens[: block_size + 1], example.supervised[: block_size + 1]
            if supervised[1:].any():
                cut = len(tokens) < len(example.tokens)
                n_bytes = text_bytes(tokenizer, tokens[1:][supervised[1:]]) if cut else _answer_bytes(row)
                found.append(Item([Candidate(tokens, supervised, n_bytes)], gold=0))
            if len(found) == self.max_rows:
                break
        return not_empty(found, f"{self.rows.fingerprint()}")


def held_out_set(data: TokenData) -> WatchedSet:
    """The held-out part of the training data as a set whose loss is watched, rows in the prompt style of training.

    Raises:
        ValueError: nothing is held out.
    """
    held_out = data.validation
    if held_out is None:
        raise ValueError("data.validation = null: expected what is held out, it is to be watched")
    return (
        TextSet(held_out)
        if isinstance(held_out, Source)
        else RowSet(held_out, getattr(data, "prompt_style", "default"))
    )


def _answer_bytes(row: Row) -> int:
    return sum(len(message["content"].encode()) for message in row.messages if message["role"] == "assistant")


def not_empty(items: list[Item], origin: str) -> list[Item]:
    """The items, or a ValueError that names where they should have come from."""
    if not items:
        raise ValueError(f"nothing to score in {origin}: every document is empty or too short")
    return items


def check_positive(key: str, value: int) -> None:
    """ValueError unless the value is at least 1."""
    if value < 1:
        raise ValueError(f"{key} = {value}: expected at least 1")


def check_choice(key: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless the value is one of those allowed."""
    if value not in allowed:
        raise ValueError(f"{key} = {value!r}: expected one of {', '.join(allowed)}")
