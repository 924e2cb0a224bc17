"""Filtered Muon: MoFO's filter on Muon's momentum. An experiment: nobody has published it.

Of each block only the share of coordinates with the largest momentum is kept, and what is kept is orthogonalized
(``filter_stage: momentum``): the update is that of a sparse matrix, itself dense. Or the update is orthogonalized whole
and then masked (``update``): then only the share moves, and it is no longer orthogonal. With fraction 1 it is Muon.

Given up: weight decay that spares what the filter leaves; AdamW's part is not filtered.

Source: Muon as in ``muon.py``; the filter of Chen et al. 2025, MoFO, arXiv 2407.20999, whose score is the momentum;
here it is the direction that Muon orthogonalizes, with nesterov a step ahead.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_choice, check_share
from lit_consistency.optimizers.core.optimizer import DECAY_ROLES, LowPrecision
from lit_consistency.optimizers.filtering.threshold import number_kept, select_largest
from lit_consistency.optimizers.muon import Muon
from lit_consistency.optimizers.muon_step import LrScale
from lit_consistency.optimizers.orthogonal.choice import NSDtype, NSForm
from lit_consistency.optimizers.orthogonal.newton_schulz import Coefficients

FilterStage = Literal["momentum", "update"]
FILTER_STAGES = ("momentum", "update")


class FilteredMuon(Muon):
    """Muon on the share of each block's coordinates that have the largest momentum.

    Args:
        groups: of ``parameter_groups(model)``.
        fraction: share of each block's coordinates that is kept, 0 < fraction <= 1; at least one is.
        filter_stage: ``momentum`` keeps that share of the momentum and orthogonalizes it; ``update`` keeps those
            coordinates of the orthogonalized update.
        lr: learning rate of the matrices, at least 0.
        momentum: decay rate of the sum of past gradients, in [0, 1).
        nesterov: look one step ahead.
        weight_decay: per step, matrices shrink by lr * weight_decay, every coordinate; at least 0.
        orthogonalize: false turns the matrices' part into SGD with momentum, without a filter.
        ns_steps: Newton-Schulz iterations, at least 1.
        ns_coefficients: polynomials of the iterations; see ``Muon``.
        ns_form: form of the iterations; see ``Muon``.
        ns_dtype: precision of the iterations; see ``Muon``.
        lr_scale: factor on lr from the shape of a block; see ``Muon``.
        cautious_decay: weight decay only where it and the update pull the same way.
        normuon: divide each row of the update by the root of the running mean of its square.
        normuon_beta2: decay rate of that mean, in [0, 1).
        momentum_warmup_steps: steps over which the momentum rises linearly from 0.85; 0: none.
        role_lr: role -> factor on the learning rate of its groups, at least 0.
        share_work: ranks that hold the same parameters share the orthogonalization out; see ``Muon``.
        adamw_lr: learning rate of the rest, at least 0.
        adamw_betas: decay rates of the rest's running means, each in [0, 1).
        adamw_eps: added to the rest's denominator, at least 0.
        adamw_weight_decay: decoupled weight decay of the rest, at least 0.
        decay_roles: roles of the parameters that shrink.
        low_precision: how parameters in bfloat16 or float16 move; see ``Muon``.
        seed: of stochastic rounding.
    """

    keeps_update = False

    def __init__(
        self,
        groups: ParamsT,
        fraction: float = 0.15,
        filter_stage: FilterStage = "momentum",
        lr: float = 3e-4,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        orthogonalize: bool = True,
        ns_steps: int = 5,
        ns_coefficients: Coefficients = "polar_express",
        ns_form: NSForm = "auto",
        ns_dtype: NSDtype = "auto",
        lr_scale: LrScale = "match_rms_adamw",
        cautious_decay: bool = False,
        normuon: bool = False,
        normuon_beta2: float = 0.95,
        momentum_warmup_steps: int = 0,
        role_lr: Mapping[str, float] | None = None,
        share_work: bool = True,
        adamw_lr: float = 3e-4,
        adamw_betas: tuple[float, float] = (0.9, 0.999),
        adamw_eps: float = 1e-8,
        adamw_weight_decay: float = 0.0,
        decay_roles: Sequence[str] = DECAY_ROLES,
        low_precision: LowPrecision = "master",
        seed: int = 0,
    ) -> None:
        check_share("fraction", fraction)
        check_choice("filter_stage", filter_stage, FILTER_STAGES)
        super().__init__(
            groups,
            lr=lr,
            momentum=momentum,
            nesterov=nesterov,
            weight_decay=weight_decay,
            orthogonalize=orthogonalize,
            ns_steps=ns_steps,
            ns_coefficients=ns_coefficients,
            ns_form=ns_form,
            ns_dtype=ns_dtype,
            lr_scale=lr_scale,
            cautious_decay=cautious_decay,
            normuon=normuon,
            normuon_beta2=normuon_beta2,
            momentum_warmup_steps=momentum_warmup_steps,
            role_lr=role_lr,
            share_work=share_work,
            adamw_lr=adamw_lr,
            adamw_betas=adamw_betas,
            adamw_eps=adamw_eps,
            adamw_weight_decay=adamw_weight_decay,
            decay_roles=decay_roles,
            low_precision=low_precision,
            seed=seed,
        )
        for group in self._matrix_groups():
            group["fraction"] = fraction
            group["filter_stage"] = filter_stage

    def update_of_blocks(self, options: dict[str, Any], stacks: list[Tensor]) -> list[Tensor]:
        """As ``Muon.update_of_blocks``, filtered before or after."""
        direction, *others = stacks
        if options["fraction"] == 1:
            return super().update_of_blocks(options, stacks)
        mask = mask_of_blocks(direction, options["fraction"])
        if options["filter_stage"] == "momentum":
            return super().update_of_blocks(options, [torch.where(mask, direction, 0), *others])
        update, *others = super().update_of_blocks(options, stacks)
        return [torch.where(mask, update, 0), *others]


def mask_of_blocks(direction: Tensor, fraction: float) -> Tensor:
    """The coordinates of each block that are kept: those of largest size, of equal ones the first.

    Args:
        direction: (batch, rows, columns).
        fraction: share of each block, in (0, 1].

    Returns:
        Bool mask of that shape. A block with a NaN keeps what is larger than every number among the rest.
    """
    kept = number_kept(fraction, direction[0].numel())
    return torch.stack([select_largest(block.abs(), kept) for block in direction])
