"""Where the time of a step goes, without making the device wait for the clock.

A GPU runs behind the program that feeds it, so the program's clock would credit forward and backward to whichever part
happens to wait. On CUDA the marks are events in the device's stream, read when the numbers are wanted; elsewhere they
are the program's clock.
"""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import torch


class Clock:
    """Laps of named parts.

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

    def lap(self, part: str, evaluation: float = 0.0) -> None:
        """Credit the time since the last mark to a part, but for the seconds that an evaluation took of it."""
        now = self._now()
        self._laps.append((part, evaluation, self._last, now))
        self._last = now

    def seconds(self) -> dict[str, float]:
        """Seconds of each part since the reset, those of evaluations by themselves; waits for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        parts: dict[str, float] = defaultdict(float)
        for part, evaluation, start, end in self._laps:
            elapsed = start.elapsed_time(end) / 1000 if self.device.type == "cuda" else end - start
            parts[part] += max(elapsed - evaluation, 0.0)
            parts["evaluation"] += evaluation
        return dict(parts)

    def _now(self) -> Any:
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
