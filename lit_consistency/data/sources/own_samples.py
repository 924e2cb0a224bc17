"""Texts that the base itself writes: what stands in for its pretraining data where nobody has them.

A language model is a sample of its training text, so drawing from it needs no data: x_1 ~ p(. | BOS), x_2 ~ p(. | BOS,
x_1), and so on at temperature 1 without a nucleus, until it ends the text. Marek et al. find that replaying them keeps
nearly as much as replaying the data. Given up: a base that never saw BOS (or EOS, which opens a text where there is no
BOS) in front of a text opens its texts oddly, and what it knows but seldom says is replayed seldom.

The source says what is drawn. Data stand below inference, so the model that is trained draws it (``own_samples`` of the
LightningModule, see inference/own_samples.py): once, into the cache of tokens.

Source: Marek et al. 2026, Forgetting in Language Models: Capacity, Optimization, and Self-Generated Replay, arXiv
2605.26097, and github.com/martin-marek/forgetting, ``sample_synthetic_batch`` (they draw anew
during the run and do not stop at EOS); Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal, Connection
Science 7(2).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lit_consistency.data.sources.documents import Source


class OwnSamples(Source):
    """The base's own samples, as a part of a replay, as what is validated on, or of an anchor.

    Args:
        n_texts: How many are drawn.
        max_tokens: Where a text is cut that has not ended; null: the run's ``block_size``. A cut text is replayed
            without an end, so nothing learns to end there.
        temperature: The base's logits are divided by it; 1 is the base itself.
        seed: Of the draws; the text of a number is a function of base, seed and temperature alone.
        batch_tokens: How many tokens the cache of keys and values holds while they are drawn; changes no text but by
            rounding.

    Raises:
        ValueError: An option is out of its range.
    """

    def __init__(
        self,
        n_texts: int = 1000,
        max_tokens: int | None = None,
        temperature: float = 1.0,
        seed: int = 0,
        batch_tokens: int = 16384,
    ) -> None:
        for key, value, least in (("n_texts", n_texts, 1), ("seed", seed, 0), ("batch_tokens", batch_tokens, 1)):
            if value < least:
                raise ValueError(f"{key} = {value}: expected at least {least}")
        if max_tokens is not None and max_tokens < 1:
            raise ValueError(f"max_tokens = {max_tokens}: expected at least 1, or null for the run's block_size")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature = {temperature}: expected above 0; 1 draws from the base as it is")
        self.n_texts = n_texts
        self.max_tokens = max_tokens
        self.temperature = temperature
        self.seed = seed
        self.batch_tokens = batch_tokens

    def longest(self, block_size: int) -> int:
        """Tokens of the longest text, in rows of ``block_size`` places."""
        if self.max_tokens is not None and self.max_tokens > block_size:
            raise ValueError(
                f"max_tokens = {self.max_tokens}: expected at most {block_size}, the block_size of the rows, or null"
            )
        return self.max_tokens or block_size

    def documents(self) -> Iterator[str]:
        """Refused: they are tokens of the base already, and no text to be tokenized or divided."""
        raise ValueError("OwnSamples: expected as a part of a replay, or whole as what is trained or validated on")

    def fingerprint(self) -> dict[str, Any]:
        """The options; the base is not known here."""
        return {
            "kind": "OwnSamples",
            "n_texts": self.n_texts,
            "max_tokens": self.max_tokens,
            "temperature": self.temperature,
            "seed": self.seed,
        }
