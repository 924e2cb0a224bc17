"""What all engines have in common: the jobs, their states as the folders tell them, what may run, and signals."""

from __future__ import annotations

import signal
import threading
import time
from abc import ABC, abstractmethod
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from lit_consistency.study.execute.progress import ProgressReport
from lit_consistency.study.execute.retries import Retries
from lit_consistency.study.execute.state import (
    LOG,
    Attempt,
    State,
    headline,
    read_attempts,
    seconds_of,
    state_of,
)
from lit_consistency.study.job import Job

LOOK_AGAIN = 5.0
"""Seconds between two looks at what other workers have done."""
STOPPING = ("SIGINT", "SIGTERM", "SIGHUP")


class Follower(ABC):
    """Knows the state of all jobs, from their folders alone.

    Args:
        jobs: lists all jobs that are known now, also those that are finished; asked again whenever one has finished.
        retries: which jobs are run again.
        progress: says how far they are.

    Raises:
        ValueError: see ``check_jobs``.
    """

    def __init__(self, jobs: Callable[[], Sequence[Job]], retries: Retries, progress: ProgressReport) -> None:
        self._list = jobs
        self.retries = retries
        self.progress = progress
        self.stopped_by = 0
        self.jobs: dict[str, Job] = {}
        self.states: dict[str, State] = {}
        self._wanted: dict[str, bool] = {}
        self._alone: dict[str, bool] = {}
        self._interruptions: dict[str, int] = defaultdict(int)
        self._looked_at = time.monotonic()
        self._list_again = False
        self._told: dict[str, int] = defaultdict(int)
        self._signals = 0
        self._list_jobs()

    @abstractmethod
    def _checked(self, jobs: Sequence[Job]) -> dict[str, Job]:
        """The jobs by name, all of which can be run where they are to run."""

    def _here(self) -> set[str]:
        """Names of the jobs whose state this process knows better than their folders."""
        return set()

    # -------------------- what there is to do

    def _list_jobs(self) -> None:
        self._list_again = False
        self.jobs = self._checked(self._list())
        for job in self.jobs.values():
            if job.name not in self.states:
                self._read(job)
                if self.states[job.name] is State.FINISHED:
                    self.progress.throughput.add(job.stage, seconds_of(job.folder), before=True)

    def _look(self) -> None:
        """Read the state of all jobs that others may have worked on."""
        here = self._here()
        for job in self.jobs.values():
            if job.name not in here:
                self._look_at(job)
        self._looked_at = time.monotonic()

    def _look_at(self, job: Job) -> None:
        if self.states[job.name] is State.FINISHED:
            return
        self._read(job)
        if self.states[job.name] is State.FINISHED:
            self.progress.throughput.add(job.stage, seconds_of(job.folder))
            self._list_again = True

    def _read(self, job: Job) -> None:
        self._note(job, state_of(job.folder))

    def _note(self, job: Job, state: State) -> None:
        """Keep the state of a job, and what follows from it."""
        ended = state not in (State.MISSING, State.RUNNING, State.FINISHED)
        attempts = read_attempts(job.folder) if ended else []
        self.states[job.name] = state
        self._wanted[job.name] = self.retries.may_run(state, attempts, self._interruptions[job.name])
        self._alone[job.name] = self.retries.alone(state, attempts)

    def _is_ready(self, job: Job) -> bool:
        return self._wanted[job.name] and all(self.states[need] is State.FINISHED for need in job.needs)

    # -------------------- words

    def _sentence(self, job: Job, attempt: Attempt) -> str:
        again = ""
        if self._wanted[job.name] and not self.stopped_by:
            again = "; runs once more, alone" if self._alone[job.name] else "; runs once more"
        log = job.folder / LOG
        return f"{job.name}: {attempt.state} after {attempt.seconds:.0f} s{again}: {headline(attempt.error)} ({log})"

    def _report_what_waits(self) -> None:
        """Name the jobs that were not run, by the job that they needed."""
        waiting = [job for job in self.jobs.values() if self.states[job.name] is State.MISSING]
        by_need: dict[str, list[str]] = defaultdict(list)
        for job in waiting:
            need = next((need for need in job.needs if self.states[need] is not State.FINISHED), "")
            by_need[need].append(job.name)
        for need, names in by_need.items():
            if need:
                self.progress.say(f"not run, because {need} is {self.states[need]}: {', '.join(names)}")

    def _states_at_the_end(self) -> dict[str, State]:
        """The states in which the jobs are left.

        Raises:
            SystemExit: after a signal, with 128 plus its number.
        """
        self._look()
        if self.stopped_by:
            raise SystemExit(128 + self.stopped_by)
        self._report_what_waits()
        return {name: self.states[name] for name in self.jobs}

    # -------------------- signals

    @contextmanager
    def _watching_signals(self) -> Iterator[None]:
        """Note signals; they are acted upon between two steps, when no message to a process is half sent."""
        if threading.current_thread() is not threading.main_thread():  # only the main thread may handle signals
            yield
            return
        numbers = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
        # nohup has it ignored
        before = {n: handler for n in numbers if (handler := signal.getsignal(n)) is not signal.SIG_IGN}

        def note(number: int, frame: object) -> None:
            self._signals += 1
            self.stopped_by = self.stopped_by or number

        try:
            for number in before:
                signal.signal(number, note)
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Driver(Follower):
    """Follows jobs that run elsewhere; says in one line each what became of those that did not finish."""

    def _note(self, job: Job, state: State) -> None:
        is_new = job.name not in self.states
        super()._note(job, state)
        if state in (State.MISSING, State.FINISHED):
            return
        attempts = read_attempts(job.folder)
        if is_new:
            self._told[job.name] = len(attempts) - (state is State.RUNNING)
        elif state is not State.RUNNING and len(attempts) > self._told[job.name]:
            self._told[job.name] = len(attempts)
            gone = attempts[-1].ended is None  # nobody was left to write it
            why = f"{job.name}: interrupted, its worker is gone ({job.folder / LOG})"
            self.progress.say(why if gone else self._sentence(job, attempts[-1]))
