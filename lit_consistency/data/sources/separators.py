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
GAPS = {
    "\n\n\n": ("two blank lines", 30),  # between books, articles, stories: few and long ones are documents too
    "\n\n": ("a blank line", 100),
    "\n \n": ("a line of one space", 100),  # between the paragraphs of WikiText
    "\n": ("the end of a line", 100),
}
"""Gap -> what it is, and how many documents it must give: of 30, a tenth that is held out is seldom none (4%)."""
AT_LEAST = 10
"""Documents, where no gap gives as many."""
MANY_FILES = 100
FILES, CHARACTERS = 16, 1 << 26
"""How many files are looked at, spread over all, and how much of all, of each from its beginning."""


def guess_separator(files: Sequence[Path]) -> tuple[str | None, str]:
    """The separator, None where a file is a document, and in words what it is and why.

    Args:
        files: Of text; at least one.

    Raises:
        ValueError: One of those that are looked at is not text in UTF-8.
    """
    looked_at = files[:: -(-len(files) // FILES)]
    texts = [_beginning(file, CHARACTERS // len(looked_at)) for file in looked_at]
    for mark in MARKS:
        if any(mark in text for text in texts):
            return mark, f"{mark}, which stands in them"
    if len(files) >= MANY_FILES:
        return None, f"none, a file is a document: there are {len(files):,}"
    gives = {gap: sum(bool(piece.strip()) for text in texts for piece in text.split(gap)) for gap in GAPS}
    enough = [gap for gap, (_, wanted) in GAPS.items() if gives[gap] >= wanted]
    for gap in enough or [gap for gap in GAPS if gives[gap] >= AT_LEAST]:
        return gap, f"{GAPS[gap][0]}, by which there are {gives[gap]:,} documents in what was looked at"
    return None, "none, a file is a document: no gap gives more than a few"


def _beginning(file: Path, characters: int) -> str:
    with open_text(file) as stream:
        return stream.read(characters)
