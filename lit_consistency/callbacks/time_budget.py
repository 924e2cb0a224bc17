"""How much of a run's time its measurements may take, and which of them are left out to keep to it.

The rule: a scheduled measurement is made if, with what the latest one took, all measurements so far stay within the
share of the wall time since the start. The first and the last one are always made, so a short run may take more than
its share. The clock is that of rank 0, whose decision holds for all ranks; time between two parts of an interrupted
run does not count. What a measurement decides never touches training: only which points of the curve are there.
"""

from __future__ import annotations

import time
from typing import Any


class TimeBudget:
    """Seconds spent on measurements against seconds that the run has taken.

    Args:
        share: in [0, 1]; 1 leaves nothing out, 0 makes the first and the last measurement only.
    """

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"time_budget = {share}: expected a share of the time, from 0 to 1")
        self.share = share
        self.seconds = 0.0
        self.latest = 0.0
        self.made = 0
        self.skipped = 0
        self._before = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """The run, or this part of it, starts now."""
        self._began = time.perf_counter()

    @property
    def elapsed(self) -> float:
        """Seconds that the run has taken, over all its parts."""
        return self._before + (0.0 if self._began is None else time.perf_counter() - self._began)

    def allows_one_more(self) -> bool:
        """Whether a measurement as long as the latest one stays within the share."""
        if self.share >= 1:
            return True
        return self.seconds + self.latest <= self.share * (self.elapsed + self.latest)

    def spend(self, seconds: float) -> None:
        """A measurement was made."""
        self.seconds += seconds
        self.latest = seconds
        self.made += 1

    def prepare(self, seconds: float) -> None:
        """Something was computed once that all measurements need."""
        self.seconds += seconds

    def skip(self) -> None:
        """A measurement was left out."""
        self.skipped += 1

    def make_up(self) -> None:
        """The one that was left out last is made after all."""
        self.skipped -= 1

    def numbers(self) -> dict[str, float]:
        """What is logged: seconds of all measurements so far, and how many were left out."""
        return {"evaluation/seconds": self.seconds, "evaluation/skipped": float(self.skipped)}

    def record(self) -> dict[str, float | int]:
        """What the run's record keeps."""
        return {
            "time_budget": self.share,
            "seconds": self.seconds,
            "elapsed": self.elapsed,
            "made": self.made,
            "skipped": self.skipped,
        }

    def summary_line(self) -> str | None:
        """One line on what was left out, if anything was."""
        if not self.skipped:
            return None
        due = self.made + self.skipped
        return (
            f"skipped {self.skipped} of {due} measurements to stay within {100 * self.share:.3g}% of the time "
            "(forgetting.time_budget; 1 skips none)"
        )

    def state_dict(self) -> dict[str, Any]:
        """All counts, and the time of the run so far."""
        names = ("seconds", "latest", "made", "skipped", "elapsed")
        return {name: getattr(self, name) for name in names}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Count on from an earlier part of the run; one without counts begins at zero."""
        self.seconds, self.latest = state.get("seconds", 0.0), state.get("latest", 0.0)
        self.made, self.skipped = state.get("made", 0), state.get("skipped", 0)
        self._before = state.get("elapsed", 0.0)
