"""How steps are measured: interleaved rounds, medians, allocated bytes, and bars that are met or missed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]
MIN_SECONDS = 0.02  # a measurement repeats a step until it takes this long


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


def seconds(step: Step, device: str, repeats: int = 1) -> float:
    """Time of one step: the process's CPU time, or on CUDA the time between two events, the device idle before it."""
    if device == "cpu":
        start = time.process_time_ns()
        for _ in range(repeats):
            step()
        return (time.process_time_ns() - start) / 1e9 / repeats
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(repeats):
        step()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last) / 1e3 / repeats


def medians(steps: Mapping[str, Step], device: str, rounds: int, seed: int = 0) -> dict[str, float]:
    """Median milliseconds of each step over ``rounds``, in each of which all are measured, in shuffled order.

    Every step is run once before: it makes its state, and compiles what is compiled.
    """
    repeats, times = {}, {name: list[float]() for name in steps}
    for name, step in steps.items():
        step()
        once = seconds(step, device) if rounds > 1 else MIN_SECONDS
        repeats[name] = max(1, int(MIN_SECONDS / max(once, 1e-6)))
    order = random.Random(seed)
    for _ in range(rounds):
        names = list(steps)
        order.shuffle(names)
        for name in names:
            times[name].append(1e3 * seconds(steps[name], device, repeats[name]))
    return {name: statistics.median(values) for name, values in times.items()}


def peak_bytes(step: Step, device: str) -> int:
    """Most bytes of tensors that are allocated at once during a step, above those before it."""
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        step()
    assert measured.profiler is not None
    events = measured.profiler.kineto_results.events()
    sizes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    allocated = peak = 0
    for _, nbytes in sorted(sizes, key=lambda event: event[0]):
        allocated += nbytes
        peak = max(peak, allocated)
    return peak


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
