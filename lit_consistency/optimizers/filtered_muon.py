"""Filtered Muon: MoFO's filter on Muon's momentum. An experiment: nobody has published it.

Of each block only the share of coordinates with the largest momentum is kept, and what is kept is orthogonalized
(``filter_stage: momentum``): the update is that of a sparse matrix, itself dense. Or the update is orthogonalized whole
and then masked (``update``): then only the share moves, and it is no longer orthogonal. With fraction 1 it is Muon.

Given up: weight decay that spares what the filter leaves; AdamW's part is not filtered; LoRA's factors in pairs.

Source: Muon as in ``muon.py``; the filter of Chen et al. 2025, MoFO, arXiv 2407.20999, whose score is the momentum;
here it is the direction that Muon orthogonalizes, with nesterov a step ahead.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lit_consistency.optimizers.core.checks import check_choice, check_share
from lit_consistency.optimizers.filtering.threshold import number_kept, select_largest
from lit_consistency.optimizers.groups import MATRIX_ROLES
from lit_consistency.optimizers.muon import MatrixOptions, Muon

FilterStage = Literal["momentum", "update"]
FILTER_STAGES = ("momentum", "update")


class FilteredMuon(Muon):
    """Muon on the share of each block's coordinates that have the largest momentum.

    Weight decay shrinks every coordinate, and without ``orthogonalize`` nothing is filtered.

    Args:
        groups: of ``parameter_groups(model)``.
        fraction: share of each block's coordinates that is kept, 0 < fraction <= 1; at least one is.
        filter_stage: ``momentum`` keeps that share of the momentum and orthogonalizes it; ``update`` keeps those
            coordinates of the orthogonalized update.
        **kwargs: options of ``Muon``, but for ``adapters``.
    """

    def __init__(
        self, groups: ParamsT, fraction: float = 0.15, filter_stage: FilterStage = "momentum", **kwargs: Any
    ) -> None:
        check_share("fraction", fraction)
        check_choice("filter_stage", filter_stage, FILTER_STAGES)
        self.filter = {"fraction": fraction, "filter_stage": filter_stage}
        super().__init__(groups, adapters="factor", **kwargs)

    def complete_group(self, group: dict[str, Any]) -> dict[str, Any]:
        """As for Muon, and with the filter of matrices."""
        group = super().complete_group(group)
        return self.filter | group if group["role"] in MATRIX_ROLES else group

    def update_of_blocks(self, group: Mapping[str, Any], options: MatrixOptions, stacks: list[Tensor]) -> list[Tensor]:
        """As ``Muon.update_of_blocks``, filtered before or after."""
        direction, *others = stacks
        if group["fraction"] == 1:
            return super().update_of_blocks(group, options, stacks)
        mask = mask_of_blocks(direction, group["fraction"])
        if group["filter_stage"] == "momentum":
            return super().update_of_blocks(group, options, [torch.where(mask, direction, 0), *others])
        update, *others = super().update_of_blocks(group, options, stacks)
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
