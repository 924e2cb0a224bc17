"""From text to shards: every document or conversation is tokenized once, as a stream.

Documents and rows are encoded in batches, of many by several processes (many_processes.py); a few batches are in memory
for each. A progress bar tells documents, tokens and time on stderr.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.rows import Conversation, Rows
from lit_consistency.data.tokens.data_text import DataText
from lit_consistency.data.tokens.many_processes import ordered_map
from lit_consistency.data.tokens.prompts import Example, PromptEncoder
from lit_consistency.data.tokens.token_files import ShardWriter
from lit_consistency.data.tokens.tokenizer import Tokenizer

TooLong = Literal["truncate", "refuse"]

# a batch is full by either: enough documents for all cores, and a few megabytes of text at most
BATCH_DOCUMENTS = 1024
BATCH_CHARACTERS = 1 << 22
BATCH_ROWS = 512
"""A template takes up to some milliseconds a row."""


def write_documents(
    folder: Path, source: Source, tokenizer: Tokenizer, label: str, parse_special_tokens: bool = False
) -> None:
    """Writes a source as a shard of whole documents, each ended by EOS.

    Args:
        folder: An empty folder.
        source: The documents.
        tokenizer: Turns text into tokens.
        label: What the progress bar says.
        parse_special_tokens: Whether the text of a special token is the token.
    """
    n_bytes = n_special_text = 0
    data_text = DataText(tokenizer, parse_special_tokens)

    def encode(texts: list[str]) -> _EncodedDocuments:
        documents, n_special = data_text.encode_documents(texts)
        # unsigned and small: between processes they take a tenth of the time of lists of numbers
        arrays = [np.asarray(array("I", tokens)) for tokens in documents]
        return _EncodedDocuments(arrays, n_special, sum(len(text.encode()) for text in texts))

    with ShardWriter(folder, tokenizer.vocab_size, masked=False) as writer, _progress(label) as advance:
        for encoded in ordered_map(encode, _batches(source.documents())):
            for tokens in encoded.documents:
                writer.add(tokens)
            n_special_text += encoded.n_special
            n_bytes += encoded.n_bytes
            advance(len(encoded.documents), writer.n_tokens)
        counts = {"n_bytes": n_bytes, **_if_any(n_special_text=n_special_text, n_blank=source.n_blank)}
        writer.finish({"fingerprint": document_fingerprint(source, tokenizer, parse_special_tokens), **counts})


class _EncodedDocuments(NamedTuple):
    documents: list[np.ndarray]
    n_special: int
    n_bytes: int


def document_fingerprint(source: Source, tokenizer: Tokenizer, parse_special_tokens: bool = False) -> dict[str, Any]:
    """What the tokens of `write_documents` depend on."""
    return {
        "tokens": "documents",
        "tokenizer": tokenizer.fingerprint(),
        "source": source.fingerprint(),
        "parse_special_tokens": parse_special_tokens,
    }


class TokenizedRow(NamedTuple):
    """A row as it is trained on.

    Attributes:
        whole: Tokens and mask of the conversation.
        example: What of them is trained on, at most ``block_size + 1``: the same object where nothing is cut.
        is_learned: Whether anything is left to learn; else the row is dropped.
    """

    whole: Example
    example: Example
    is_learned: bool


def tokenize_row(row: Conversation, encoder: PromptEncoder, block_size: int, too_long: TooLong) -> TokenizedRow:
    """A row as `write_conversations` writes it; arguments and errors as there."""
    whole = encoder.encode(row)
    example = whole
    if len(whole.tokens) > block_size + 1:
        if too_long == "refuse":
            raise ValueError(
                f"{row.place}: {len(whole.tokens)} tokens; expected at most {block_size + 1} (block_size + 1), "
                "or too_long: truncate"
            )
        example = whole._replace(tokens=whole.tokens[: block_size + 1], supervised=whole.supervised[: block_size + 1])
    return TokenizedRow(whole, example, bool(example.supervised[1:].any()))


def write_conversations(
    folder: Path,
    rows: Rows,
    encoder: PromptEncoder,
    tokenizer: Tokenizer,
    block_size: int,
    too_long: TooLong,
    label: str,
) -> None:
    """Writes rows as a shard of conversations with masks, each of 2 to `block_size + 1` tokens.

    Args:
        folder: An empty folder.
        rows: The rows.
        encoder: Turns rows into tokens and masks.
        tokenizer: The encoder's tokenizer.
        block_size: Places of a training row.
        too_long: Cut a longer conversation at its end, or refuse it. A cut one without a supervised token left is
            dropped; both are counted, and so are the rows of every field that is not used, and rows with the text of a
            special token, where it is text.
        label: What the progress bar says.

    Raises:
        ValueError: A row is bad, or too long and refused; names its place.
    """
    counts = {"n_truncated": 0, "n_dropped": 0}
    unused: Counter[str] = Counter()
    n_special_text = 0

    def encode(batch: list[Conversation]) -> list[_EncodedRow]:
        encoded = []
        for row in batch:
            whole, example, is_learned = tokenize_row(row, encoder, block_size, too_long)
            learned = example if is_learned else None
            encoded.append(_EncodedRow(learned, example is not whole, example.special_text, row.unused))
        return encoded

    with ShardWriter(folder, tokenizer.vocab_size, masked=True) as writer, _progress(label) as advance:
        for encoded in ordered_map(encode, _row_batches(rows.rows())):
            for row in encoded:
                counts["n_truncated"] += row.is_cut
                n_special_text += row.special_text
                unused.update(row.unused)
                if row.example is not None:
                    writer.add(row.example.tokens, row.example.supervised)
                else:
                    counts["n_dropped"] += 1
            advance(len(encoded), writer.n_tokens)
        fingerprint = conversation_fingerprint(rows, encoder, tokenizer, block_size, too_long)
        said = {"unused": dict(unused)} if unused else {}
        counts |= _if_any(n_special_text=n_special_text)
        writer.finish({"fingerprint": fingerprint, **said, **counts})


class _EncodedRow(NamedTuple):
    """What is left of a row; its example is None where nothing is learned."""

    example: Example | None
    is_cut: bool
    special_text: bool
    unused: Sequence[str]


def conversation_fingerprint(
    rows: Rows, encoder: PromptEncoder, tokenizer: Tokenizer, block_size: int, too_long: TooLong
) -> dict[str, Any]:
    """What the tokens of `write_conversations` depend on."""
    return {
        "tokens": "conversations",
        "tokenizer": tokenizer.fingerprint(),
        "rows": rows.fingerprint(),
        "prompt_style": encoder.prompt_style,
        "loss_on": encoder.loss_on,
        "block_size": block_size,
        "too_long": too_long,
        "parse_special_tokens": encoder.data_text.parse_special_tokens,
    }


def _if_any(**counts: int) -> dict[str, int]:
    return {key: n for key, n in counts.items() if n}


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    n_characters = 0
    for document in documents:
        batch.append(document)
        n_characters += len(document)
        if len(batch) >= BATCH_DOCUMENTS or n_characters >= BATCH_CHARACTERS:
            yield batch
            batch, n_characters = [], 0
    if batch:
        yield batch


def _row_batches(rows: Iterable[Conversation]) -> Iterator[list[Conversation]]:
    rows = iter(rows)
    while batch := list(islice(rows, BATCH_ROWS)):
        yield batch


class _Advance(Protocol):
    def __call__(self, n_documents: int, n_tokens: int) -> None: ...


@contextmanager
def _progress(label: str) -> Iterator[_Advance]:
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,.0f} documents, {task.fields[tokens]:,} tokens"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(f"Tokenizing {label}", total=None, tokens=0)

        def advance(n_documents: int, n_tokens: int) -> None:
            progress.update(task, advance=n_documents, tokens=n_tokens)

        yield advance
