"""Replay: rows of what the model has learned before, mixed into what it learns now.

The share counts learned tokens, because the loss is a mean over them: a row of a book weighs more than a row of short
answers. Every epoch replays other rows, until all have been replayed once: which ones is a function of seed and epoch.
The order of rows mixes them with the others. Given up: an exact share, since whole rows are replayed, and as many in
every epoch.

Source: Robins 1995, Catastrophic Forgetting, Rehearsal and Pseudorehearsal, Connection Science 7(2); Ibrahim et al.
2024, Simple and Scalable Strategies to Continually Pre-train Large Language Models, arXiv 2403.08763, which finds
that 1 to 5% of pretraining text keeps most of what was learned.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lit_consistency.data.loading.mixed_rows import MixedRows, rows_for
from lit_consistency.data.sources.documents import Source
from lit_consistency.data.sources.mixture import Mixture
from lit_consistency.data.sources.rows import Rows
from lit_consistency.data.tokens.token_rows import TokenRows


class Replay:
    """Sources that are mixed into the training rows.

    Args:
        parts: Name -> text of pretraining or conversations of earlier tasks.
        share: Share of the learned tokens of an epoch that are replayed, 0 < share < 1: one number, divided equally
            among the parts, or a number for each part by its name.
    """

    def __init__(self, parts: dict[str, Source | Rows], share: float | dict[str, float] = 0.05) -> None:
        if not parts:
            raise ValueError("replay.parts = {}: expected at least one source or one set of rows")
        for name, part in parts.items():
            if isinstance(part, Mixture) and part.weights is not None:
                raise ValueError(f"replay.parts.{name}: a mixture with weights; expected its sets as parts with shares")
        shares = share if isinstance(share, dict) else dict.fromkeys(parts, share / len(parts))
        if shares.keys() != parts.keys():
            raise ValueError(f"replay.share = {share}: expected a number for each of {', '.join(parts)}")
        if not (all(one > 0 for one in shares.values()) and sum(shares.values()) < 1):
            raise ValueError(f"replay.share = {share}: expected 0 < share < 1, of all parts together")
        self.parts = parts
        self.share = share
        self.shares = shares

    def mix(self, train: TokenRows, replayed: Sequence[TokenRows], seed: int) -> MixedRows:
        """All rows of ``train``, and behind them as many of each of ``replayed`` as its share asks for."""
        whole = train.supervised.sum() / (1 - sum(self.shares.values()))
        shares = [self.shares[name] for name in self.parts]
        counts = [rows_for(whole * share, rows) for rows, share in zip(replayed, shares, strict=True)]
        return MixedRows([train, *replayed], [None, *counts], seed, first_stream=-1, replays=True)

    def fingerprint(self) -> dict[str, Any]:
        """The share; the parts have fingerprints of their own."""
        return {"share": self.share}
