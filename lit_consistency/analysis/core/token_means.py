"""Means over the tokens of a text, added up batch by batch, with intervals over its documents."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from lit_consistency.analysis.core.texts import Text
from lit_consistency.records.tables import Row
from lit_consistency.stats.intervals import estimate, ratio


class TokenMeans:
    """Sums and counts of any numbers by item: tokens of one document are not independent.

    Args:
        text: of the tokens.

    Attributes:
        largest: name -> largest value so far.
    """

    def __init__(self, text: Text) -> None:
        self.text = text
        self.sums: dict[str, Tensor] = {}
        self.largest: dict[str, float] = {}

    def add(self, values: Mapping[str, Tensor], items: Tensor) -> None:
        """Name -> (n,) of positions, and the items that they are of; what is no number does not count."""
        for name, value in values.items():
            known = value.double().cpu()
            is_number = known.isfinite()
            sums = self.sums.setdefault(name, torch.zeros(2, len(self.text.items), dtype=torch.float64))
            sums.index_add_(1, items, torch.stack([known.where(is_number, 0), is_number.double()]))
            if is_number.any():
                self.largest[name] = max(self.largest.get(name, -math.inf), float(known[is_number].max()))

    def row(self) -> Row:
        """Name, ``_low`` and ``_high`` of every number."""
        row: Row = {}
        for name, sums in self.sums.items():
            found = estimate(ratio(sums[0].numpy(), sums[1].numpy()), self.text.clusters)
            row |= {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}
        return row
