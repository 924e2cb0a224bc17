"""The anchor's divergence as its definition has it: probabilities, a sort, one minus a sum."""

from __future__ import annotations

import torch
from torch import Tensor


def coarse_kl(base: Tensor, model: Tensor, k: int) -> Tensor:
    """(P,) KL of two rows of logits (P, V) when all but the base's k likeliest tokens are one event."""
    rows = []
    for p, q in zip(base.softmax(-1), model.softmax(-1), strict=True):
        kept = sorted(range(len(p)), key=lambda v: -p[v].item())[:k]
        p_events = torch.stack([*(p[v] for v in kept), 1 - p[kept].sum()])
        q_events = torch.stack([*(q[v] for v in kept), 1 - q[kept].sum()])
        rows.append((p_events * (p_events / q_events).log()).sum())
    return torch.stack(rows)
