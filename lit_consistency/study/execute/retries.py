"""Whether a job is run again: as its state deserves."""

from __future__ import annotations

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from lit_consistency.study.execute.state import Attempt, State

INTERRUPTIONS = 10
"""Interruptions of one job in one call, after which it is left alone: something on this machine keeps killing it."""


@dataclass
class Retries:
    """The rule.

    - missing, interrupted: run, but after ``INTERRUPTIONS`` kills in a call no more. To have been asked to save does
      not count where the worker was asked too: an allocation may end before a long job does, again and again.
    - out of memory: once more, alone on the host if others ran beside it.
    - failed: ``retries`` times more.
    - diverged: never; the same command diverges again.

    Args:
        retries: runs of a job that failed, after the first.
        retry_failed: forget failures, and want of memory, of before ``since``.
        since: when the call began, in seconds since 1970.
    """

    retries: int = 0
    retry_failed: bool = False
    since: float = field(default_factory=time.time)

    def may_run(self, state: State, attempts: Sequence[Attempt], interruptions: int = 0) -> bool:
        """Whether to run a job that is in this state.

        Args:
            state: of the job's folder.
            attempts: that stand there.
            interruptions: of this job in this call.
        """
        if state is State.MISSING:
            return True
        if state is State.INTERRUPTED:
            return max(interruptions, self._kills(attempts)) < INTERRUPTIONS
        if state is State.FAILED:
            return self._count(state, attempts) <= self.retries
        if state is State.OUT_OF_MEMORY:
            return self._count(state, attempts) <= 1
        return False

    def alone(self, state: State, attempts: Sequence[Attempt]) -> bool:
        """Whether a job that may run is to run by itself: it had too little memory beside others."""
        return state is State.OUT_OF_MEMORY and bool(attempts) and attempts[-1].beside > 0

    def _count(self, state: State, attempts: Sequence[Attempt]) -> int:
        """How often the job has ended so, as far as that counts; once at least, if by hand."""
        if not attempts:
            return 0 if self.retry_failed else 1
        return sum(a.state is state and (not self.retry_failed or a.started >= self.since) for a in attempts)

    def _kills(self, attempts: Sequence[Attempt]) -> int:
        """Attempts of this call, by any worker, that were killed, or whose worker was killed with them."""
        lately = [a for a in attempts if a.started >= self.since]
        return sum(a.ended is None or (a.state is State.INTERRUPTED and a.status == -signal.SIGKILL) for a in lately)
