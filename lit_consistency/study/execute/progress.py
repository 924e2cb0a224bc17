"""How far a study is: a bar on a terminal, else a line a minute, with a rate and an end time."""

from __future__ import annotations

import sys
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from types import TracebackType
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from lit_consistency.study.execute.state import State
from lit_consistency.study.job import Job

EVERY = 60.0
"""Seconds between two lines when nothing changes."""
AT_MOST_EVERY = 10.0
"""Seconds between two lines when jobs finish one after the other."""


def print_line(line: str) -> None:
    """Print a line that a file shows at once too."""
    print(line, flush=True)


class Throughput:
    """How long jobs take, by stage, and when the rest will be done.

    Args:
        clock: seconds since 1970.
    """

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self.clock = clock
        self.began = clock()
        self.finished = 0
        self.seconds: dict[str, list[float]] = defaultdict(list)

    def add(self, stage: str, seconds: float, before: bool = False) -> None:
        """A job of the stage has finished.

        Args:
            stage: of the study.
            seconds: of all its attempts; 0 if they are not known.
            before: whether that was before the beginning, so that it says nothing of the rate.
        """
        self.finished += not before
        if seconds > 0:
            self.seconds[stage].append(seconds)

    def per_hour(self) -> float:
        """Jobs that finished since the beginning, an hour."""
        return self.finished / max(self.clock() - self.began, 1e-9) * 3600

    def mean(self, stage: str) -> float:
        """Seconds of a job of the stage; of any stage where none of it is known, 0 where none at all is."""
        known = self.seconds.get(stage) or [s for seconds in self.seconds.values() for s in seconds]
        return sum(known) / len(known) if known else 0.0

    def end(self, waiting: Iterable[str], running: Mapping[str, float], at_a_time: int) -> float | None:
        """When all will be done, in seconds since 1970; None while nothing is known.

        Args:
            waiting: the stage of every job that is still to be run.
            running: name -> seconds that are left of it.
            at_a_time: jobs that run side by side.
        """
        left = sum(running.values()) + sum(self.mean(stage) for stage in waiting)
        if not any(self.seconds.values()):
            return None
        return self.clock() + left / max(at_a_time, 1)


class ProgressReport:
    """Says how far the jobs are.

    Args:
        say: takes one line; on a terminal, what happened to single jobs only.
        throughput: what is known of the time that jobs take.
        stream: of the bar.
    """

    def __init__(self, say: Callable[[str], None], throughput: Throughput, stream: TextIO | None = None) -> None:
        self.say = say
        self.throughput = throughput
        self._last_line = ""
        self._last_counts: Counter[State] = Counter()
        self._said_at = float("-inf")
        console = Console(file=stream or sys.stderr)
        self._bar: Progress | None = None
        if console.is_terminal:
            self._bar = Progress(BarColumn(), TextColumn("{task.description}"), console=console, transient=True)
        self._task: TaskID | None = None

    def __enter__(self) -> ProgressReport:
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("", total=None)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
        if self._last_line:
            self.say(self._last_line)

    def update(self, jobs: Mapping[str, Job], states: Mapping[str, State], running: Mapping[str, float]) -> None:
        """Show the bar, or say a line if it is time for one.

        Args:
            jobs: all that are known now.
            states: of all of them.
            running: name -> seconds since it was started here.
        """
        counts = Counter(states[name] for name in jobs)
        now = time.monotonic()
        if self._bar is None:
            wait = EVERY if counts == self._last_counts else AT_MOST_EVERY
            if now - self._said_at < wait:
                self._last_line = "" if counts == self._last_counts else self.line(jobs, states, running)
                return
        line = self.line(jobs, states, running)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, total=len(jobs), completed=counts[State.FINISHED], description=line)
            self._last_line = line
            return
        self.say(line)
        self._last_line, self._last_counts, self._said_at = "", counts, now

    def line(self, jobs: Mapping[str, Job], states: Mapping[str, State], running: Mapping[str, float]) -> str:
        """As ``finished 34 of 192 (2 running, 1 failed), 71 per hour, done about 14:32``."""
        counts = Counter(states[name] for name in jobs)
        others = [f"{counts[state]} {state}" for state in _SHOWN if counts[state]]
        line = f"finished {counts[State.FINISHED]} of {len(jobs)}" + (f" ({', '.join(others)})" if others else "")
        if self.throughput.finished:
            rate = self.throughput.per_hour()
            line += f", {rate:.{1 if rate < 10 else 0}f} per hour"
        waiting = [job.stage for name, job in jobs.items() if states[name] in (State.MISSING, State.INTERRUPTED)]
        left = {
            name: max(self.throughput.mean(jobs[name].stage) - running.get(name, 0.0), 0.0)
            for name in jobs
            if states[name] is State.RUNNING
        }
        end = self.throughput.end(waiting, left, len(left))
        return line if end is None or not (waiting or left) else f"{line}, done about {_at(end, self.throughput)}"


_SHOWN = (State.RUNNING, State.FAILED, State.DIVERGED, State.OUT_OF_MEMORY, State.INTERRUPTED)


def _at(end: float, throughput: Throughput) -> str:
    """The time of day; with the date when it is not today's."""
    same_day = time.localtime(end)[:3] == time.localtime(throughput.clock())[:3]
    return time.strftime("%H:%M" if same_day else "%Y-%m-%d %H:%M", time.localtime(end))
