"""Distance of the model's predictions from the base's, in nats: KL(base || model) and KL(model || base).

Shenfeld, Pari & Agrawal, "RL's Razor" (arXiv 2509.04259), find that the forward KL on the new task predicts forgetting
better than any distance between weights. Forward, the base's likely tokens count, and what the model has ruled out is
dear; in reverse, what the model has come to say and the base did not. The full distributions are compared at the
supervised positions, not only the target's probability. Given up: text that the model itself writes; both divergences
are taken along the right answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from lit_consistency.inference.items import Item
from lit_consistency.inference.score import pad, plan_batches, shift
from lit_consistency.model import IGNORE


def log_probabilities(
    forward: Callable[[Tensor], Tensor],
    items: Sequence[Item],
    *,
    n_positions: int,
    batch_tokens: int,
    device: torch.device,
) -> Tensor:
    """Log-probabilities (P, V) float32, on the CPU, at the first ``n_positions`` positions of the right answers.

    Args:
        forward: maps tokens (B, T) to logits (B, T, V).
        items: the task; items are taken in order until there are enough positions.
        n_positions: how many distributions to keep; memory is ``4 * n_positions * V`` bytes.
        batch_tokens: budget of padded tokens in one forward.
        device: where the model is.
    """
    rows = list(_until(items, n_positions))
    parts: list[Tensor] = [torch.empty(0)] * len(rows)
    for batch in plan_batches([len(tokens) for tokens, _ in rows], batch_tokens):
        tokens, targets = pad([rows[i] for i in batch], device)
        taken = targets != IGNORE
        # chosen first: a float32 copy of all logits would be the largest tensor of the evaluation
        log_probs = torch.log_softmax(forward(tokens)[taken].float(), dim=-1)
        for row, part in zip(batch, log_probs.split(taken.sum(-1).tolist()), strict=True):
            parts[row] = part.cpu()
    return torch.cat(parts)[:n_positions]


def forward_kl(base: Tensor, model: Tensor) -> float:
    """Mean of KL(base || model) over positions, in nats.

    Args:
        base: (P, V) log-probabilities; minus infinity where a token is impossible.
        model: (P, V') log-probabilities with V' >= V; what the model gives to tokens beyond V is lost to it.
    """
    terms = torch.where(base > -torch.inf, base.exp() * (base - model[:, : base.size(1)]), 0.0)
    return float(terms.sum(-1, dtype=torch.float64).mean())


def reverse_kl(base: Tensor, model: Tensor) -> float:
    r"""Mean of KL(model || base) over positions, in nats; infinite where the model says what the base rules out.

    .. math::
        \frac{1}{P} \sum_{p=1}^{P} \sum_{v=1}^{V} q_{pv} (\log q_{pv} - \log b_{pv})

    Args:
        base: (P, V) log-probabilities log b.
        model: (P, V) log-probabilities log q.

    Raises:
        ValueError: the shapes differ; a base that does not know a token has no probability for it.
    """
    if base.shape != model.shape:
        raise ValueError(f"model has shape {list(model.shape)}: expected that of the base, {list(base.shape)}")
    return forward_kl(model, base)


def _until(items: Sequence[Item], n_positions: int) -> Iterator[tuple[Tensor, Tensor]]:
    found = 0
    for item in items:
        if found >= n_positions:
            return
        answer = item.candidates[item.gold]
        tokens, targets = shift(answer.tokens, answer.supervised)
        n_supervised = int((targets != IGNORE).sum())
        if n_supervised:  # nothing to compare otherwise, and perhaps not even a token to feed
            found += n_supervised
            yield tokens, targets
