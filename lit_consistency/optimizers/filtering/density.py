"""Which share of the coordinates a filter has selected and moved: found out when it is asked for.

The choice of a step can be made again from its thresholds and moments, so that a step itself counts nothing. It has to
be asked for before the moments change again.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lit_consistency.optimizers.core.optimizer import Entry, local
from lit_consistency.optimizers.filtering.blocks import Work
from lit_consistency.optimizers.sharding.layout import layout_of, sum_over


class Whole(NamedTuple):
    """A parameter that was filtered with fraction 1: all of it was selected."""

    exp_avg: Tensor  # local running mean after the step


class Shares:
    """The works of one step that have moved."""

    def __init__(self) -> None:
        self._works: defaultdict[tuple[str, Any], list[Work | Whole | Tensor]] = defaultdict(list)
        self._numel: defaultdict[str, int] = defaultdict(int)
        self._known: dict[str, tuple[float, float]] | None = None

    def __reduce__(self) -> tuple[type[Shares], tuple[()]]:
        """A copy is empty: a copied optimizer has made no step."""
        return Shares, ()

    def add(self, role: str, work: Work) -> None:
        """Remember a work that has moved; its gradient is let go, after it is counted where the score is of it."""
        by_gradient = work.rule.filter == "gradient" and work.mask is None
        self._works[role, work.layout.group].append(_counts(work) if by_gradient else work)
        self._numel[role] += work.layout.bounds[-1]
        work.grad = work.exp_avg

    def add_whole(self, role: str, entry: Entry) -> None:
        """Remember a parameter that took the whole step."""
        layout = layout_of(entry.name, entry.param)
        self._works[role, layout.group].append(Whole(local(entry.state["exp_avg"])))
        self._numel[role] += layout.bounds[-1]

    def by_role(self) -> dict[str, tuple[float, float]]:
        """Shares selected and moved; the ranks of a process group must ask together, the first time."""
        if self._known is None:
            sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            if self._works:
                groups = [group for _, group in self._works]
                totals = torch.stack([_total(works) for works in self._works.values()])
                for (role, _), (selected, moved) in zip(self._works, sum_over(totals, groups).tolist(), strict=True):
                    sums[role][0] += selected
                    sums[role][1] += moved
            self._known = {role: (s / self._numel[role], m / self._numel[role]) for role, (s, m) in sums.items()}
            self._works.clear()
        return self._known


def _total(works: list[Work | Whole | Tensor]) -> Tensor:
    return torch.stack([work if isinstance(work, Tensor) else _counts(work) for work in works]).sum(0)


def _counts(work: Work | Whole) -> Tensor:
    """Numbers of coordinates on this rank that were selected, and of those with a non-zero update, float64 (2,)."""
    if isinstance(work, Whole):
        moved = work.exp_avg.count_nonzero()
        return torch.stack([torch.full_like(moved, work.exp_avg.numel()), moved]).double()
    if work.mask is not None:
        masks = [(work.mask, work.exp_avg)]
    else:
        masks = [
            (work.selected(block, threshold), work.exp_avg[slice(*work.span(block))])
            for block, threshold in zip(work.blocks, work.thresholds, strict=True)
        ]
    counts = [torch.stack([mask.count_nonzero(), (mask & (mean != 0)).count_nonzero()]) for mask, mean in masks]
    return torch.stack(counts).sum(0).double()
