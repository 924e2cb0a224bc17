"""Slow references of the optimizers, in float64 and written another way: an SVD, a sort, loops over coordinates."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def polar_factor(matrix: Tensor) -> Tensor:
    """U V^T of U S V^T; directions of singular value zero are left out."""
    u, s, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    kept = s > s.max() * 1e-12
    return u[:, kept] @ vh[kept]


def newton_schulz_by_svd(
    matrix: Tensor, polynomials: tuple[tuple[float, float, float], ...], margin: float, steps: int
) -> Tensor:
    """The odd polynomials applied to the singular values; the last polynomial is repeated."""
    u, values, vh = torch.linalg.svd(matrix.double(), full_matrices=False)
    values = values / (values.norm() * margin)
    for step in range(steps):
        a, b, c = polynomials[min(step, len(polynomials) - 1)]
        values = a * values + b * values**3 + c * values**5
    return u @ torch.diag(values) @ vh


def muon_trajectory(
    start: Tensor, grads: list[Tensor], rows: list[int], *, lr: float, momentum: float, decay: float
) -> Tensor:
    """Nesterov Muon with exact orthogonalization and 0.2 sqrt(max) scale; momentum written out as a weighted sum."""
    weight = start.double().clone()
    for t in range(len(grads)):
        total = sum(momentum ** (t - i) * grads[i].double() for i in range(t + 1))
        direction = grads[t].double() + momentum * total
        updates = []
        for block in torch.split(direction, rows):
            updates.append(0.2 * math.sqrt(max(block.shape)) * polar_factor(block))
        weight = weight - lr * decay * weight - lr * torch.cat(updates)
    return weight


def largest_by_sort(scores: Tensor, k: int) -> Tensor:
    """Mask of the k largest; a stable sort keeps equal scores in their order."""
    order = sorted(range(scores.numel()), key=lambda i: -float(scores.flatten()[i]))
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[order[:k]] = True
    return mask.view(scores.shape)


def mofo_trajectory(
    start: Tensor,
    grads: list[Tensor],
    rows: list[int],
    *,
    lr: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
    numerator: int,
    denominator: int,
) -> Tensor:
    """MoFO coordinate by coordinate, moments written out as weighted sums; fraction = numerator / denominator."""
    weight = [row.tolist() for row in start.double()]
    for t in range(1, len(grads) + 1):
        weights_m = [(1 - betas[0]) * betas[0] ** (t - i) for i in range(1, t + 1)]
        weights_v = [(1 - betas[1]) * betas[1] ** (t - i) for i in range(1, t + 1)]
        m = sum(w * g.double() for w, g in zip(weights_m, grads, strict=False))
        v = sum(w * g.double() ** 2 for w, g in zip(weights_v, grads, strict=False))
        masks = [largest_by_sort(block.abs(), -(-block.numel() * numerator // denominator)) for block in m.split(rows)]
        for i, j in torch.cat(masks).nonzero().tolist():
            m_hat = float(m[i, j]) / sum(weights_m)
            v_hat = float(v[i, j]) / sum(weights_v)
            weight[i][j] += -lr * decay * weight[i][j] - lr * m_hat / (math.sqrt(v_hat) + eps)
    return torch.tensor(weight, dtype=torch.float64)


def normuon_trajectory(start: Tensor, grads: list[Tensor], *, lr: float, beta: float) -> Tensor:
    """Muon without momentum by SVD, then NorMuon row by row; the running mean written out as a weighted sum."""
    weight, updates = start.double().clone(), []
    for grad in grads:
        updates.append(polar_factor(grad))
        rows = []
        for i in range(weight.size(0)):
            past = [float((u[i] ** 2).mean()) for u in updates]
            mean = sum((1 - beta) * beta ** (len(past) - 1 - t) * value for t, value in enumerate(past))
            rows.append(updates[-1][i] / (math.sqrt(mean) + 1e-8))
        update = torch.stack(rows)
        update = update * math.sqrt(float((updates[-1] ** 2).sum()) / float((update**2).sum()))
        weight = weight - lr * 0.2 * math.sqrt(max(weight.shape)) * update
    return weight


def paired_update(
    grad_B: Tensor, lora_B: Tensor, grad_A: Tensor, lora_A: Tensor, damping: float
) -> tuple[Tensor, Tensor]:
    """LoRA-Muon of one pair by singular values: both factors' whitening from their SVDs, both polar factors exact."""
    _, sizes_A, _ = torch.linalg.svd(lora_A, full_matrices=False)
    _, sizes_B, _ = torch.linalg.svd(lora_B, full_matrices=False)
    left_A = torch.linalg.svd(lora_A, full_matrices=False)[0]
    right_B = torch.linalg.svd(lora_B, full_matrices=False)[2].T
    root_A = left_A @ torch.diag((sizes_A**2 + (damping * sizes_B.max()) ** 2) ** -0.5) @ left_A.T
    root_B = right_B @ torch.diag((sizes_B**2 + (damping * sizes_A.max()) ** 2) ** -0.5) @ right_B.T
    scale = 0.5 * 0.2 * math.sqrt(max(lora_B.size(0), lora_A.size(1)))
    return scale * polar_factor(grad_B @ root_A) @ root_A, scale * root_B @ polar_factor(root_B @ grad_A)


def lion_trajectory(
    start: Tensor, grads: list[Tensor], *, lr: float, betas: tuple[float, float], weight_decay: float
) -> Tensor:
    """Lion, coordinate by coordinate in Python's floats, from the statement of the paper's program 1."""
    values = start.double().flatten().tolist()
    momenta = [0.0] * len(values)
    for grad in grads:
        for i, slope in enumerate(grad.double().flatten().tolist()):
            mixed = betas[0] * momenta[i] + (1 - betas[0]) * slope
            sign = (mixed > 0) - (mixed < 0)
            values[i] -= lr * (sign + weight_decay * values[i])
            momenta[i] = betas[1] * momenta[i] + (1 - betas[1]) * slope
    return torch.tensor(values, dtype=torch.float64).view_as(start)
