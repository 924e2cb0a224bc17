"""KL divergence as the definition has it: one position, one token at a time, in Python's floats."""

from __future__ import annotations

import math

from torch import Tensor


def mean_kl(p: Tensor, q: Tensor) -> float:
    """Mean over positions of sum_v p_v log(p_v / q_v), from log-probabilities (P, V)."""
    rows = []
    for p_row, q_row in zip(p.tolist(), q.tolist(), strict=True):
        total = 0.0
        for log_p, log_q in zip(p_row, q_row, strict=True):
            if math.exp(log_p) > 0:
                total += math.exp(log_p) * math.log(math.exp(log_p) / math.exp(log_q))
        rows.append(total)
    return math.fsum(rows) / len(rows)
