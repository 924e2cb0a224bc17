"""The suite: sets that lie in the package, by which a run is watched where it names none of its own.

``suite.yaml`` holds eight tasks: text of three kinds, minimal pairs, facts, arithmetic, JSON and orders; the ninth set,
``own_samples``, has no data: its texts are written by the base itself (own_samples.py). Where the rows come from stands
in data/SOURCES.md.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from lit_consistency.data.tokens.tokenizer import Tokenizer

NAME = "suite"
FILE = Path(__file__).parent / "suite.yaml"
DATA = Path(__file__).parent / "data"
OWN_SAMPLES = "own_samples"
SETS = ("prose", "code", "maths", "pairs", "facts", "arithmetic", "json", "orders", OWN_SAMPLES)

SENTENCE = 'The old man asked his brother for 12 apples, 7 + 5 = 12, and wrote {"name": "Ada"} on the door.'


def reads_english(tokenizer: Tokenizer) -> bool:
    """Whether a text is still there when it has been tokens: a world's own words spell no English.

    Half of the words of a sentence must be; that of a tokenizer of bytes, or of pieces of them, is whole.
    """
    read = tokenizer.decode_tokens(tokenizer.encode_batch([SENTENCE], False)[0])
    kept = Counter(SENTENCE.casefold().split()) & Counter(read.casefold().split())
    return 2 * kept.total() >= len(SENTENCE.split())
