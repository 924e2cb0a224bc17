"""Bars that are met or missed, floors, and tables; steps are timed by optimizers/measure.py."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch

from lit_consistency.optimizers.measure import Step, medians, peak_bytes, seconds

__all__ = ["Bar", "Step", "gemm_flops", "medians", "newton_schulz_flops", "peak_bytes", "seconds", "table"]


class Bar(NamedTuple):
    """What a measured number must be."""

    name: str
    value: float
    limit: float
    at_least: bool = False

    @property
    def met(self) -> bool:
        """NaN meets nothing."""
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def text(self) -> str:
        sign = ">=" if self.at_least else "<="
        return f"{self.name}: {self.value:.3g}, bar {sign} {self.limit:.3g}"


def gemm_flops(n: int, dtype: torch.dtype, device: str) -> float:
    """FLOPs per second of products of (n, n) matrices."""
    a = torch.randn(n, n, device=device).to(dtype)
    return 2 * n**3 / (medians({"mm": lambda: a @ a}, device, 3)["mm"] / 1e3)


def newton_schulz_flops(rows: int, columns: int, steps: int = 5) -> float:
    """Fewest FLOPs known for orthogonalizing a block: symmetric products count half.

    With n <= m, per iteration of the direct form: X X^T n^2 m, its square n^3, the product with X 2 n^2 m. In Gram form
    X X^T once, 4 symmetric products of n^3 per iteration, of which the first needs 3 and the last 2, and one product
    with X; arXiv 2505.16932, section 4, and Dao-AILab/gram-newton-schulz.
    """
    n, m = sorted((rows, columns))
    direct = steps * (3 * n**2 * m + n**3)
    gram = 3 * n**2 * m + (4 * steps - 3) * n**3
    return float(min(direct, gram))


def table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows as aligned text; the first row's keys are the columns."""
    header = list(rows[0])
    lines = [header, *[[row.get(key, "") for key in header] for row in rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
