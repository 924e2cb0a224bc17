"""The parts of a Muon step as functions of tensors: direction, size of the update, normalization of rows, the move.

Source: Liu et al. 2025, arXiv 2502.16982 (scale); Li et al. 2025, NorMuon, arXiv 2510.05491; Chen et al. 2025, Cautious
Weight Decay, arXiv 2510.12402.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry, local, state_dtype, zeros_of_state
from lit_consistency.optimizers.sgd import momentum_direction

LrScale = Literal["match_rms_adamw", "original", "spectral"]
LR_SCALES = ("match_rms_adamw", "original", "spectral")
# Where the warm-up of the momentum starts: github.com/KellerJordan/modded-nanogpt, train_gpt.py, get_muon_momentum
MOMENTUM_START = 0.85
# NorMuon's epsilon beside the root of the mean square, which has the order of 1 / sqrt(columns)
NORMUON_EPS = 1e-8


def directions(
    momentum_buffers: Sequence[Tensor], grads: Sequence[Tensor], *, momentum: float, nesterov: bool
) -> list[Tensor]:
    """``momentum_direction`` of each parameter, in few launches on CUDA.

    Args:
        momentum_buffers: changed in place, float32 or float64.
        grads: of any float dtype, only read.
        momentum: decay rate of the buffers.
        nesterov: look one step ahead.

    Returns:
        The directions; the buffers themselves without ``nesterov``: only read them.
    """
    if not momentum_buffers:
        return []
    dtype = momentum_buffers[0].dtype
    buffers = list(momentum_buffers)
    converted = [grad.to(dtype) for grad in grads]
    if not momentum_buffers[0].is_cuda:
        pairs = zip(momentum_buffers, converted, strict=True)
        return [momentum_direction(b, g, momentum=momentum, nesterov=nesterov) for b, g in pairs]
    torch._foreach_mul_(buffers, momentum)
    torch._foreach_add_(buffers, converted)
    return list(torch._foreach_add(converted, buffers, alpha=momentum)) if nesterov else buffers


def warm_momentum(momentum: float, step: int, warmup_steps: int) -> float:
    """The momentum of a step: rises linearly from 0.85, or stays where that is not less.

    Args:
        momentum: after the warm-up.
        step: number of steps before this one.
        warmup_steps: length of the warm-up; 0 for none.
    """
    if step >= warmup_steps or momentum <= MOMENTUM_START:
        return momentum
    return MOMENTUM_START + (momentum - MOMENTUM_START) * step / warmup_steps


def shape_scale(lr_scale: LrScale, rows: int, columns: int) -> float:
    """Factor on the learning rate for the orthogonalized update of a block of (rows, columns)."""
    if lr_scale == "match_rms_adamw":
        # arXiv 2502.16982, section 2.2: entries then have the root mean square 0.2 that AdamW's updates have
        return 0.2 * math.sqrt(max(rows, columns))
    if lr_scale == "original":
        # https://github.com/KellerJordan/Muon/blob/f90a42b28e00b8d9d2d05865fe90d9f39abcbcbd/muon.py, class Muon
        return math.sqrt(max(1, rows / columns))
    # Bernstein 2025, https://jeremybernste.in/writing/deriving-muon: the update's RMS-to-RMS operator norm is 1
    return math.sqrt(rows / columns)


def normalize_rows(update: Tensor, row_second_moment: Tensor, *, beta: float) -> tuple[Tensor, Tensor]:
    r"""NorMuon: each row divided by the root of the running mean of its square, at the Frobenius norm that it had.

    .. math::
        v \leftarrow \beta v + (1 - \beta) \, \text{mean}_{columns}(O^2), \quad
        \hat O = O / (\sqrt{v} + \epsilon), \quad
        O \leftarrow \hat O \lVert O \rVert_F / \lVert \hat O \rVert_F

    Args:
        update: orthogonalized blocks O, (batch, rows, columns); only read.
        row_second_moment: v, (batch, rows, 1); only read.
        beta: decay rate of the running mean.

    Returns:
        The new update and the new v. A zero block stays zero.
    """
    second = row_second_moment.lerp(update.square().mean(-1, keepdim=True), 1 - beta)
    normalized = update / (second.sqrt() + NORMUON_EPS)
    before, after = (t.norm(dim=(-2, -1), keepdim=True) for t in (update, normalized))
    return normalized.mul_(before / after.masked_fill(after == 0, 1)), second


def move(
    targets: Sequence[Tensor], updates: Sequence[Tensor], *, lr: float, weight_decay: float, cautious_decay: bool
) -> None:
    r"""Decay and move each parameter.

    .. math::
        p \leftarrow p - \eta \lambda \, \mathbb{1}[u p \ge 0] \, p - \eta u \quad
        \text{(without cautious_decay every coordinate decays)}

    Args:
        targets: changed in place.
        updates: u, of the targets' shapes, scaled for their blocks; only read.
        lr: learning rate.
        weight_decay: coefficient of the decoupled weight decay.
        cautious_decay: only coordinates decay that the update moves towards zero, or not at all.
    """
    if not targets:
        return
    if weight_decay and cautious_decay:
        for target, update in zip(targets, updates, strict=True):
            target.sub_((update * target >= 0) * target, alpha=lr * weight_decay)
    elif weight_decay:
        torch._foreach_mul_(list(targets), 1 - lr * weight_decay)
    torch._foreach_add_(list(targets), list(updates), alpha=-lr)


def momentum_buffer(entry: Entry) -> Tensor:
    """Local sum of a parameter's past gradients, made and kept in its state at the first call."""
    if "momentum_buffer" not in entry.state:
        entry.state["momentum_buffer"] = zeros_of_state(entry.param)
    return local(entry.state["momentum_buffer"])


def row_second_moment(entry: Entry) -> Tensor:
    """Local running mean of the square of each row's update, (rows, 1), in the parameter's layout; NorMuon's state."""
    if "row_second_moment" not in entry.state:
        param = entry.param
        shape = (*local(param).shape[:-1], 1)
        zeros = torch.zeros(shape, dtype=state_dtype(param), device=param.device)
        if isinstance(param, DTensor):
            whole = torch.empty((*param.shape[:-1], 1), device="meta")
            zeros = DTensor.from_local(
                zeros, param.device_mesh, param.placements, run_check=False, shape=whole.shape, stride=whole.stride()
            )
        entry.state["row_second_moment"] = zeros
    return local(entry.state["row_second_moment"])
