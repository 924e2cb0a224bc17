"""The loss of single tokens; the caller sums them and divides by the supervised tokens of the whole optimizer step.

A mean taken here would depend on how a batch is split, and is NaN for a batch in which no token is supervised.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORE = -100
"""Target of a token on which no loss is taken: the default ``ignore_index`` of torch.nn.functional.cross_entropy."""


def token_nll(logits: Tensor, targets: Tensor) -> Tensor:
    """Negative log-likelihood of every target.

    nll[b, t] = logsumexp(logits[b, t]) - logits[b, t, targets[b, t]], and 0 where targets[b, t] = -100, without
    gradient.

    Args:
        logits: (B, T, V) floating point; half precision is raised to float32.
        targets: (B, T) int64, already shifted.

    Returns:
        (B, T) float32, or float64 for float64 logits, in nats.
    """
    if logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()
    nll = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORE, reduction="none")
    return nll.view(targets.shape)
