"""Muon: momentum, orthogonalized before it moves the hidden matrices; AdamW for everything else.

One optimizer with two kinds of group, so that Lightning's automatic optimization, accumulation and schedules keep
working. A fused query-key-value matrix is orthogonalized block by block, a LoRA adapter factor by factor. Given up:
shards of a matrix (it must be whole), and matrices of the same shape in one batched product.

The momentum is a sum of past gradients, as in SGD, and not their mean: without orthogonalization Muon is SGD with
momentum. With it the two are the same, since the polar factor has no scale; a buffer of torch.optim.Muon is (1 -
momentum) times ours.

Source: Jordan 2024, https://kellerjordan.github.io/posts/muon/; Liu et al. 2025, Muon is Scalable for LLM Training,
arXiv 2502.16982.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.adamw import update_adamw
from lit_consistency.optimizers.base import (
    DECAY_ROLES,
    Entry,
    GroupOptimizer,
    LowPrecision,
    decay_by_role,
    local,
    require_roles,
    state_dtype,
    zeros_of_state,
)
from lit_consistency.optimizers.checks import check_adam, check_at_least, check_below_one, check_choice, check_choices
from lit_consistency.optimizers.groups import MATRIX_DIMENSIONS, ROLES, Split, blocks, format_table, group_table
from lit_consistency.optimizers.newton_schulz import ITERATIONS, Coefficients, newton_schulz
from lit_consistency.optimizers.sgd import momentum_direction

MATRIX_ROLES = ("hidden", "adapter")
LrScale = Literal["match_rms_adamw", "original", "spectral"]
NSDtype = Literal["auto", "float32", "bfloat16"]
LR_SCALES = ("match_rms_adamw", "original", "spectral")
NS_DTYPES = ("auto", "float32", "bfloat16")


class Muon(GroupOptimizer):
    """Momentum orthogonalized by Newton-Schulz for hidden matrices and adapters, AdamW for the rest.

    Args:
        groups: of ``parameter_groups(model)``.
        lr: learning rate of the matrices, at least 0. With ``match_rms_adamw`` one that suits AdamW suits here.
        momentum: decay rate of the sum of past gradients, in [0, 1).
        nesterov: look one step ahead.
        weight_decay: per step, matrices shrink by lr * weight_decay, whatever ``lr_scale``; at least 0.
        orthogonalize: false turns the matrices' part into SGD with momentum, and ``lr_scale`` off with it.
        ns_steps: Newton-Schulz iterations, at least 1.
        ns_coefficients: polynomials of the iterations: ``polar_express`` (arXiv 2505.16932) or ``quintic`` (Keller
            Jordan's).
        ns_dtype: precision of the iterations: ``auto`` is bfloat16 on CUDA and float32 elsewhere; float64 stays
            float64. Take ``float32`` for gradients of low rank, as small batches have: bfloat16 amplifies the noise
            beside them.
        lr_scale: factor on lr for a block of (rows, columns): ``match_rms_adamw`` 0.2 sqrt(max(rows, columns)),
            ``original`` sqrt(max(1, rows / columns)), ``spectral`` sqrt(rows / columns).
        adamw_lr: learning rate of the rest, at least 0.
        adamw_betas: decay rates of the rest's running means, each in [0, 1).
        adamw_eps: added to the rest's denominator, at least 0.
        adamw_weight_decay: decoupled weight decay of the rest, at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move: ``master`` moves a float32 copy and rounds it to
            them; ``stochastic`` rounds each step up or down by chance; ``nearest`` rounds it, and loses small ones.
        seed: of stochastic rounding, a function of seed, parameter name and step.
    """

    def __init__(
        self,
        groups: ParamsT,
        lr: float = 3e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = "polar_express",
        ns_dtype: NSDtype = "auto",
        lr_scale: LrScale = "match_rms_adamw",
        adamw_lr: float = 3e-4,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_at_least("lr", lr, 0)
        check_below_one("momentum", momentum)
        check_at_least("weight_decay", weight_decay, 0)
        check_at_least("ns_steps", ns_steps, 1)
        check_choice("ns_coefficients", ns_coefficients, ITERATIONS)
        check_choice("ns_dtype", ns_dtype, NS_DTYPES)
        check_choice("lr_scale", lr_scale, LR_SCALES)
        check_adam(adamw_lr, adamw_betas, adamw_eps, adamw_weight_decay, prefix="adamw_")
        check_choices("decay_roles", decay_roles, ROLES)
        with_roles = require_roles("Muon", groups)
        for_matrices: dict[str, Any] = {"lr": lr, "momentum": momentum, "nesterov": nesterov}
        for_matrices |= {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "ns_dtype": ns_dtype}
        # gradient clipping reads `orthogonalized`: an orthogonalized update has no scale that could be clipped
        for_matrices |= {"lr_scale": lr_scale, "orthogonalized": orthogonalize}
        for_rest = {"lr": adamw_lr, "betas": tuple(adamw_betas), "eps": adamw_eps, "orthogonalized": False}
        matrices = [for_matrices | group for group in with_roles if group["role"] in MATRIX_ROLES]
        rest = [for_rest | group for group in with_roles if group["role"] not in MATRIX_ROLES]
        decayed = decay_by_role(matrices, weight_decay, decay_roles) + decay_by_role(
            rest, adamw_weight_decay, decay_roles
        )
        super().__init__(decayed, {"lr": lr, "weight_decay": weight_decay}, low_precision, seed)
        self._check_matrices()

    def _check_matrices(self) -> None:
        """Refuse to train nothing with Muon, and to orthogonalize what is no matrix."""
        groups = [group for group in self.param_groups if group["role"] in MATRIX_ROLES]
        if not any(group["params"] for group in groups):
            table = format_table(group_table(self.param_groups))
            raise ValueError(f"Muon: expected a hidden matrix or an adapter among the parameters, got\n{table}")
        for group in groups:
            for name, param in zip(
                group.get("param_names") or range(len(group["params"])), group["params"], strict=True
            ):
                if param.ndim not in MATRIX_DIMENSIONS:
                    raise ValueError(
                        f"Muon: parameter {name} of role {group['role']} has shape {list(param.shape)}: "
                        "expected a matrix or a stack of matrices"
                    )

    def update_group(self, group: dict[str, Any], entries: list[Entry]) -> None:
        """One Muon step of a group of matrices, or one AdamW step of another."""
        if group["role"] not in MATRIX_ROLES:
            update_adamw(entries, group)
            return
        options = {key: group[key] for key in ("lr", "momentum", "nesterov", "weight_decay", "orthogonalized", "split")}
        options |= {key: group[key] for key in ("ns_steps", "ns_coefficients", "lr_scale")}
        for entry in entries:
            momentum_buffer = entry.state.setdefault("momentum_buffer", zeros_of_state(entry.param))
            dtype = iteration_dtype(group["ns_dtype"], entry.target)
            muon_step(entry.target, entry.grad, local(momentum_buffer), **options, dtype=dtype)


def muon_step(
    param: Tensor,
    grad: Tensor,
    momentum_buffer: Tensor,
    *,
    lr: float,
    momentum: float,
    nesterov: bool,
    weight_decay: float,
    orthogonalized: bool,
    ns_steps: int,
    ns_coefficients: Coefficients,
    lr_scale: LrScale,
    split: Split | None,
    dtype: torch.dtype,
) -> None:
    r"""One Muon step of one parameter.

    .. math::
        d = \text{momentum_direction}(g), \quad p \leftarrow (1 - \eta \lambda) p - \eta s_k \, \text{polar}(d_k)
        \text{ for each block } k

    Args:
        param: (rows, columns), or a stack of such; changed in place.
        grad: of that shape, only read.
        momentum_buffer: sum of past gradients, float32 or float64; changed in place.
        lr: learning rate.
        momentum: decay rate of the buffer.
        nesterov: look one step ahead.
        weight_decay: coefficient of the decoupled weight decay.
        orthogonalized: false: the direction itself moves the parameter, with scale 1.
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: their polynomials.
        lr_scale: rule for s, from the shape of the block.
        split: rows of each block, or None for one block.
        dtype: of the iterations.
    """
    direction = momentum_direction(
        momentum_buffer, grad.to(momentum_buffer.dtype), momentum=momentum, nesterov=nesterov
    )
    if weight_decay:
        param.mul_(1 - lr * weight_decay)
    if not orthogonalized:
        param.add_(direction, alpha=-lr)
        return
    for target, block in zip(blocks(param, split), blocks(direction, split), strict=True):
        update = newton_schulz(block, ns_steps=ns_steps, ns_coefficients=ns_coefficients, dtype=dtype)
        target.add_(update, alpha=-lr * shape_scale(lr_scale, *block.shape))


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


def iteration_dtype(ns_dtype: NSDtype, parameter: Tensor) -> torch.dtype:
    """Precision of the iterations for a parameter: what was asked for, on its device; float64 stays."""
    if parameter.dtype == torch.float64:
        return torch.float64
    if ns_dtype == "bfloat16" or (ns_dtype == "auto" and parameter.device.type == "cuda"):
        return torch.bfloat16
    return state_dtype(parameter)
