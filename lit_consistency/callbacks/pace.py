"""When a run will be done, from the steps that this process has made.

The time of a step is the mean since the first one, which pays for compilation and allocation: measurements,
validation and checkpoints between two steps count, so the end holds if they go on as often. What follows the last
step (its measurement, the model) does not.
"""

from __future__ import annotations

import time
from collections.abc import Callable

WEEK = 7 * 86400.0


class Pace:
    """Steps made so far, and how long the others will take.

    Args:
        total: optimizer steps of the run.
        clock: seconds since 1970.
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.time) -> None:
        self.total = total
        self.clock = clock
        self.began = clock()
        self._first: tuple[int, float] | None = None
        self._last: tuple[int, float] = (0, self.began)

    def step(self, step: int) -> None:
        """This optimizer step, counted from the beginning of the run, has just been made."""
        self._last = (step, self.clock())
        if self._first is None:
            self._first = self._last

    @property
    def end(self) -> float | None:
        """When the last step will be made, in seconds since 1970; None before the second step of this process."""
        if self._first is None or self._last[0] == self._first[0]:
            return None
        (first, began), (last, now) = self._first, self._last
        return now + (self.total - last) * (now - began) / (last - first)

    @property
    def seconds_left(self) -> float | None:
        """Until then; None as long as nothing is known."""
        return None if self.end is None else max(self.end - self.clock(), 0.0)


def time_of_day(then: float, now: float) -> str:
    """``14:32``; of another day ``Tue 14:32``, and of another week ``2026-03-01 14:32``."""
    same_day = time.localtime(then)[:3] == time.localtime(now)[:3]
    day = "" if same_day else "%a " if abs(then - now) < WEEK - 86400 else "%Y-%m-%d "
    return time.strftime(f"{day}%H:%M", time.localtime(then))
