"""How steps are timed: interleaved rounds, medians, and the most bytes that are allocated at once."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

Step = Callable[[], Any]
MIN_SECONDS = 0.02  # a measurement repeats a step until it takes this long


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
    names, order = list(steps), torch.Generator().manual_seed(seed)
    for _ in range(rounds):
        for i in torch.randperm(len(names), generator=order).tolist():
            times[names[i]].append(1e3 * seconds(steps[names[i]], device, repeats[names[i]]))
    return {name: float(torch.tensor(values, dtype=torch.float64).quantile(0.5)) for name, values in times.items()}


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
