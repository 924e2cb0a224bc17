"""From the scores of single items to the numbers of a task.

An item is a question with one or more candidate answers; a text is an item with a single candidate. Of every candidate
three sums are kept, its negative log-likelihood, its tokens, and those that were the model's first choice; every number
is derived from them here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from lit_consistency.metrics.token_loss import bits_per_byte, nats_per_token


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


def summarize(scores: ItemScores) -> dict[str, float]:
    """The numbers of a task.

    Returns:
        ``loss`` (nats per token of the right answer) and ``bits_per_byte`` always; ``exact``, the share of items whose
        right answer is the model's greedy choice token by token; and, where an item has several candidates,
        ``accuracy`` (strictly least summed negative log-likelihood wins) and ``accuracy_per_byte`` (normalized by
        length in bytes). An item whose right answer only ties, or has a score that is not a number, is not right.
    """
    right = scores.gold_rows
    # the argmax of logits that are not numbers is some token all the same, and may be a hit
    known = (scores.n_tokens[right] > 0) & ~scores.nll[right].isnan()
    nll_sum = float(scores.nll[right].sum())
    numbers = {
        "loss": nats_per_token(nll_sum, float(scores.n_tokens[right].sum())),
        "bits_per_byte": bits_per_byte(nll_sum, float(scores.n_bytes[right].sum())),
        "exact": _share(known & (scores.n_hits[right] == scores.n_tokens[right])),
    }
    if int(scores.n_candidates.max()) > 1:
        numbers["accuracy"] = _share(_gold_wins(scores, scores.nll))
        per_byte = scores.nll / scores.n_bytes.clamp(min=1)
        numbers["accuracy_per_byte"] = _share(_gold_wins(scores, per_byte))
    return numbers


def _gold_wins(scores: ItemScores, cost: Tensor) -> Tensor:
    """(N,) bool: whether the right candidate costs strictly less than every other of its item.

    An argmin would give a tie, and costs that are not numbers, to whichever stands first: in minimal pairs, always
    the right one.
    """
    wins = []
    for costs, gold in zip(cost.split(scores.n_candidates.tolist()), scores.gold.tolist(), strict=True):
        others = torch.cat([costs[:gold], costs[gold + 1 :]])
        wins.append((costs[gold] < others).all() & ~costs[gold].isnan())
    return torch.stack(wins)


def _share(right: Tensor) -> float:
    return float(right.sum()) / len(right)
