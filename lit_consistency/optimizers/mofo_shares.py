"""Which share of the coordinates a filter has selected and moved: counts on the way, a division when asked."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lit_consistency.optimizers.shards import sum_over

Counts = tuple[Tensor, Tensor]  # numbers of coordinates selected, and of those with a non-zero update, of shape ()


class Shares:
    """Counts of one step; nothing is divided, moved to the host or told to other ranks before it is asked for."""

    def __init__(self) -> None:
        self._counts: defaultdict[tuple[str, Any], list[Counts]] = defaultdict(list)
        self._numel: defaultdict[str, int] = defaultdict(int)
        self._known: dict[str, tuple[float, float]] | None = None

    def add(self, role: str, group: Any, numel: int, counts: Iterable[Counts]) -> None:
        """Put counts to those of a role.

        Args:
            role: of the parameters.
            group: process group over whose ranks the coordinates lie, or None.
            numel: number of coordinates on all ranks.
            counts: on this rank.
        """
        self._counts[role, group].extend(counts)
        self._numel[role] += numel

    def by_role(self) -> dict[str, tuple[float, float]]:
        """Shares selected and moved; the ranks of a process group must ask together, the first time."""
        if self._known is None:
            sums: defaultdict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
            if self._counts:
                groups = [group for _, group in self._counts]
                totals = torch.stack([_sum(counts) for counts in self._counts.values()])
                for (role, _), (selected, moved) in zip(self._counts, sum_over(totals, groups).tolist(), strict=True):
                    sums[role][0] += selected
                    sums[role][1] += moved
            self._known = {role: (s / self._numel[role], m / self._numel[role]) for role, (s, m) in sums.items()}
        return self._known


def _sum(counts: Iterable[Counts]) -> Tensor:
    """Sum of the counts, float64 (2,)."""
    columns = zip(*counts, strict=True)
    return torch.stack([torch.stack([number.double() for number in column]).sum() for column in columns])
