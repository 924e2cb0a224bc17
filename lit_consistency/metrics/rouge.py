"""ROUGE-L: how much of the longest common subsequence of words two texts share.

P = LCS / words of the prediction, R = LCS / words of the reference, F = 2 P R / (P + R); the best reference counts.
Words are runs of the letters a-z and digits after lower-casing, as in the package rouge_score (the tests compare with
it): other scripts have no words there and score 0. Given up: ROUGE-Lsum, which first splits texts into lines.

Source: Lin 2004, ROUGE: A Package for Automatic Evaluation of Summaries, ACL W04-1013.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from lit_consistency.metrics.generation import check_references

WORD = re.compile(r"[a-z0-9]+")
# rouge_score leaves shorter words as they are
LEAST_STEMMED = 4


def rouge_l(prediction: str, references: Sequence[str], *, stemmer: bool = False) -> float:
    """F of ROUGE-L against the reference that fits best, in [0, 1].

    Args:
        prediction: generated text.
        references: accepted texts.
        stemmer: compare stems of words of more than three letters (Porter's, by nltk, of the extra ``eval``). Off, as
            in lm-evaluation-harness and rouge_score by default; papers on summaries mostly have it on, which scores
            higher.

    Raises:
        ValueError: no references.
        ImportError: ``stemmer`` without nltk.
    """
    check_references(references)
    words = _words(prediction, stemmer)
    return max(_f(words, _words(reference, stemmer)) for reference in references)


def _f(prediction: list[str], reference: list[str]) -> float:
    common = longest_common_subsequence(prediction, reference)
    # 2 P R / (P + R) with P and R written out
    return 2 * common / (len(prediction) + len(reference)) if common else 0.0


def longest_common_subsequence(a: Sequence[str], b: Sequence[str]) -> int:
    """Length of the longest sequence of words that stands in both, in order, with gaps allowed.

    A row of the usual table is kept as the bits of one integer: bit i is 0 where the row grows by one at word i of
    ``a``.
    Source: Hyyrö 2004, Bit-Parallel LCS-length Computation Revisited.
    """
    positions: dict[str, int] = {}
    for i, word in enumerate(a):
        positions[word] = positions.get(word, 0) | 1 << i
    ones = (1 << len(a)) - 1
    row = ones
    for word in b:
        matched = row & positions.get(word, 0)
        row = ((row + matched) | (row - matched)) & ones
    return len(a) - row.bit_count()


def _words(text: str, stemmer: bool) -> list[str]:
    words = WORD.findall(text.lower())
    if not stemmer:
        return words
    stem = _porter().stem
    return [stem(word) if len(word) >= LEAST_STEMMED else word for word in words]


@lru_cache(maxsize=1)
def _porter() -> Any:
    try:
        from nltk.stem.porter import PorterStemmer
    except ImportError as error:
        raise ImportError("stemmer = true needs nltk: pip install 'lit_consistency[eval]'") from error
    return PorterStemmer()
