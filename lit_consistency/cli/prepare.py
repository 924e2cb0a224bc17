"""``python -m lit_consistency prepare``: a tokenizer of the user's text, to pretrain a model on it from scratch."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lit_consistency.cli.parser import ShortErrors, add_options, command_parser
from lit_consistency.records.model_folder import CONFIG, VOCABULARIES, WEIGHTS

PROGRAM = "python -m lit_consistency"
DESCRIPTION = """\
Train a byte-level BPE tokenizer on text, and write it as LitGPT and transformers read it; pretraining takes it by
--data.init_args.tokenizer_dir. The same text gives the same tokenizer.

  prepare --text my_texts --vocab_size 8192 --to checkpoints/my_tokenizer
  fit --config configs/pretrain.yaml --config configs/pretraining/adamw.yaml --config configs/data/text_files.yaml \\
    --data.init_args.source.init_args.path my_texts --data.init_args.tokenizer_dir checkpoints/my_tokenizer
"""
OPTIONS: tuple[tuple[str, Any, Any, str], ...] = (
    ("text", list[str], [], "files, folders or patterns of .txt, .md, .jsonl and .parquet files, also .gz and .zst"),
    ("vocab_size", int, 8192, "tokens at most, the 256 bytes and <|endoftext|> among them"),
    ("to", Path, None, "the folder to write"),
    ("field", str | None, None, "of .jsonl and .parquet files, the field that holds the text; null: the usual ones"),
)
FLAGS = (("overwrite", "replace a tokenizer that stands there"),)


def parser() -> ShortErrors:
    """The options of the command."""
    command = command_parser("prepare", DESCRIPTION)
    add_options(command, OPTIONS, FLAGS)
    return command


def main(argv: list[str] | None = None) -> None:
    """Run the command; a user's error exits with 2."""
    command = parser()
    given = vars(command.parse_args(argv))
    try:
        _check(given)
        _prepare(given)
    except (ValueError, OSError) as error:
        command.error(str(error))


def _check(given: dict[str, Any]) -> None:
    """Find what is wrong with the options before the slow imports."""
    if not given["text"]:
        raise ValueError("text: expected files or folders of text")
    to = given["to"]
    if to is None:
        raise ValueError("to: expected the folder to write")
    if to.exists() and not to.is_dir():
        raise ValueError(f"to = {to}: is a file; expected a folder")
    if model := next((name for name in (*WEIGHTS, CONFIG) if (to / name).exists()), None):
        raise ValueError(
            f"to = {to}: holds a model ({model}), whose tokens another tokenizer would change; expected a "
            "folder of its own"
        )
    if any((to / name).exists() for name in VOCABULARIES) and not given["overwrite"]:
        raise ValueError(f"to = {to}: holds a tokenizer; name another folder, or give --overwrite to replace it")


def _prepare(given: dict[str, Any]) -> None:
    from lit_consistency.data.sources.documents import DocumentFiles
    from lit_consistency.data.tokens.tokenizer import Tokenizer, write_tokenizer
    from lit_consistency.data.tokens.train_tokenizer import train_tokenizer

    sources = [DocumentFiles(path, field=given["field"]) for path in given["text"]]
    n_documents = n_bytes = 0
    some: list[str] = []  # on which it is shown how long a token is

    def documents() -> Iterator[str]:
        nonlocal n_documents, n_bytes
        for source in sources:
            for text in source.documents():
                n_documents, n_bytes = n_documents + 1, n_bytes + len(text.encode())
                if len(some) < 100:
                    some.append(text[:10_000])
                yield text

    trained = train_tokenizer(documents(), given["vocab_size"])
    if not n_documents:
        raise ValueError(f"text: nothing to learn from: {'; '.join(source.about() for source in sources)}")
    write_tokenizer(trained, given["to"])
    tokenizer = Tokenizer(given["to"])
    n_tokens = sum(map(len, tokenizer.encode_batch(some)))
    print(
        f"{given['to']}: {tokenizer.vocab_size:,} tokens, of {n_documents:,} documents and {n_bytes:,} bytes; "
        f"{sum(len(text.encode()) for text in some) / n_tokens:.2f} bytes a token"
    )
    if tokenizer.vocab_size < given["vocab_size"]:
        print(f"  fewer than vocab_size = {given['vocab_size']:,}: no further pair of tokens occurs twice in this text")
    names = ("pretrain", "pretraining/adamw", "data/text_files")
    configs = " ".join(f"--config configs/{name}.yaml" for name in names)
    print(
        f"\npretrain a small model on it:\n  {PROGRAM} fit {configs}"
        f" --data.init_args.source.init_args.path {shlex.quote(given['text'][0])}"
        f" --data.init_args.tokenizer_dir {shlex.quote(str(given['to']))}"
    )
