"""LoRA-Muon: the two factors of an adapter move so that their product moves as Muon would move it.

W = B A with B (rows, r) and A (r, columns). Each factor's momentum is whitened by the other factor's Gram matrix,
orthogonalized, and whitened back: both terms of the change, dB A and B dA, then have a spectral norm of at most half
the learning rate, however the factors are scaled against each other. Weight decay acts on the product: each factor
shrinks by the root. A fused query-key-value adapter is one pair for each block.

Given up: B is zero at the start and its Gram matrix has no inverse. Ours, not the paper's: a tenth of the other
factor's largest singular value is added in quadrature to the singular values of each, so that A stays where it is while
B is zero, and does not leap when B is still small. Iterations are in float32 or float64: the matrices are small.
LitGPT's factor alpha / r on the product is not known here: it multiplies the learning rate.

Source: Cesista et al. 2026, LoRA-Muon: Spectral Steepest Descent on the Low-Rank Manifold, arXiv 2606.12921.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.muon_step import LrScale, directions, momentum_buffer, shape_scale
from lit_consistency.optimizers.orthogonal.newton_schulz import Coefficients, newton_schulz
from lit_consistency.optimizers.sharding.exchange import exchange_of

# Share of the other factor's largest singular value that dampens each factor's.
DAMPING = 0.1


class Owner(Protocol):
    """What ``Pairs`` needs of the optimizer."""

    param_groups: list[dict[str, Any]]
    share_work: bool

    def entries(self, group: dict[str, Any]) -> list[Entry]:
        """The group's parameters that have a gradient."""
        ...


class Pairs:
    """The pairs of LoRA factors among an optimizer's groups, found by name.

    The factors of a fused adapter lie in two groups; the updates of all pairs are computed when the first of the groups
    moves, and each group takes its own.

    Args:
        groups: the optimizer's ``param_groups``.
        normuon: whether rows are to be normalized, which pairs do not do.
        cautious_decay: whether decay is to be cautious, which pairs cannot be.

    Raises:
        ValueError: there is no adapter, a factor has no partner, or an option does not go with pairs.
    """

    def __init__(self, groups: Sequence[Mapping[str, Any]], normuon: bool, cautious_decay: bool) -> None:
        for option, value in (("normuon", normuon), ("cautious_decay", cautious_decay)):
            if value:
                raise ValueError(
                    f"{option} = true: expected false with adapters = paired, whose decay is the product's"
                )
        factors: dict[str, dict[str, tuple[Tensor, Mapping[str, Any]]]] = {}
        for group in groups:
            if group["role"] != "adapter":
                continue
            if group["lr"] * group["weight_decay"] >= 1:
                raise ValueError(f"weight_decay = {group['weight_decay']}: expected lr * weight_decay < 1 for pairs")
            for name, param in zip(group.get("param_names") or [], group["params"], strict=False):
                path, _, leaf = name.rpartition(".")
                factors.setdefault(path, {})[leaf] = (param, group)
        if not factors:
            raise ValueError("adapters = paired: expected LoRA's factors among the parameters, with names")
        self.pairs = [self._pair(path, found) for path, found in factors.items()]
        self._updates: dict[Tensor, Tensor] = {}

    @staticmethod
    def _pair(path: str, found: Mapping[str, tuple[Tensor, Mapping[str, Any]]]) -> tuple[Tensor, Tensor, tuple, tuple]:
        if set(found) != {"lora_A", "lora_B"}:
            raise ValueError(f"adapters = paired: {path} has {sorted(found)}: expected lora_A and lora_B")
        (A, group_A), (B, group_B) = found["lora_A"], found["lora_B"]
        split_A, split_B = (group_A["split"] or (A.size(0),)), (group_B["split"] or (B.size(0),))
        if len(split_A) != len(split_B) or any(rows != B.size(1) for rows in split_A):
            raise ValueError(
                f"adapters = paired: the factors of {path} have blocks of {list(split_A)} and {list(split_B)} rows: "
                "expected one block of r rows of lora_A for each block of lora_B; use qkv = split"
            )
        return B, A, tuple(split_B), tuple(split_A)

    def update(self, owner: Owner, group: dict[str, Any], entries: Sequence[Entry], momentum: float) -> None:
        """Move the factors of one group.

        Args:
            owner: the optimizer.
            group: its group.
            entries: the group's parameters that have a gradient.
            momentum: decay rate of this step.

        Raises:
            ValueError: one factor of a pair has a gradient and the other has none.
        """
        if not self._updates:
            self._compute(owner, group, entries, momentum)
        shrink = math.sqrt(1 - group["lr"] * group["weight_decay"])
        for entry in entries:
            entry.target.mul_(shrink).add_(self._updates.pop(entry.param), alpha=-group["lr"] / shrink)

    def _compute(self, owner: Owner, group: dict[str, Any], entries: Sequence[Entry], momentum: float) -> None:
        adapters = [other for other in owner.param_groups if other["role"] == "adapter"]
        lists = [entries if other is group else owner.entries(other) for other in adapters]
        by_param = {entry.param: entry for found in lists for entry in found}
        alike: dict[tuple[Any, ...], list[tuple[Entry, Entry]]] = {}
        for B, A, split_B, split_A in self.pairs:
            if (B in by_param) != (A in by_param):
                name = by_param[B if B in by_param else A].name
                raise ValueError(f"adapters = paired: the partner of {name} has no gradient: expected one for both")
            if B in by_param:
                layout = (B.device_mesh, B.placements) if isinstance(B, DTensor) else None
                key = (B.shape, A.shape, split_B, split_A, B.device, B.dtype, layout)
                alike.setdefault(key, []).append((by_param[B], by_param[A]))
        for (_, _, split_B, split_A, *_), pairs in alike.items():
            self._update_alike(owner, group, pairs, (split_B, split_A), momentum)

    def _update_alike(
        self,
        owner: Owner,
        options: Mapping[str, Any],
        pairs: Sequence[tuple[Entry, Entry]],
        splits: tuple[tuple[int, ...], tuple[int, ...]],
        momentum: float,
    ) -> None:
        moved = []
        for entries in zip(*pairs, strict=True):
            buffers = [momentum_buffer(entry) for entry in entries]
            grads = [entry.grad for entry in entries]
            moved.append(directions(buffers, grads, momentum=momentum, nesterov=options["nesterov"]))
        dtype = moved[0][0].dtype
        pieces = [
            [M_B, B.target.to(dtype), M_A, A.target.to(dtype)] for M_B, M_A, (B, A) in zip(*moved, pairs, strict=True)
        ]
        first_B, first_A = pairs[0]
        rows_B, rows_A = first_B.param.size(0), first_A.param.size(0)
        split_B, split_A = splits

        def blocks_update(stacks: list[Tensor]) -> list[Tensor]:
            keys = ("ns_steps", "ns_coefficients", "lr_scale")
            return list(paired_update(*stacks, **{key: options[key] for key in keys}))

        results = exchange_of(first_B.name, first_B.param, owner.share_work).map(
            pieces, [rows_B, rows_B, rows_A, rows_A], [split_B, split_B, split_A, split_A], blocks_update, (0, 2)
        )
        for (B, A), (update_B, update_A) in zip(pairs, results, strict=True):
            self._updates[B.param], self._updates[A.param] = update_B, update_A


