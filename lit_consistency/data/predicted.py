"""Predictions in the user's terms: which row of which file, its prompt, its answer, and what the model would say.

The tokens on disk know nothing of files and lines, so the rows are read and tokenized once more, which costs little
beside the model; their order, and which of them are dropped, is that of ``write_conversations``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from lit_consistency.data.sft_data import SFTData
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.token_data import TokenData
from lit_consistency.data.tokens.tokenize import tokenize_row
from lit_consistency.data.tokens.tokenizer import Tokenizer

BETWEEN = "\n\n"
"""Between the answers of a row that has several."""
NAMED = 5
"""Rows that are left out and named; the rest is counted."""


class RowName(NamedTuple):
    """A row's own name, or its place where it has none; its place, ``file:line``; how many tokens are cut off."""

    id: str | int
    place: str
    n_cut: int


class Predictions:
    """What is said of each row, or document, that ``predict`` has run on.

    Args:
        data: Set up for ``predict``.
    """

    def __init__(self, data: TokenData) -> None:
        self.tokenizer = data.tokenizer
        self.rows, self.shard = data.opened(data.predicted)
        self.names: list[RowName] = []
        self.left_out: list[str] = []
        part = data.train if data.predicted == "train" else data.validation
        if isinstance(data, SFTData) and isinstance(part, Rows):
            self._read_names(data, part)
        n_documents = len(self.shard.offsets) - 1
        assert len(self.names) in (0, n_documents)

    def _read_names(self, data: SFTData, rows: Rows) -> None:
        encoder = data.encoder()
        for row in rows.rows():
            whole, example, is_learned = tokenize_row(row, encoder, data.block_size, data.too_long)
            if is_learned:
                n_cut = len(whole.tokens) - len(example.tokens)
                self.names.append(RowName(row.place if row.id is None else row.id, row.place, n_cut))
            else:
                self.left_out.append(row.place)

    def line(self, predicted: Mapping[str, Any]) -> tuple[int, dict[str, Any]]:
        """The number of a row among all, and what is written of it.

        Args:
            predicted: As ``LitLanguageModel.predict_step`` gives it.
        """
        numbers = {key: predicted[key] for key in ("nll", "n_tokens", "targets", "greedy")}
        document, first = self.rows.document(predicted["row"], predicted["document"])
        tokens = self.shard.tokens[self.shard.offsets[document] : self.shard.offsets[document + 1]]
        if self.shard.supervised is None:  # a document of pretraining, of which a row may hold a piece
            # a piece of n targets is n + 1 tokens, the first of which is only an input
            text = self.tokenizer.decode_tokens(tokens[first : first + numbers["n_tokens"] + 1].tolist())
            return document, {"document": document, "first_token": first, "text": text, **numbers}
        supervised = self.shard.supervised[self.shard.offsets[document] : self.shard.offsets[document + 1]]
        texts = row_texts(self.tokenizer, tokens, supervised, numbers["greedy"])
        exact = numbers["greedy"] == numbers["targets"]
        return document, {**self.names[document]._asdict(), **texts, "exact": exact, **numbers}

    def summary_line(self) -> str:
        """How many rows there are, and which are left out."""
        if not self.names:
            return f"{len(self.shard.offsets) - 1:,} documents"
        said = f"{len(self.names):,} rows"
        if self.left_out:
            places = ", ".join(self.left_out[:NAMED]) + (", ..." if len(self.left_out) > NAMED else "")
            said += f"; left out, as nothing of them is left to learn: {len(self.left_out):,} ({places})"
        return said


def row_texts(
    tokenizer: Tokenizer, tokens: np.ndarray, supervised: np.ndarray, greedy: Sequence[int]
) -> dict[str, str]:
    """The texts of a row: what stands before the first token that is learned, what is learned, what the model chooses.

    Args:
        tokenizer: Of the model.
        tokens: (T,) of the conversation.
        supervised: (T,) bool; the first token is never learned.
        greedy: The model's first choice at every token that is learned, behind the right tokens before it.
    """
    learned = np.flatnonzero(supervised[1:]) + 1
    ids = tokens.tolist()
    answers, choices = [], []
    for run in np.split(np.arange(len(learned)), np.flatnonzero(np.diff(learned) > 1) + 1):
        before = ids[: learned[run[0]]]
        answers.append(tokenizer.decode_after(before, [ids[i] for i in learned[run]]))
        choices.append(tokenizer.decode_after(before, [greedy[i] for i in run]))
    prompt = tokenizer.decode_tokens(ids[: learned[0]], special=True)
    return {"prompt": prompt, "answer": BETWEEN.join(answers), "first_choice": BETWEEN.join(choices)}
