"""A watched set with its items made: measured again and again during a run."""

from __future__ import annotations

import torch
from litgpt.tokenizer import Tokenizer
from torch import nn

from lit_consistency.inference.kl import forward_kl, log_probabilities
from lit_consistency.inference.score import score_items
from lit_consistency.metrics import summarize
from lit_consistency.tasks.watched import Prepared, WatchedSet


def prepare(watched: WatchedSet, tokenizer: Tokenizer, block_size: int, context: int) -> Prepared:
    """The set as it is measured: by itself where it knows how, else by the scores of its items.

    Args:
        watched: the set.
        tokenizer: of the model.
        block_size: longest item that is scored, in tokens: that of the training rows.
        context: longest input of the model, in tokens; tasks use all of it, as ``evaluate`` does.
    """
    return watched.prepare(tokenizer, context) or PreparedSet(watched, tokenizer, block_size)


class PreparedSet(Prepared):
    """Items of a watched set, tokenized once.

    Args:
        watched: the set.
        tokenizer: of the model.
        block_size: longest sequence that is scored, in tokens.
    """

    def __init__(self, watched: WatchedSet, tokenizer: Tokenizer, block_size: int) -> None:
        self.metric = watched.metric
        self.items = watched.items(tokenizer, block_size)
        self.truth = watched.truth(tokenizer)

    def measure(self, model: nn.Module, *, batch_tokens: int, device: torch.device) -> dict[str, float]:
        """The set's numbers (see ``metrics.summarize``), with ``kl`` in nats where the true distribution is known."""
        numbers = summarize(score_items(model, self.items, batch_tokens=batch_tokens, device=device))
        if self.truth is not None:
            predicted = log_probabilities(
                model, self.items, n_positions=len(self.truth), batch_tokens=batch_tokens, device=device
            )
            numbers["kl"] = forward_kl(self.truth, predicted)
        return numbers
