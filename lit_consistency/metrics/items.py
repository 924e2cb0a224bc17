"""The scores of single items.

An item is a question with one or more candidate answers; a text is an item with a single candidate. Of every candidate
three sums are kept, its negative log-likelihood, its tokens, and those that were the model's first choice; every number
is derived from them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class ItemScores:
    """Sums per candidate, for C candidates of N items laid out one after the other.

    Args:
        nll: (C,) float64, summed negative log-likelihood of the candidate's supervised tokens, in nats.
        n_tokens: (C,) int64, how many tokens were supervised.
        n_hits: (C,) int64, how many of them had the greatest logit.
        n_bytes: (C,) int64, UTF-8 bytes of the supervised text.
        n_candidates: (N,) int64, candidates of each item; they sum to C.
        gold: (N,) int64, index of the right candidate within its item.
    """

    nll: Tensor
    n_tokens: Tensor
    n_hits: Tensor
    n_bytes: Tensor
    n_candidates: Tensor
    gold: Tensor

    @classmethod
    def concatenate(cls, scores: Sequence[ItemScores]) -> ItemScores:
        """The scores of several sets of items as those of one, in their order."""
        names = [entry.name for entry in fields(cls)]
        return cls(**{name: torch.cat([getattr(one, name) for one in scores]) for name in names})

    @property
    def gold_rows(self) -> Tensor:
        """(N,) int64, position of each item's right candidate among the C candidates."""
        return self.n_candidates.cumsum(0) - self.n_candidates + self.gold
