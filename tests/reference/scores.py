"""Log-likelihoods the plain way: one candidate a row, all logits, one token after the other."""

from __future__ import annotations

import torch
from torch import nn

from lit_consistency.inference.items import Item


@torch.no_grad()
def plain_scores(model: nn.Module, items: list[Item]) -> list[tuple[float, int, int]]:
    """Summed nll in nats, scored tokens and first choices of every candidate."""
    found = []
    for candidate in (c for item in items for c in item.candidates):
        tokens = torch.as_tensor(candidate.tokens)
        asked = [i for i in range(1, len(tokens)) if candidate.supervised[i]]
        nll, hits = 0.0, 0
        if asked:
            logits = model(tokens[None, :-1])[0].double()
            for i in asked:
                nll -= float(torch.log_softmax(logits[i - 1], -1)[tokens[i]])
                hits += int(logits[i - 1].argmax()) == int(tokens[i])
        found.append((nll, len(asked), hits))
    return found
