"""Where the time of a step goes, without making the device wait for the clock.

A GPU runs behind the program that feeds it, so the program's clock would count forward and backward as the phase that
happens to wait for them. On CUDA the marks are events in the device's stream, read when the numbers are wanted;
elsewhere they are times of the program's clock.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Clock:
    """Seconds of the phases of a step: data, forward and backward, optimizer, evaluation, saving.

    Args:
        device: whose time is measured.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._last: Any = None
        self._laps: list[tuple[str, float, Any, Any]] = []
        self.reset()

    def reset(self) -> None:
        """Forget the laps; the next one starts now."""
        self._laps.clear()
        self._last = self._now()

    def lap(self, phase: str, evaluation: float = 0.0) -> None:
        """Count the time since the last mark as the phase's, except for ``evaluation`` seconds of it."""
        now = self._now()
        self._laps.append((phase, evaluation, self._last, now))
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Phase -> seconds since the reset, with ``evaluation`` as a phase of its own; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        phases: dict[str, float] = defaultdict(float)
        for phase, evaluation, start, end in self._laps:
            elapsed = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            phases[phase] += max(elapsed - evaluation, 0.0)
            phases["evaluation"] += evaluation
        return dict(phases)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
