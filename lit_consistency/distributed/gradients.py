"""The norm of the gradients and clipping, the same for sharded gradients and for those on one device."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lit_consistency.distributed.dtensors import full_tensor, local_shard


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor | None:
    """Euclidean norm of all gradients, shape (), the same on every rank; None where there is none."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    return _total_norm(gradients) if gradients else None


def clip_gradients(optimizer: torch.optim.Optimizer, limit: float, by_value: bool) -> None:
    """Clip what AdamW or SGD moves; an orthogonalized update has no scale to clip.

    Args:
        optimizer: groups with ``orthogonalized`` set are left alone.
        limit: greatest norm of all clipped gradients together, or greatest magnitude of a coordinate.
        by_value: which of the two.
    """
    groups = [group for group in optimizer.param_groups if not group.get("orthogonalized", False)]
    parameters = [p for group in groups for p in group["params"] if p.grad is not None]
    if not parameters:
        return
    if by_value:
        for parameter in parameters:
            local_shard(parameter.grad).clamp_(-limit, limit)
    else:
        norm = _total_norm([p.grad for p in parameters])
        nn.utils.clip_grads_with_norm_(parameters, limit, norm)


def _total_norm(gradients: list[Tensor]) -> Tensor:
    """As ``nn.utils.get_total_norm``, which sums in the gradients' own precision: float16 ends at a norm of 65,504."""
    if all(gradient.dtype in (torch.float32, torch.float64) for gradient in gradients):
        return full_tensor(nn.utils.get_total_norm(gradients))
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
    return full_tensor(torch.linalg.vector_norm(torch.stack(norms)))
