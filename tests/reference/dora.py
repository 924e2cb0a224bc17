"""DoRA, row by row as the paper writes it, with the bias added last; slow, and written without LitGPT's layers."""

from __future__ import annotations

import torch
from torch import Tensor


def dora_weight(
    weight: Tensor, lora_A: Tensor, lora_B: Tensor, magnitude: Tensor, scale: float, detach: bool = False
) -> Tensor:
    """m V / |V| with V = W + scale B A, equation 5 of arXiv 2402.09353; one m for each output.

    Args:
        weight: W (out, in).
        lora_A: (r, in).
        lora_B: (out, r).
        magnitude: m (out,).
        scale: of the product.
        detach: take |V| for a constant, section 4.3.
    """
    rows = []
    for i in range(weight.size(0)):
        direction = weight[i] + scale * sum(lora_B[i, k] * lora_A[k] for k in range(lora_A.size(0)))
        size = direction.square().sum().sqrt()
        rows.append(magnitude[i] * direction / (size.detach() if detach else size))
    return torch.stack(rows)


def dora_qkv_weight(
    weight: Tensor, rows: list[int], adapted: list[tuple[Tensor, Tensor, Tensor] | None], scale: float
) -> Tensor:
    """The fused matrix, each block by itself.

    Args:
        weight: W of query, key and value.
        rows: of each.
        adapted: lora_A, lora_B and magnitude of each; None for a block that is not adapted.
        scale: of the product.
    """
    blocks = zip(weight.split(rows), adapted, strict=True)
    return torch.cat([block if of is None else dora_weight(block, *of, scale, detach=True) for block, of in blocks])