def paired_update(
    direction_B: Tensor,
    lora_B: Tensor,
    direction_A: Tensor,
    lora_A: Tensor,
    *,
    ns_steps: int,
    ns_coefficients: Coefficients,
    lr_scale: LrScale,
) -> tuple[Tensor, Tensor]:
    r"""Updates of both factors of each pair.

    .. math::
        R_A = (A A^T + \delta_A I)^{-1/2}, \quad R_B = (B^T B + \delta_B I)^{-1/2}, \quad
        u_B = \tfrac{s}{2} \, \text{polar}(M_B R_A) R_A, \quad u_A = \tfrac{s}{2} R_B \, \text{polar}(R_B M_A)

    Args:
        direction_B: momentum M_B of B, (batch, rows, r); only read, as all tensors here.
        lora_B: B, (batch, rows, r).
        direction_A: momentum M_A of A, (batch, r, columns).
        lora_A: A, (batch, r, columns).
        ns_steps: Newton-Schulz iterations.
        ns_coefficients: their polynomials.
        lr_scale: rule for s, from the product's shape (rows, columns).

    Returns:
        u_B and u_A; finite where the inputs are, zero where the direction is zero or the other factor has no size.
    """
    root_A, root_B = inverse_roots(lora_A @ lora_A.mT, lora_B.mT @ lora_B)
    scale = 0.5 * shape_scale(lr_scale, lora_B.size(-2), lora_A.size(-1))
    options: dict[str, Any] = {"ns_steps": ns_steps, "ns_coefficients": ns_coefficients, "form": "gram"}
    update_B = newton_schulz(direction_B @ root_A, **options) @ root_A
    update_A = root_B @ newton_schulz(root_B @ direction_A, **options)
    return update_B.mul_(scale), update_A.mul_(scale)


def inverse_roots(gram_A: Tensor, gram_B: Tensor) -> tuple[Tensor, Tensor]:
    """Inverse square roots of two stacks of Gram matrices (batch, r, r), each dampened by the other's largest value.

    Both factors zero: zero. A matrix that is not finite gives NaN, and no other of its batch does.
    """
    (values_A, vectors_A), (values_B, vectors_B) = _eigen(gram_A), _eigen(gram_B)
    largest_A, largest_B = values_A[..., -1:], values_B[..., -1:]
    root_A = _inverse_root(values_A + DAMPING**2 * largest_B, vectors_A)
    root_B = _inverse_root(values_B + DAMPING**2 * largest_A, vectors_B)
    return root_A, root_B


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, at least 0 and ascending, and eigenvectors; NaN values for what is not finite."""
    finite = gram.isfinite().all(-1).all(-1)[..., None]
    # the decomposition raises on NaN, for the whole batch
    values, vectors = torch.linalg.eigh(torch.where(finite[..., None], gram, 0))
    return torch.where(finite, values.clamp(min=0), float("nan")), vectors


def _inverse_root(values: Tensor, vectors: Tensor) -> Tensor:
    # directions without any size, to rounding, are left out
    floor = values[..., -1:] * torch.finfo(values.dtype).eps
    inverse = values.rsqrt().masked_fill(values <= floor, 0)
    return (vectors * inverse[..., None, :]) @ vectors.mT
