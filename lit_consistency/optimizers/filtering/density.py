"""Which share of the coordinates a filter has selected and moved: counted when it is asked for.

The choice of a step can be made again from its thresholds and means, so that a step itself counts nothing. It has to
be asked for before the means change again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lit_consistency.optimizers.core.optimizer import Entry, local
from lit_consistency.optimizers.filtering.blocks import ParameterStep
from lit_consistency.optimizers.sharding.layout import layout_of, sum_over


class SelectionStats:
    """Shares of one step, by role."""

    def __init__(self) -> None:
        # by role and process group, for each parameter what counts on this rank: selected and moved, float64 (2,)
        self._counts: defaultdict[tuple[str, Any], list[Callable[[], Tensor]]] = defaultdict(list)
        self._numel: defaultdict[str, int] = defaultdict(int)
        self._shares: dict[str, tuple[float, float]] | None = None

    def __reduce__(self) -> tuple[type[SelectionStats], tuple[()]]:
        """A copy is empty: a copied optimizer has made no step."""
        return SelectionStats, ()

    def add(self, role: str, step: ParameterStep) -> None:
        """Remember a parameter that was filtered; its gradient and values are let go."""
        count = partial(_selected_and_moved, step)
        if step.rule.filter == "gradient" and step.mask is None:
            # scores of gradients cannot be made again without them
            counts = count()
            count = partial(torch.clone, counts)
        self._counts[role, step.layout.group].append(count)
        self._numel[role] += step.layout.bounds[-1]
        step.release()

    def add_counts(self, role: str, numel: int, count: Callable[[], Tensor]) -> None:
        """Remember parameters that are not sharded, of so many coordinates together, whose step counts itself."""
        self._counts[role, None].append(count)
        self._numel[role] += numel

    def add_unfiltered(self, role: str, entry: Entry) -> None:
        """Remember a parameter that took the whole step because its fraction is 1."""
        layout = layout_of(entry.name, entry.param)
        self._counts[role, layout.group].append(partial(_all_and_moved, local(entry.state["exp_avg"])))
        self._numel[role] += layout.bounds[-1]

    def shares(self) -> dict[str, tuple[float, float]]:
        """Role -> shares in [0, 1] selected and moved.

        Where parameters are sharded this is a collective call, the first time after a step.
        """
        if self._shares is None:
            sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            if self._counts:
                totals = [torch.stack([count() for count in counts]).sum(0) for counts in self._counts.values()]
                over_ranks = sum_over(torch.stack(totals), [group for _, group in self._counts]).tolist()
                for (role, _), (selected, moved) in zip(self._counts, over_ranks, strict=True):
                    sums[role][0] += selected
                    sums[role][1] += moved
            self._shares = {role: (s / self._numel[role], m / self._numel[role]) for role, (s, m) in sums.items()}
            self._counts.clear()
        return self._shares


def _selected_and_moved(step: ParameterStep) -> Tensor:
    """Numbers of coordinates on this rank that were selected, and of those with a non-zero update."""
    if step.mask is not None:
        masks = [(step.mask, step.exp_avg)]
    else:
        masks = [
            (step.selected(block, threshold), step.exp_avg[slice(*step.local_range(block))])
            for block, threshold in zip(step.blocks, step.thresholds, strict=True)
        ]
    counts = [torch.stack([mask.count_nonzero(), (mask & (mean != 0)).count_nonzero()]) for mask, mean in masks]
    return torch.stack(counts).sum(0).double()


def _all_and_moved(exp_avg: Tensor) -> Tensor:
    """The same of a parameter of which every coordinate was selected."""
    moved = exp_avg.count_nonzero()
    return torch.stack([torch.full_like(moved, exp_avg.numel()), moved]).double()
