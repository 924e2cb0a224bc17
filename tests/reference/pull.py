"""The pull to the start as its equations say it: a penalty that autograd differentiates, a loop over coordinates."""

from __future__ import annotations

from torch import Tensor


def penalty(now: list[Tensor], start: list[Tensor], norm: str, strength: float) -> Tensor:
    """To be added to a loss."""
    differences = [(p - p0).flatten() for p, p0 in zip(now, start, strict=True)]
    return strength * sum((d.abs() if norm == "l1" else d * d / 2).sum() for d in differences)  # type: ignore[return-value]


def pulled(tensor: Tensor, start: Tensor, norm: str, pull: float) -> Tensor:
    """One coordinate after the other."""
    values = []
    for p, p0 in zip(tensor.flatten().tolist(), start.flatten().tolist(), strict=True):
        if norm == "l2":
            values.append(p0 + (1 - pull) * (p - p0))
        else:
            values.append(p0 if abs(p - p0) <= pull else p - pull if p > p0 else p + pull)
    return tensor.new_tensor(values).view_as(tensor)
