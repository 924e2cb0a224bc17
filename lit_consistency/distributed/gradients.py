"""The norm of the gradients and clipping, the same for sharded gradients and for those on one device."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lit_consistency.distributed.dtensors import full_tensor, local_shard


def norm_parts(optimizer: torch.optim.Optimizer, world_size: int) -> dict[str, Tensor]:
    """What of the Euclidean norm of all gradients this rank knows, to be summed over the ranks; see ``norm_of``.

    Args:
        optimizer: whose parameters' gradients are meant, in shards or whole and then the same on every rank.
        world_size: number of ranks.

    Returns:
        Float64 of shape (): ``norm`` of the gradients that are whole, ``squares`` of those in shards, a part each; a
        kind that does not occur is missing.
    """
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    in_shards: defaultdict[int, list[Tensor]] = defaultdict(list)
    for gradient in gradients:
        if isinstance(gradient, DTensor):
            in_shards[_holders(gradient)].append(local_shard(gradient))
    parts = {"norm": _total_norm(whole).double() / world_size} if whole else {}
    if in_shards:
        squares = [_total_norm(shards).double() ** 2 / holders for holders, shards in in_shards.items()]
        parts["squares"] = torch.stack(squares).sum()
    return parts


def norm_of(parts: Mapping[str, Tensor]) -> Tensor:
    """The norm, shape (), from the sums of ``norm_parts`` over the ranks; 0, on the CPU, where there is no gradient."""
    if "squares" not in parts:
        return parts.get("norm", torch.zeros((), dtype=torch.float64))
    squares = parts["squares"]
    return (squares + parts["norm"] ** 2 if "norm" in parts else squares).sqrt()


def _holders(tensor: DTensor) -> int:
    """Number of ranks that hold the same shard."""
    sizes = [tensor.device_mesh.size(i) for i, placement in enumerate(tensor.placements) if placement.is_replicate()]
    return math.prod(sizes)


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
