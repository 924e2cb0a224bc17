"""LoRA-Muon: the two factors of an adapter move so that their product moves as Muon would move it.

W = B A with B (rows, r) and A (r, columns). Each factor's momentum is whitened by the other factor's Gram matrix,
orthogonalized, and whitened back: both terms of the change, dB A and B dA, then have a spectral norm of at most half
the learning rate, however the factors are scaled against each other. Weight decay acts on the product: each factor
shrinks by the root. A fused query-key-value adapter is one pair for each block.

Given up: B is zero at the start and its Gram matrix has no inverse. Ours, not the paper's: a tenth of the other
factor's largest singular value is added in quadrature to the singular values of each, so that A stays where it is while
B is zero, and does not leap when B is still small. Iterations are in float32 or float64: the matrices are small.
The factor on the product (alpha / r, or alpha / sqrt(r) with rsLoRA) is not known here: it multiplies the learning
rate. DoRA's magnitudes are no part of the product: the bound is on what it adds before rows are rescaled, and AdamW
moves them, as every vector.

Source: Cesista et al. 2026, LoRA-Muon: Spectral Steepest Descent on the Low-Rank Manifold, arXiv 2606.12921.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lit_consistency.optimizers.core.optimizer import Entry
from lit_consistency.optimizers.orthogonal.choice import LrScale, shape_scale
from lit_consistency.optimizers.orthogonal.orthogonalizer import map_blocks, newton_schulz
from lit_consistency.optimizers.orthogonal.polynomials import Coefficients
from lit_consistency.optimizers.sharding.exchange import exchange_of
from lit_consistency.optimizers.sharding.overlap import result_of

# A parameter and its group.
Factor = tuple[Tensor, Mapping[str, Any]]
# Share of the other factor's largest singular value that dampens each factor's.
DAMPING = 0.1


class Pair(NamedTuple):
    """The factors of one module, W = B A, and the rows of their blocks."""

    B: Tensor
    A: Tensor
    split_B: tuple[int, ...]
    split_A: tuple[int, ...]


class Owner(Protocol):
    """What ``LoRAPairs`` needs of the optimizer."""

    param_groups: list[dict[str, Any]]
    share_work: bool

    def entries(self, group: dict[str, Any]) -> list[Entry]:
        """The group's parameters that have a gradient."""
        ...

    def directions(self, group: Mapping[str, Any], entries: Sequence[Entry]) -> list[Tensor]:
        """Directions of the momentum of parameters, local."""
        ...


class LoRAPairs:
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
        factors: dict[str, dict[str, Factor]] = {}
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
        self.pairs = [pair_of(path, of_path) for path, of_path in factors.items()]
        self._updates: dict[Tensor, Tensor] = {}

    def update(self, owner: Owner, group: dict[str, Any], entries: Sequence[Entry]) -> None:
        """Move the factors of one group.

        Args:
            owner: the optimizer.
            group: its group.
            entries: the group's parameters that have a gradient.

        Raises:
            ValueError: one factor of a pair has a gradient and the other has none.
        """
        if not self._updates:
            self._compute(owner, group, entries)
        shrink = math.sqrt(1 - group["lr"] * group["weight_decay"])
        for entry in entries:
            entry.target.mul_(shrink).add_(self._updates.pop(entry.param), alpha=-group["lr"] / shrink)

    def _compute(self, owner: Owner, group: dict[str, Any], entries: Sequence[Entry]) -> None:
        """Updates of all pairs, by shapes and layout."""
        by_param: dict[Tensor, tuple[Entry, Tensor]] = {}
        for other in owner.param_groups:
            if other["role"] == "adapter":
                of_group = entries if other is group else owner.entries(other)
                moved = zip(of_group, owner.directions(other, of_group), strict=True)
                by_param |= {entry.param: (entry, direction) for entry, direction in moved}
        alike: dict[tuple[Any, ...], list[Pair]] = {}
        for pair in self.pairs:
            B, A = pair.B, pair.A
            if (B in by_param) != (A in by_param):
                name = by_param[B if B in by_param else A][0].name
                raise ValueError(f"adapters = paired: the partner of {name} has no gradient: expected one for both")
            if B in by_param:
                layout = (B.device_mesh, B.placements) if isinstance(B, DTensor) else None
                key = (B.shape, A.shape, pair.split_B, pair.split_A, B.device, B.dtype, layout)
                alike.setdefault(key, []).append(pair)
        options = {key: group[key] for key in ("ns_steps", "ns_coefficients", "lr_scale")}
        for pairs in alike.values():
            first, first_entry = pairs[0], by_param[pairs[0].B][0]
            pieces = []
            for pair in pairs:
                piece = []
                for entry, direction in (by_param[pair.B], by_param[pair.A]):
                    piece += [direction, entry.target.to(direction.dtype)]
                pieces.append(piece)
            rows_B, rows_A = first.B.size(0), first.A.size(0)
            job = map_blocks(
                exchange_of(first_entry.name, first.B, owner.share_work),
                pieces,
                rows=[rows_B, rows_B, rows_A, rows_A],
                splits=[first.split_B, first.split_B, first.split_A, first.split_A],
                function=partial(_update_of_blocks, options),
                like=(0, 2),
            )
            results = result_of(job)
            for pair, (update_B, update_A) in zip(pairs, results, strict=True):
                self._updates[pair.B], self._updates[pair.A] = update_B, update_A


def pair_of(path: str, factors: Mapping[str, Factor]) -> Pair:
    """The pair of the factors of one module.

    Args:
        path: of the module, for errors.
        factors: name of the parameter -> parameter and its group.

    Raises:
        ValueError: one is missing, or their blocks do not go together.
    """
    if set(factors) != {"lora_A", "lora_B"}:
        raise ValueError(f"adapters = paired: {path} has {sorted(factors)}: expected lora_A and lora_B")
    (A, group_A), (B, group_B) = factors["lora_A"], factors["lora_B"]
    split_A, split_B = (group_A["split"] or (A.size(0),)), (group_B["split"] or (B.size(0),))
    if len(split_A) != len(split_B) or any(rows != B.size(1) for rows in split_A):
        raise ValueError(
            f"adapters = paired: the factors of {path} have blocks of {list(split_A)} and {list(split_B)} rows: "
            "expected one block of r rows of lora_A for each block of lora_B; use qkv = split"
        )
    return Pair(B, A, tuple(split_B), tuple(split_A))


def _update_of_blocks(options: Mapping[str, Any], stacks: list[Tensor]) -> list[Tensor]:
    return list(paired_update(*stacks, **options))


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
