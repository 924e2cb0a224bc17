"""Log-likelihood of candidates: sorted by length, batched to a token budget, shared out over the ranks.

Which rank scores a batch does not change its content, and the sums are put together in float64, so that one process
and many report the same numbers. Every rank runs the same number of forwards (an idle one repeats its last batch),
because a sharded model needs all ranks in every forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.distributed as dist
from numpy.typing import ArrayLike
from torch import Tensor, nn

from lit_consistency.data.watch import Item
from lit_consistency.metrics import ItemScores
from lit_consistency.model import IGNORE, token_nll

Candidate = tuple[Tensor, Tensor]  # tokens (T,) int64 and shifted targets (T,) int64


def score_items(model: nn.Module, items: Sequence[Item], *, batch_tokens: int, device: torch.device) -> ItemScores:
    """Score every candidate of every item.

    Args:
        model: maps tokens (B, T) to logits (B, T, V); the caller has put it into evaluation mode.
        items: what to score.
        batch_tokens: budget of padded tokens in one forward; a longer candidate is scored alone.
        device: where the model is.

    Returns:
        Sums on the CPU, the same on every rank; zeros for a candidate without a supervised token, which is not fed.
    """
    candidates = [shift(c.tokens, c.supervised) for item in items for c in item.candidates]
    scored = [i for i, (_, targets) in enumerate(candidates) if (targets != IGNORE).any()]
    plan = plan_batches([len(candidates[i][0]) for i in scored], batch_tokens)
    batches = [[scored[i] for i in rows] for rows in plan]
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    sums = torch.zeros(3, len(candidates), dtype=torch.float64, device=_sum_device(device))
    rounds = -(-len(batches) // world_size)
    for i in range(rounds):
        mine = i * world_size + rank
        rows = batches[min(mine, len(batches) - 1)]
        found = _score_batch(model, [candidates[row] for row in rows], device)
        if mine < len(batches):
            sums[:, rows] = found.to(sums)
    if world_size > 1:
        dist.all_reduce(sums)
    sums = sums.cpu()
    return ItemScores(
        nll=sums[0],
        n_tokens=sums[1].long(),
        n_hits=sums[2].long(),
        n_bytes=torch.tensor([c.n_bytes for item in items for c in item.candidates]),
        n_candidates=torch.tensor([len(item.candidates) for item in items]),
        gold=torch.tensor([item.gold for item in items]),
    )


def plan_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows of each batch: longest first, at most ``batch_tokens`` tokens after padding to the batch's longest row."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batches: list[list[int]] = []
    for row in order:
        if not batches or lengths[batches[-1][0]] * (len(batches[-1]) + 1) > batch_tokens:
            batches.append([])
        batches[-1].append(row)
    return batches


def pad(candidates: Sequence[Candidate], device: torch.device) -> tuple[Tensor, Tensor]:
    """Stack candidates into tokens and targets (B, T), padded on the right with token 0 and target -100."""
    tokens = nn.utils.rnn.pad_sequence([t for t, _ in candidates], batch_first=True)
    targets = nn.utils.rnn.pad_sequence([t for _, t in candidates], batch_first=True, padding_value=IGNORE)
    return tokens.to(device), targets.to(device)


def _score_batch(model: nn.Module, candidates: Sequence[Candidate], device: torch.device) -> Tensor:
    """(3, B): summed nll, number of targets and number of greedy hits of each row."""
    tokens, targets = pad(candidates, device)
    logits = model(tokens)
    taken = targets != IGNORE
    hits = (logits.argmax(-1) == targets) & taken
    sums = (token_nll(logits, targets).cpu().double().sum(-1), taken.sum(-1).cpu(), hits.sum(-1).cpu())
    return torch.stack([part.double() for part in sums])


def shift(tokens: ArrayLike, supervised: ArrayLike) -> Candidate:
    """Token i predicts token i + 1: targets are shifted by one, and the last token is only ever a target."""
    ids = torch.as_tensor(tokens, dtype=torch.int64)
    targets = torch.where(torch.as_tensor(supervised, dtype=torch.bool), ids, IGNORE)
    return ids[:-1], targets[1:]


def _sum_device(device: torch.device) -> torch.device:
    """Collectives need the model's device; a single process keeps its sums on the CPU."""
    return device if dist.is_initialized() else torch.device("cpu")
