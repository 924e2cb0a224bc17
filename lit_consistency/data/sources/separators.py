"""What stands between the documents of a text file, guessed from a look at the files.

A guess, since a file does not say it: a mark that other tools write between documents settles it; many files are
documents themselves; in few files the widest gap is taken that gives enough documents to hold some of them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lit_consistency.data.sources.files import open_text

MARKS = ("<|endoftext|>", "<|end_of_text|>", "</s>")
"""Ends of documents as GPT-2 (and TinyStories), Llama 3 and older sentencepiece models write them."""
GAPS = {"\n\n\n": "two blank lines", "\n\n": "a blank line", "\n": "the end of a line"}
ENOUGH = (100, 10)
"""Documents that are wanted, first of all and at least: of 100, a twentieth that is held out is hardly ever none."""
FILES, CHARACTERS = 16, 1 << 20
"""How many files are looked at, spread over all, and how much of each, from its beginning."""


def guess_separator(files: Sequence[Path]) -> tuple[str | None, str]:
    """The separator, None where a file is a document, and in words what it is and why.

    Args:
        files: Of text; at least one.

    Raises:
        ValueError: One of those that are looked at is not text in UTF-8.
    """
    texts = [_beginning(file) for file in files[:: -(-len(files) // FILES)]]
    for mark in MARKS:
        if any(mark in text for text in texts):
            return mark, f"{mark}, which stands in them"
    if len(files) >= ENOUGH[0]:
        return None, f"none, a file is a document: there are {len(files):,}"
    for enough in ENOUGH:
        for gap, words in GAPS.items():
            n_documents = sum(bool(piece.strip()) for text in texts for piece in text.split(gap))
            if n_documents >= enough:
                return gap, f"{words}, by which there are {n_documents:,} documents in what was looked at"
    return None, "none, a file is a document: no gap gives more than a few"


def _beginning(file: Path) -> str:
    with open_text(file) as stream:
        return stream.read(CHARACTERS)
